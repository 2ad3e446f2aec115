"""Front door of pretraining: `main` reads and checks everything, `run` makes the parts; the loop is in loop.py.

A run that finds its own checkpoints goes on from the newest whole one.
"""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from common.command_line import UserError, command_parser, exit_on_user_error
from common.files import hold_lock, write_json, write_text
from pipeline.config.inputs import Inputs, load_inputs
from pipeline.config.schema import Config
from pipeline.config.shard_folder import evaluation_windows
from pipeline.runtime import history
from pipeline.runtime.collectives import by_main
from pipeline.runtime.lease import Lease
from pipeline.runtime.logs import configure_logging, keep_rank_log, log_file_handler, logger
from pipeline.runtime.stop import Ending, ExitCode, StopRequest
from pipeline.runtime.watchdog import Watchdog, record_collectives
from pipeline.runtime.world import Launch, World, world_from_environment

if TYPE_CHECKING:  # torch and deepspeed take seconds to import; mistakes are answered before that
    import torch

PROGRAM = "pipeline.train"
LONGEST_FAREWELL_S = 60.0  # of an earlier start of the same job, whose lease was taken: a step and its last lines
EXAMPLE = """example, on 2 GPUs or CPU ranks:
  deepspeed --num_gpus 2 --module pipeline.train --config pipeline/recipes/demo.yaml \\
      --deepspeed_config ds_configs/zero1_fp32.json run.name=try optim.lr=1.0e-3

Any field of the recipe can be overridden as section.field=value. A run that finds its own checkpoints goes on
from the newest whole one. SIGTERM or SIGUSR1 saves a checkpoint and exits with code 75: start again to go on."""


def main() -> None:
    """Parse the command line, check every input, and train."""
    arguments = _parser().parse_args()
    world = world_from_environment()
    stop = StopRequest(has_launcher=world.has_launcher)
    inputs = load_inputs(
        arguments.config,
        arguments.deepspeed_config,
        overrides=arguments.overrides,
        world_size=world.world_size,
        n_nodes=world.world_size // world.local_world_size,
    )
    from pipeline.training.process_group import process_group

    run_dir, timeout_s = make_run_directory(inputs.config), inputs.config.faults.hang_timeout_s
    rank_log, hangs = keep_rank_log(run_dir / "ranks", world=world), run_dir / "hangs"
    record_collectives(hangs)
    watchdog = Watchdog(hangs, rank=world.rank, timeout_s=timeout_s)
    with watchdog, process_group(world, timeout_s=3 * timeout_s) as device:  # so that the watchdog is the first
        exit_code = run(
            inputs, world=world, device=device, resume=arguments.resume, stop=stop, watchdog=watchdog, rank_log=rank_log
        )
    stop.close()
    sys.exit(exit_code)


