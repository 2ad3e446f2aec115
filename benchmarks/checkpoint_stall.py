"""How long training stands still for a checkpoint: written at once, or while it goes on.

One rank trains a random model under ZeRO-1 and saves it in both ways in turn, as a run does.
The stall is what the training loop waits for in the save. What goes on in the background may slow the steps meanwhile,
so their time is measured too, with and without a save under way.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.parts.outputs import check_json
from common.command_line import UserError, command_parser, exit_on_user_error
from common.files import write_json
from pipeline.config.deepspeed import fill_deepspeed_config, read_deepspeed_config
from pipeline.config.model import ModelConfig
from pipeline.config.schema import CheckpointConfig, Config, DataConfig, RunConfig, TrainConfig
from pipeline.data.batches import Batch
from pipeline.model.formulas import parameter_count
from pipeline.runtime.lease import Lease
from pipeline.runtime.world import world_from_environment
from pipeline.training.engine import Engine, build_engine
from pipeline.training.process_group import process_group
from pipeline.weights.checkpoint.folder import CheckpointFolder

SEQ_LEN, VOCAB_SIZE, HEADS = 128, 8192, 4
STATE_BYTES = 12  # of a parameter: fp32, and Adam's two moments


@dataclass(frozen=True, kw_only=True)
class Save:
    """Seconds of one checkpoint: what training stood still, until it was whole, and each step meanwhile."""

    stall_s: float
    whole_s: float
    steps_s: list[float]


def config_in(directory: Path, *, dim: int, n_layers: int, asynchronous: bool) -> Config:
    """Return a run of one sequence a step."""
    return Config(
        run=RunConfig(dir=str(directory), name="asynchronous" if asynchronous else "synchronous"),
        model=ModelConfig(
            dim=dim, n_layers=n_layers, n_heads=dim // 64, vocab_size=VOCAB_SIZE, n_future_tokens=HEADS
        ),
        data=DataConfig(seq_len=SEQ_LEN),
        train=TrainConfig(total_tokens=SEQ_LEN, batch_tokens=SEQ_LEN),
        checkpoint=CheckpointConfig(keep=1, asynchronous=asynchronous),
    )  # fmt: skip


def random_batches() -> Iterator[Batch]:
    """Yield random batches of one sequence without end."""
    while True:
        tokens_BW = torch.randint(VOCAB_SIZE, (1, SEQ_LEN + HEADS))
        yield Batch(tokens_BW[:, :SEQ_LEN], tokens_BW[:, 1:].unfold(1, HEADS, 1)[:, :SEQ_LEN])


def step_s(engine: Engine, batches: Iterator[Batch]) -> float:
    """Take one training step; return its seconds."""
    start_s = time.perf_counter()
    engine.train_step(batches, learning_rate=1e-4)
    return time.perf_counter() - start_s


def save(folder: CheckpointFolder, step: int, engine: Engine, batches: Iterator[Batch], *, asynchronous: bool) -> Save:
    """Save once, training on meanwhile if it is asynchronous.

    Raises:
        UserError: it failed, for want of room for instance.
    """
    start_s, steps_s = time.perf_counter(), []
    folder.begin(step, engine=engine, state={})
    stall_s = time.perf_counter() - start_s
    while asynchronous and not folder.is_written:
        steps_s.append(step_s(engine, batches))
    failure = folder.finish()
    if failure is not None:
        raise UserError(f"a checkpoint could not be written: {failure}")
    whole_s = time.perf_counter() - start_s
    return Save(stall_s=stall_s if asynchronous else whole_s, whole_s=whole_s, steps_s=steps_s)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the JSON that was asked for.

    Raises:
        UserError: the JSON's folder does not exist.
    """
    arguments = _parse(argv)
    check_json(arguments.json)
    world = world_from_environment()
    with process_group(world) as device, tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        configs = {
            asynchronous: config_in(
                Path(scratch), dim=arguments.dim, n_layers=arguments.n_layers, asynchronous=asynchronous
            )
            for asynchronous in (False, True)
        }
        folders = {}
        for asynchronous, config in configs.items():
            (config.run_dir / "checkpoints").mkdir(parents=True)
            lease = Lease(config.run_dir, launch=world.launch)
            lease.take()
            folders[asynchronous] = CheckpointFolder(
                config.run_dir / "checkpoints", policy=config.checkpoint, run_config=config.as_dict(), world=world,
                lease=lease,
            )  # fmt: skip
        values = read_deepspeed_config(Path("ds_configs/zero1_fp32.json"))
        deepspeed_config, _ = fill_deepspeed_config(values, configs[True], data_ranks=1)
        engine, batches = build_engine(configs[True], deepspeed_config, device=device), random_batches()
        for warm_up in (False, True):  # the first copies are allocated
            save(folders[warm_up], 1, engine, batches, asynchronous=warm_up)
        quiet_s: list[float] = []
        saves: dict[bool, list[Save]] = {False: [], True: []}
        for step in range(2, arguments.repeats + 2):
            quiet_s += [step_s(engine, batches) for _ in range(5)]
            for asynchronous in (False, True):
                saves[asynchronous].append(
                    save(folders[asynchronous], step, engine, batches, asynchronous=asynchronous)
                )
    parameters = parameter_count(configs[True].model)
    print(_table(saves, quiet_s, parameters=parameters))
    if arguments.json is not None:
        rows = {("asynchronous" if key else "synchronous"): [asdict(one) for one in of] for key, of in saves.items()}
        write_json(arguments.json, {"parameters": parameters, "quiet_step_s": quiet_s, **rows})


def _table(saves: dict[bool, list[Save]], quiet_s: list[float], *, parameters: int) -> str:
    lines = [
        f"{parameters / 1e6:.0f}M parameters, {STATE_BYTES * parameters / 1e9:.2f} GB of state; medians of"
        f" {len(saves[True])}, in brackets smallest and largest\n",
        "| checkpoint | stall, s | of the synchronous save | whole after, s | a step meanwhile, over one without |",
        "|---|---|---|---|---|",
    ]
    reference_s = median(one.stall_s for one in saves[False])
    for asynchronous, of in saves.items():
        stalls = [one.stall_s for one in of]
        steps = [step for one in of for step in one.steps_s]
        slowed = f"{median(steps) / median(quiet_s):.2f}" if steps else ""
        lines.append(
            f"| {'asynchronous' if asynchronous else 'synchronous'} | {median(stalls):.3f} ({min(stalls):.3f} to"
            f" {max(stalls):.3f}) | {median(stalls) / reference_s:.3f} | {median(one.whole_s for one in of):.2f} |"
            f" {slowed} |"
        )
    return "\n".join(lines)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("benchmarks.checkpoint_stall", description=__doc__)
    parser.add_argument("--dim", type=int, default=768, help="of the model, a multiple of 64 (default: %(default)s)")
    parser.add_argument("--n_layers", type=int, default=12, help="of the model, heads counted (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="saves of each kind (default: %(default)s)")
    scratch_help = "folder on the disk to measure; takes about 48 bytes per parameter (default: the system's)"
    parser.add_argument("--scratch", type=Path, metavar="DIR", help=scratch_help)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.checkpoint_stall")
