"""The launchers' exit codes for a rank's: real runs, each ended in one way, and the table of their exit codes.

    python -m tests.helpers.exit_codes SHARDS      measures all columns but srun's, and writes the table of the docs

docs/operations.md has the table. tests/distributed and tests/slurm measure its columns again and compare.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from common.files import write_json
from pipeline.runtime.stop import STOPPING
from tests.conftest import REPOSITORY, free_port
from tests.helpers.held import Hold, wait_until

PAGE = REPOSITORY / "docs" / "operations.md"
COLUMNS = ("python", "torchrun", "deepspeed", "srun")
_BIN = Path(sys.executable).parent
_AT = "pipeline.monitoring.sinks.metrics_file:MetricsFile.write"


@dataclass(frozen=True, kw_only=True)
class Held:
    """A run that waits in its first step."""

    rank: int
    """The process of its only rank."""
    run_dir: Path
    interrupt: Callable[[], None]
    """Does what a terminal does at Ctrl-C."""
    stop_launcher: Callable[[], None]
    """Sends SIGTERM to the launcher."""
    output: Path
    """What the run has printed."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """One way in which a run ends."""

    overrides: tuple[str, ...] = ()
    prepare: Callable[[Path], tuple[str, ...]] = lambda run_dir: ()
    """Called with the run's folder before the start; returns more overrides."""
    act: Callable[[Held], None] | None = None
    """Called while the run waits in its first step."""
    goes_on: bool = True
    """Whether the run goes on after that."""
    hangs: bool = False
    """Whether it waits in its first step for ever."""


def _with_damaged_shard(run_dir: Path) -> tuple[str, ...]:
    folder = run_dir.parent.parent / "shards"
    copy = run_dir.parent / f"{run_dir.name}-shards"
    shutil.copytree(folder, copy)
    for path in (copy / "train").rglob("*.mds"):
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")  # the high byte of an id
    return (f"data.shards={copy}",)


def _take_folder_away(held: Held) -> None:
    """Put a file where the run's checkpoints lie: every write fails, also for root."""
    (held.run_dir / "checkpoints").rmdir()
    (held.run_dir / "checkpoints").touch()


def _signal_rank(number: signal.Signals) -> Callable[[Held], None]:
    return lambda held: os.kill(held.rank, number)


def _interrupt_twice(held: Held) -> None:
    held.interrupt()
    wait_until(lambda: STOPPING in held.output.read_text(errors="replace"))
    held.interrupt()


def _take_over(held: Held) -> None:
    write_json(held.run_dir / "lease.json", {"job": "Slurm job 1", "restart": 1, "token": "of another start"})


# What ends the run, in the order and the words of the table.
SITUATIONS: dict[str, Situation] = {
    "its last step": Situation(),
    "a mistake of its user": Situation(overrides=("optim.lr=-1",)),
    "a damaged shard": Situation(prepare=_with_damaged_shard),
    "a checkpoint that cannot be written": Situation(act=_take_folder_away),
    "SIGTERM or SIGUSR1 to a rank": Situation(act=_signal_rank(signal.SIGTERM)),
    "SIGTERM to the launcher": Situation(act=lambda held: held.stop_launcher()),
    "Ctrl-C": Situation(act=lambda held: held.interrupt()),
    "Ctrl-C twice": Situation(act=_interrupt_twice, goes_on=False),
    "a rank that hangs": Situation(overrides=("faults.hang_timeout_s=4",), hangs=True),
    "another start that takes over": Situation(act=_take_over),
    "SIGKILL to a rank, as where memory is short": Situation(act=_signal_rank(signal.SIGKILL), goes_on=False),
}


