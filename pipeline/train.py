"""Front door of pretraining: `main` reads and checks everything, `run` makes the parts, `train` is the loop.

A run that finds its own checkpoints goes on from the newest whole one.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from common.command_line import exit_on_user_error
from common.files import write_json, write_text
from pipeline.config import Config
from pipeline.distributed import World, configure_logging, log_file_handler, logger, world_from_environment
from pipeline.inputs import Inputs, evaluation_windows, load_inputs

if TYPE_CHECKING:  # torch and deepspeed take seconds to import; mistakes are answered before that
    import torch

    from pipeline.checkpoint import CheckpointFolder
    from pipeline.data import Batch, TrainingData
    from pipeline.engine import Engine
    from pipeline.monitor import Monitor

PROGRAM = "pipeline.train"
EXAMPLE = """example, on 2 GPUs or CPU ranks:
  deepspeed --num_gpus 2 --module pipeline.train --config pipeline/recipes/demo.yaml \\
      --deepspeed_config ds_configs/zero1_fp32.json run.name=try optim.lr=1.0e-3

Any field of the recipe can be overridden as section.field=value. A run that finds its own checkpoints goes on
from the newest whole one. SIGTERM or SIGUSR1 saves a checkpoint and exits with code 75: start again to go on."""


def main() -> None:
    """Parse the command line, check every input, and train."""
    arguments = _parser().parse_args()
    world = world_from_environment()
    inputs = load_inputs(
        arguments.config,
        arguments.deepspeed_config,
        overrides=arguments.overrides,
        world_size=world.world_size,
        n_nodes=world.world_size // world.local_world_size,
    )
    from pipeline.engine import process_group

    with process_group(world) as device:
        exit_code = run(inputs, world=world, device=device, resume=arguments.resume)
    sys.exit(exit_code)


def run(inputs: Inputs, *, world: World, device: "torch.device", resume: bool) -> int:
    """Build the parts of a run, resume or begin it, and train to its end; return the exit code.

    Raises:
        UserError: there are checkpoints that this run cannot go on from.
    """
    from pipeline.checkpoint import CheckpointFolder
    from pipeline.data import TrainingData, ValidationData
    from pipeline.engine import build_engine
    from pipeline.formats.detect import starting_weights
    from pipeline.monitor import Monitor, console_handler, header, sinks_for
    from pipeline.stop import STOPPED_EXIT_CODE

    config = inputs.config
    if world.is_main:
        (config.run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    handlers = [console_handler(), log_file_handler(config.run_dir / "train.log")] if world.is_main else []
    configure_logging(world, handlers=handlers)
    logger.info(header(inputs, world=world, device=device))

    checkpoints = CheckpointFolder(config, world=world)
    found = checkpoints.find(resume=resume)
    if found is not None and found.step >= config.total_steps:
        logger.info("finished: %s is the run's last step", found.path)
        return 0
    start = None
    if found is None and config.model.init_from is not None:
        start = starting_weights(config.model, tokenizer_sha256=inputs.metadata["tokenizer"]["sha256"])
        logger.info("starting from %s", start.path)
    if world.is_main:
        write_run_files(inputs)
    engine = build_engine(config, inputs.deepspeed_config, device=device, start=start)
    data = TrainingData(config)
    resumed_step = 0
    if found is not None:
        checkpoints.load(found, engine=engine, data=data)
        resumed_step = found.step
        logger.info("resumed from %s", found.path)
    validation: Iterable[Batch] = ()
    if config.train.eval_every_steps:
        n_windows = evaluation_windows(inputs.metadata, config, data_ranks=inputs.data_ranks)
        replica = world.rank // config.parallel.ranks_per_replica
        validation = ValidationData(config, n_windows=n_windows, replica=replica, n_replicas=inputs.data_ranks)
    monitor = Monitor(
        config, sinks=sinks_for(config, world=world, resumed_step=resumed_step), device=device, step=resumed_step
    )
    with monitor:
        finished = train(
            config, engine=engine, data=data, validation=validation, monitor=monitor, checkpoints=checkpoints,
            resumed_step=resumed_step,
        )  # fmt: skip
    return 0 if finished else STOPPED_EXIT_CODE


def train(
    config: Config,
    *,
    engine: "Engine",
    data: "TrainingData",
    validation: "Iterable[Batch]",
    monitor: "Monitor",
    checkpoints: "CheckpointFolder",
    resumed_step: int,
) -> bool:
    """Train from `resumed_step` to the last step; return False if a stop request ended it earlier."""
    from pipeline.distributed import any_rank, mean_over_ranks
    from pipeline.optim import learning_rate
    from pipeline.stop import StopRequest

    stop = StopRequest()
    for step in range(resumed_step + 1, config.total_steps + 1):
        rate = learning_rate(step, optim=config.optim, total_steps=config.total_steps)
        losses_N = engine.train_step(data, learning_rate=rate)
        is_last = step == config.total_steps
        stopping = any_rank(stop.requested, device=losses_N.device)

        if step % config.log.every_steps == 0 or is_last or stopping:
            monitor.log_step(
                step, losses_N=mean_over_ranks(losses_N), learning_rate=rate, gradient_norm=engine.gradient_norm,
                wait_s=data.wait_s,
            )  # fmt: skip
        if config.train.eval_every_steps and (step % config.train.eval_every_steps == 0 or is_last) and not stopping:
            with monitor.paused():
                monitor.log_validation(step, engine.evaluate(validation))
        if step % config.checkpoint.every_steps == 0 or is_last or stopping:
            with monitor.paused():
                checkpoints.save(step, engine=engine, data=data)
        if stopping:
            logger.info("stopped on request after step %d; the same command goes on from there", step)
            return is_last
    return True


def write_run_files(inputs: Inputs) -> None:
    """Record in the run directory what is about to run: resolved config, DeepSpeed JSON, versions."""
    from pipeline.monitor import environment

    run_dir = inputs.config.run_dir
    write_text(run_dir / "config.yaml", yaml.safe_dump(inputs.config.as_dict(), sort_keys=False))
    write_json(run_dir / "ds_config.json", inputs.deepspeed_config)
    write_json(run_dir / "environment.json", environment())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Pretrain a multi-token-prediction model under DeepSpeed.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="recipe (YAML); see pipeline/recipes/")
    parser.add_argument("--deepspeed_config", type=Path, required=True, help="DeepSpeed JSON; see ds_configs/")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the run's newest whole checkpoint (default); --no-resume refuses a run that has any",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="fields of the recipe to change")
    return parser


if __name__ == "__main__":
    exit_on_user_error(main, program=PROGRAM)
