"""Pretrain a multi-token-prediction model under DeepSpeed.

`main` reads and checks all inputs and joins the process group; `run` builds the parts of the run; the loop is in
`training/loop.py`. A run that has checkpoints resumes from the newest intact one.
"""

from common.endings import exit_on_user_error

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from common.command_line import UserError, command_parser, whole_number
from common.files import write_json, write_text
from pipeline.config.inputs import Inputs, add_run_arguments, load_inputs
from pipeline.config.schema import Config
from pipeline.config.shard_folder import evaluation_windows, keep_tokenizer
from pipeline.runtime import history
from pipeline.runtime.collectives import by_main
from pipeline.runtime.lease import Lease
from pipeline.runtime.logs import configure_logging, keep_rank_log, log_file_handler, logger
from pipeline.runtime.stop import Ending, ExitCode, StopRequest
from pipeline.runtime.watchdog import Watchdog, record_collectives
from pipeline.runtime.world import World, world_from_environment

if TYPE_CHECKING:  # torch and deepspeed take seconds to import; mistakes are reported before that
    import torch

    from pipeline.data.batches import TrainingData, ValidationData

PROGRAM = "pipeline.train"
EXAMPLE = """example, on 2 GPUs or CPU ranks:
  deepspeed --num_gpus 2 --module pipeline.train --config pipeline/recipes/demo.yaml \\
      --deepspeed_config ds_configs/zero1_fp32.json run.name=try optim.lr=1.0e-3

Any field of the recipe can be overridden as section.field=value. A run that has checkpoints resumes from the newest
intact one. SIGTERM or SIGUSR1 saves a checkpoint and exits with code 75; the same command resumes the run."""


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
    # The watchdog must be the first to time out.
    with watchdog, process_group(world, timeout_s=3 * timeout_s) as device:
        exit_code = run(
            inputs, world=world, device=device, resume=arguments.resume, stop=stop, watchdog=watchdog, rank_log=rank_log
        )
    stop.close()
    sys.exit(exit_code)


def run(
    inputs: Inputs, *, world: World, device: "torch.device", resume: bool, stop: StopRequest, watchdog: Watchdog,
    rank_log: logging.Handler,
) -> ExitCode:  # fmt: skip
    """Build the parts of a run, start or resume it, and train to its end; return the exit code.

    Every rank must call it.

    Raises:
        UserError: the run cannot resume from its checkpoints, or another process trains it.
    """
    from pipeline.monitoring.header import header
    from pipeline.monitoring.previews import Previews
    from pipeline.monitoring.sinks.console import console_handler
    from pipeline.training.build import build_engine
    from pipeline.training.loop import Trainer, owes_validation
    from pipeline.weights.checkpoint.folder import CheckpointFolder
    from pipeline.weights.formats.start import starting_weights

    config = inputs.config
    lease = Lease(config.run_dir, launch=world.launch)
    by_main(lease.acquire, world=world)
    of_main = [console_handler(), log_file_handler(config.run_dir / "train.log")] if world.is_main else []
    configure_logging(world, handlers=[rank_log, *of_main])
    logger.info(header(inputs, world=world, device=device))
    for line in inputs.without_effect:
        logger.info("note     DeepSpeed JSON: %s", line)
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
    trainer = Trainer(
        config, world=world, device=device, engine=engine,
        validation=_validation_data(inputs, world=world, device=device), data=_training_data(inputs, device=device),
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


def _training_data(inputs: Inputs, *, device: "torch.device") -> "TrainingData":
    from pipeline.data.batches import TrainingData

    config = inputs.config
    return TrainingData(
        config.data, train=config.train, n_future_tokens=config.model.n_future_tokens,
        vocab_size=config.model.vocab_size, ranks_per_replica=config.parallel.ranks_per_replica, device=device,
    )  # fmt: skip


def _validation_data(inputs: Inputs, *, world: World, device: "torch.device") -> "ValidationData | None":
    """Return the data of this rank's validations, or None if the run has no validations."""
    from pipeline.data.batches import ValidationData

    config = inputs.config
    if not config.train.eval_every_steps:
        return None
    return ValidationData(
        config.data, micro_batch_size=config.train.micro_batch_size, n_future_tokens=config.model.n_future_tokens,
        vocab_size=config.model.vocab_size,
        n_windows=evaluation_windows(inputs.metadata, config.train, data_ranks=inputs.data_ranks),
        replica=world.rank // config.parallel.ranks_per_replica, n_replicas=inputs.data_ranks, device=device,
    )  # fmt: skip


def make_run_directory(config: Config) -> Path:
    """Create the run directory, with the folders that must exist before the run starts, and return it.

    Raises:
        UserError: it cannot be created.
    """
    try:
        for name in ("checkpoints", "hangs", "ranks"):
            (config.run_dir / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run.dir={config.run.dir!r}: cannot create {error.filename} ({error.strerror})") from error
    return config.run_dir


def write_run_files(inputs: Inputs) -> None:
    """Write the resolved config, the DeepSpeed JSON, the versions of software and the tokenizer into the run directory.

    Raises:
        OSError: it cannot be written.
    """
    from pipeline.monitoring.environment import environment

    run_dir = inputs.config.run_dir
    write_text(run_dir / "config.yaml", yaml.safe_dump(inputs.config.as_dict(), sort_keys=False))
    write_json(run_dir / "ds_config.json", inputs.deepspeed_config)
    write_json(run_dir / "environment.json", environment())
    keep_tokenizer(run_dir, data=inputs.config.data, metadata=inputs.metadata)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        PROGRAM, description="Pretrain a multi-token-prediction model under DeepSpeed.", epilog=EXAMPLE
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="resume from the run's newest intact checkpoint (default); --no-resume refuses a run that has any",
    )
    rank = whole_number(at_least=0, at_most=1023)
    parser.add_argument("--local_rank", type=rank, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser


if __name__ == "__main__":
    exit_on_user_error(main, program=PROGRAM)