def recipe_in(folder: Path, *, shards: Path) -> Path:
    """Write a recipe of 8 steps of the smallest model; `folder` gets the shards, and the runs."""
    shutil.copytree(shards, folder / "shards")
    (folder / "runs").mkdir()
    values = {
        "run": {"dir": str(folder / "runs")},
        "model": {"dim": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 258, "n_future_tokens": 1, "multiple_of": 16},
        "data": {"shards": str(folder / "shards"), "seq_len": 32, "num_workers": 0, "num_canonical_nodes": 2},
        "train": {"total_tokens": 256, "batch_tokens": 32, "micro_batch_size": 1, "eval_every_steps": 0},
        "optim": {"warmup_steps": 0},
        "log": {"every_steps": 1},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """A way to start one rank."""

    command: Callable[[], Sequence[str]]
    """Returns the words before the module's name."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the launcher."""
    rank_of: Callable[[Path], int] = lambda run_dir: int((run_dir / ".lock").read_text().split()[1])
    """Returns the process of a run's only rank, from the run's folder."""
    process_of: Callable[[int], int] = lambda process: process
    """Returns the launcher's process, from the one that was started."""


def _port() -> str:
    return f"--master_port={free_port()}"


LOCAL = {
    "python": Launcher(command=lambda: [sys.executable, "-m"]),
    "torchrun": Launcher(command=lambda: [str(_BIN / "torchrun"), "--nproc_per_node=1", _port(), "-m"]),
    "deepspeed": Launcher(command=lambda: [str(_BIN / "deepspeed"), "--num_gpus=1", _port(), "--module"]),
}
# srun's first Ctrl-C only lists its tasks; SIGTERM makes it end them at once, so that a save is a matter of luck.
NOT_MEASURED = {"srun": ("SIGTERM to the launcher", "Ctrl-C", "Ctrl-C twice")}


def arguments(recipe: Path, name: str, situation: Situation) -> list[str]:
    """Prepare a run, and return the arguments of pipeline.train."""
    more = situation.prepare(recipe.parent / "runs" / name)
    json = str(REPOSITORY / "ds_configs" / "zero1_fp32.json")
    return ["--config", str(recipe), "--deepspeed_config", json, f"run.name={name}", *situation.overrides, *more]


def exit_code(launcher: Launcher, what: str, *, name: str, recipe: Path) -> int:
    """Return the exit code, as a shell shows it, of a launcher whose run ends in one way.

    Args:
        launcher: starts the run.
        what: ends the run.
        name: of the run.
        recipe: of the run.
    """
    situation, run_dir = SITUATIONS[what], recipe.parent / "runs" / name
    hold = Hold(command="pipeline.train", at=_AT, after=0, file=recipe.parent / f"{name}.held")
    waits = situation.act is not None or situation.hangs
    module = "tests.helpers.held" if waits else "pipeline.train"
    path = f"{_BIN}:{os.environ['PATH']}"
    output = recipe.parent / f"{name}.log"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*launcher.command(), module, *arguments(recipe, name, situation)],
            cwd=REPOSITORY, env={**os.environ, **hold.variables, "PATH": path, **launcher.variables},
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    with _killed_at_last(process):
        if situation.act is not None:
            hold.reached(process)
            held = Held(
                rank=launcher.rank_of(run_dir), run_dir=run_dir, output=output,
                interrupt=lambda: os.killpg(process.pid, signal.SIGINT),
                stop_launcher=lambda: os.kill(launcher.process_of(process.pid), signal.SIGTERM),
            )  # fmt: skip
            situation.act(held)
            if situation.goes_on:
                hold.release()
        code = process.wait(timeout=600)
    return code if code >= 0 else 128 - code


@contextmanager
def _killed_at_last(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill the launcher, and at its end what it has left running."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measured(launchers: Mapping[str, Launcher], *, shards: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Return the exit code of each launcher in each situation; two runs at a time."""
    recipe = recipe_in(folder, shards=shards)
    cells = [
        (launcher, what) for what in SITUATIONS for launcher in launchers if what not in NOT_MEASURED.get(launcher, ())
    ]

    def measure(cell: tuple[str, str]) -> int:
        launcher, what = cell
        name = f"{launcher}-{list(SITUATIONS).index(what)}"
        return exit_code(launchers[launcher], what, name=name, recipe=recipe)

    found: dict[str, dict[str, str]] = {launcher: dict.fromkeys(SITUATIONS, "-") for launcher in launchers}
    with ThreadPoolExecutor(2) as pool:
        for (launcher, what), code in zip(cells, pool.map(measure, cells), strict=True):
            found[launcher][what] = str(code)
    return found


def table(codes: Mapping[str, Mapping[str, str]]) -> str:
    """Return the lines of the table, from the codes of each column."""
    lines = [f"| what ends the run | {' | '.join(COLUMNS)} |", f"|---{'|---' * len(COLUMNS)}|"]
    lines += [f"| {what} | {' | '.join(codes[column][what] for column in COLUMNS)} |" for what in SITUATIONS]
    return "\n".join(lines) + "\n"


def documented() -> tuple[str, dict[str, dict[str, str]]]:
    """Return the table of the docs as it stands there, and its codes by column."""
    lines = PAGE.read_text(encoding="utf-8").splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.startswith("| what ends the run |"))
    end = next(number for number, line in enumerate(lines) if number > start and not line.startswith("|"))
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in lines[start + 2 : end]]
    codes = {
        column: {row[0]: row[number] for row in rows} for number, column in enumerate(COLUMNS, start=1)
    }  # fmt: skip
    return "".join(lines[start:end]), codes


def write(codes: Mapping[str, Mapping[str, str]]) -> None:
    """Write the table of the docs; columns that are not given keep their codes."""
    old, known = documented()
    kept = {column: dict.fromkeys(SITUATIONS, "-") | known[column] for column in COLUMNS}
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.replace(old, table({**kept, **codes})), encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "work"
        work.mkdir()
        write(measured(LOCAL, shards=Path(sys.argv[1]), folder=work))
