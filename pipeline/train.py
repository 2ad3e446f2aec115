"""Pretrain a multi-token-prediction model under DeepSpeed.

`main` reads and checks all inputs and joins the process group; `run` builds the parts of the run; the loop is in
`training/loop.py`. A run that has checkpoints resumes from the newest intact one.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error, tell_torchrun

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common.command_line import UserError, command_parser, whole_number
from common.wording import counted
from pipeline.config.inputs import Inputs, add_run_arguments, load_inputs
from pipeline.config.recipe import read_config
from pipeline.config.schema import Config
from pipeline.config.shard_folder import corpus_of, evaluation_windows
from pipeline.config.values import shown
from pipeline.monitoring.run_files import check_run_directory, make_run_directory, write_run_files
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
intact one. SIGTERM, SIGUSR1 or Ctrl-C saves a checkpoint and exits with code 75; the same command resumes the run."""


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
    check_run_directory(inputs.config)
    from pipeline.training.process_group import process_group

    run_dir, timeout_s = inputs.config.run_dir, inputs.config.faults.hang_timeout_s
    rank_log, hangs = keep_rank_log(run_dir / "ranks", world=world), run_dir / "hangs"
    record_collectives(hangs)
    watchdog = Watchdog(hangs, rank=world.rank, timeout_s=timeout_s)
    # The watchdog must be the first to time out.
    with watchdog, process_group(world, timeout_s=3 * timeout_s) as device:
        exit_code = run(
            inputs, world=world, device=device, resume=arguments.resume, other_data=arguments.other_data, stop=stop,
            watchdog=watchdog, rank_log=rank_log,
        )  # fmt: skip
    stop.close()
    if exit_code:
        tell_torchrun(f"exit code {exit_code} ({exit_code.name}): {run_dir / 'train.log'} says why")
    sys.exit(exit_code)


def run(
    inputs: Inputs, *, world: World, device: "torch.device", resume: bool, other_data: bool, stop: StopRequest,
    watchdog: Watchdog, rank_log: logging.Handler,
) -> ExitCode:  # fmt: skip
    """Build the parts of a run, start or resume it, and train to its end; return the exit code.

    Every rank must call it.

    Raises:
        UserError: the run cannot resume from its checkpoints, or another process trains it.
    """
    from pipeline.monitoring.header import header
    from pipeline.monitoring.previews import Previews
    from pipeline.monitoring.sinks.console import console_handler
    from pipeline.training.build import build_engine, check_compiler
    from pipeline.training.loop import Trainer, owes_validation
    from pipeline.weights.checkpoint.folder import CheckpointFolder
    from pipeline.weights.formats.start import starting_weights

    config = inputs.config
    if config.train.compile and device.type == "cpu":
        check_compiler()
    previews = Previews(config.log, data=config.data, metadata=inputs.metadata)
    start = None
    if config.model.init_from is not None and not any(config.run_dir.glob("checkpoints/step_*")):
        start = starting_weights(config.model, tokenizer_sha256=inputs.metadata["tokenizer"]["sha256"])
    corpus = corpus_of(config.data, inputs.metadata)
    # All checks that need no run directory are done: a start that is refused leaves none.
    by_main(lambda: make_run_directory(config), world=world)
    lease = Lease(config.run_dir, launch=world.launch)
    by_main(lease.acquire, world=world)
    of_main = [console_handler(), log_file_handler(config.run_dir / "train.log")] if world.is_main else []
    configure_logging(world, handlers=[rank_log, *of_main])
    logger.info(header(inputs, world=world, device=device))
    for line in inputs.without_effect:
        logger.info("note     DeepSpeed JSON: %s", line)

    checkpoints = CheckpointFolder(
        config.run_dir / "checkpoints", policy=config.checkpoint, run_config=config.as_dict(), world=world, lease=lease,
        corpus=corpus,
    )  # fmt: skip
    found = checkpoints.find(resume=resume, other_data=other_data)
    changes = tell_changes(inputs, step=found.step) if found is not None and world.is_main else {}
    if found is not None and found.step >= config.total_steps and not owes_validation(found, config, world=world):
        logger.info("%s", end_of_budget(config, found.path, step=found.step))
        return ExitCode.FINISHED
    if found is not None and found.state["data"] is None:
        logger.info("going on with other data than before (--other_data), from its beginning")
    if found is None and start is not None:
        logger.info("starting from %s", start.path)
    by_main(lambda: write_run_files(inputs), world=world)
    if world.is_main:
        step, details = 0 if found is None else found.step, {"changes": changes} if changes else {}
        history.record(config.run_dir, "launch", step=step, ranks=world.world_size, device=device.type, **details)
    watchdog.progress("building the model and DeepSpeed's engine")
    engine = build_engine(config, inputs.deepspeed_config, device=device, start=start if found is None else None)
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


def tell_changes(inputs: Inputs, *, step: int) -> history.Changes:
    """Log which fields changed since the run's last launch, and what that does to the learning rate; return them."""
    from pipeline.training.optim import learning_rate

    config, run_dir = inputs.config, inputs.config.run_dir
    try:
        changes = history.changes_since_last_launch(run_dir, config=config, deepspeed_config=inputs.deepspeed_config)
        before = read_config(run_dir / "config.yaml").config
    except UserError as error:
        logger.warning("what changed since the last launch is unknown: %s", error)
        return {}
    for name, (old, new) in changes.items():
        logger.info("changed  %s: %s -> %s", name, shown(old), shown(new))
    rates = [
        learning_rate(step + 1, optim=each.optim, total_steps=max(each.total_steps, step + 1))
        for each in (before, config)
    ]
    if rates[0] != rates[1]:
        logger.info("changed  the learning rate of step %d: %.3g -> %.3g", step + 1, *rates)
    return changes


def end_of_budget(config: Config, checkpoint: Path, *, step: int) -> str:
    """Return the line about a run that has no step left."""
    if step == config.total_steps:
        return f"finished: {checkpoint} is the run's last step"
    return (
        f"finished: {checkpoint} is after step {step}, beyond the budget of {counted(config.total_steps, 'step')}"
        f" (train.total_tokens={config.train.total_tokens}); raise train.total_tokens to go on"
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        PROGRAM, description="Pretrain a multi-token-prediction model under DeepSpeed.", epilog=EXAMPLE
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--other_data",
        action="store_true",
        help="resume although data.shards are not the shards that the run was trained on; they are read from their"
        " beginning",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="resume from the run's newest intact checkpoint (default); --no-resume refuses a run that has any",
    )
    rank = whole_number(at_least=0, at_most=1023)
    # The deepspeed launcher adds the first, torch.distributed.launch the second.
    parser.add_argument("--local_rank", "--local-rank", type=rank, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    exit_on_user_error(main, program=PROGRAM)