def run(
    inputs: Inputs, *, world: World, device: "torch.device", resume: bool, stop: StopRequest, watchdog: Watchdog,
    rank_log: logging.Handler,
) -> ExitCode:  # fmt: skip
    """Build the parts of a run, resume or begin it, and train to its end; return the exit code.

    Raises:
        UserError: there are checkpoints that this run cannot go on from, or another process trains it.
    """
    from pipeline.data.batches import TrainingData, ValidationData
    from pipeline.monitoring.console import console_handler
    from pipeline.monitoring.header import header
    from pipeline.monitoring.previews import Previews
    from pipeline.training.build import build_engine
    from pipeline.training.loop import Trainer, owes_validation
    from pipeline.weights.checkpoint.folder import CheckpointFolder
    from pipeline.weights.formats.start import starting_weights

    config = inputs.config
    lease = Lease(config.run_dir, launch=world.launch)
    by_main(lambda: keep_others_out(config.run_dir, lease=lease, launch=world.launch), world=world)
    of_main = [console_handler(), log_file_handler(config.run_dir / "train.log")] if world.is_main else []
    configure_logging(world, handlers=[rank_log, *of_main])
    logger.info(header(inputs, world=world, device=device))
    previews = Previews(config.log, data=config.data, metadata=inputs.metadata)

    checkpoints = CheckpointFolder(
        config.run_dir / "checkpoints", policy=config.checkpoint, run_config=config.as_dict(), world=world, lease=lease
    )
    found = checkpoints.find(resume=resume)
    if found is not None and found.step >= config.total_steps and not owes_validation(found, config, world=world):
        logger.info("finished: %s is the run's last step", found.path)
        return ExitCode.FINISHED
    start = None
    if found is None and config.model.init_from is not None:
        start = starting_weights(config.model, tokenizer_sha256=inputs.metadata["tokenizer"]["sha256"])
        logger.info("starting from %s", start.path)
    by_main(lambda: write_run_files(inputs), world=world)
    if world.is_main:
        step = 0 if found is None else found.step
        history.record(config.run_dir, "launch", step=step, ranks=world.world_size, device=device.type)
    watchdog.progress("building the model and DeepSpeed's engine")
    engine = build_engine(config, inputs.deepspeed_config, device=device, start=start)
    validation = None
    if config.train.eval_every_steps:
        n_windows = evaluation_windows(inputs.metadata, config.train, data_ranks=inputs.data_ranks)
        replica = world.rank // config.parallel.ranks_per_replica
        validation = ValidationData(
            config.data, micro_batch_size=config.train.micro_batch_size, n_future_tokens=config.model.n_future_tokens,
            n_windows=n_windows, replica=replica, n_replicas=inputs.data_ranks, device=device,
        )  # fmt: skip
    data = TrainingData(
        config.data, train=config.train, n_future_tokens=config.model.n_future_tokens,
        ranks_per_replica=config.parallel.ranks_per_replica, device=device,
    )  # fmt: skip
    trainer = Trainer(
        config, world=world, device=device, engine=engine,
        data=data, validation=validation,
        previews=previews, checkpoints=checkpoints, lease=lease, stop=stop, watchdog=watchdog,
    )  # fmt: skip
    try:
        exit_code = trainer.train(found)
    except Ending as ending:
        checkpoints.finish()
        if world.is_main:
            logger.error("%s", ending)
        exit_code = ending.exit_code
    if world.is_main:
        history.record(config.run_dir, "end", exit_code=exit_code)
    return exit_code


def make_run_directory(config: Config) -> Path:
    """Return the run's folder, made if need be, with its parts that must be there before the run.

    Raises:
        UserError: it cannot be made.
    """
    try:
        for part in ("checkpoints", "hangs", "ranks"):
            (config.run_dir / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run.dir={config.run.dir!r}: {error.filename} cannot be made ({error.strerror})") from error
    return config.run_dir


def keep_others_out(run_dir: Path, *, lease: Lease, launch: Launch) -> None:
    """Lock this folder for as long as this process lives, and take its lease; an earlier start of the same job must go.

    That one stops before its next step, once it sees the lease gone; if it does not see that, it cannot write either.

    Raises:
        UserError: another job trains this run, or a later start of this one does.
    """
    before = lease.holder
    if before is not None and before.is_later_than(launch):
        raise UserError(f"{run_dir} has been taken over by {before}; this is the start before that, and ends")
    takes_over = before is not None and launch.is_later_than(before)
    if takes_over:
        lease.take()
    holder = hold_lock(run_dir / ".lock")
    end_s = time.monotonic() + LONGEST_FAREWELL_S
    while holder is not None and takes_over and time.monotonic() < end_s:
        time.sleep(0.5)
        holder = hold_lock(run_dir / ".lock")
    if holder is not None and not takes_over:
        raise UserError(f"{run_dir} is in use by {holder}; stop it, or set another run.name")
    if holder is not None:
        logger.warning("%s, of an earlier start of this job, still lives; it has lost the right to write", holder)
    lease.take()


def write_run_files(inputs: Inputs) -> None:
    """Record in the run directory what is about to run: resolved config, DeepSpeed JSON, versions."""
    from pipeline.monitoring.environment import environment

    run_dir = inputs.config.run_dir
    write_text(run_dir / "config.yaml", yaml.safe_dump(inputs.config.as_dict(), sort_keys=False))
    write_json(run_dir / "ds_config.json", inputs.deepspeed_config)
    write_json(run_dir / "environment.json", environment())


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        PROGRAM, description="Pretrain a multi-token-prediction model under DeepSpeed.", epilog=EXAMPLE
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
