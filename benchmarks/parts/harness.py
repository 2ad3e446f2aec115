"""What benchmarks share: rounds that take all cases in turns, medians with their spread, ranks, tables.

Cases of one round share the machine's mood, so it is their ratios within a round that are compared; every other round
goes backwards, so that none is always the one after a heavy neighbour.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.files import write_json

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# oneDNN dies on virtual machines that advertise AMX and fault on it; a GPU is not concerned.
ENVIRONMENT = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    lower: float
    upper: float

    def __str__(self) -> str:
        median, lower, upper = (f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in (self.median, self.lower, self.upper))
        return f"{median} ({lower} to {upper})"


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles."""
    lower, median, upper = np.percentile(values, [25, 50, 75]).tolist()
    return Spread(median=median, lower=lower, upper=upper)


def ratio(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Return the spread of values over those of `base` in the same round."""
    return spread([value / of_base for value, of_base in zip(values, base, strict=True)])


def in_turns(
    cases: Mapping[str, Callable[[], float]], *, warm_up: int, repeats: int, label: str = "rounds"
) -> dict[str, list[float]]:
    """Call every case once in each of `warm_up` + `repeats` rounds; return what the later rounds gave, by name."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    rounds = range(warm_up + repeats)
    for index in tqdm(rounds, desc=label, leave=False, disable=os.environ.get("RANK", "0") != "0" or None):
        for name in list(cases)[:: 1 if index % 2 else -1]:
            measured = cases[name]()
            if index >= warm_up:
                found[name].append(measured)
    return found


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows, the first of them the heading, as an aligned Markdown table."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def on_ranks(module: str, todo: Any, *, ranks: int, threads: int = 1, **variables: str) -> Any:
    """Start `python -m module --todo FILE` on some ranks of this machine; return what rank 0 answers (`answer`).

    Args:
        module: of benchmarks/.
        todo: what to do, as JSON.
        ranks: processes.
        threads: of each, on the CPU.
        variables: environment variables to set: DS_ACCELERATOR="cpu" keeps off a GPU.

    Raises:
        RuntimeError: a rank failed; the message has the end of what they said.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "todo.json"
        write_json(path, todo)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command += ["--module", module, "--todo", str(path)]
        environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads), **variables}
        said = None if sys.stderr.isatty() else subprocess.STDOUT  # a person sees rank 0's progress
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=said, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stdout.decode(errors="replace")[-8000:])
        return json.loads(_answer_to(path).read_text(encoding="utf-8"))


def answer(todo: Path, found: Any) -> None:
    """Leave what was found for the process that called `on_ranks`; for rank 0."""
    write_json(_answer_to(todo), found)


def _answer_to(todo: Path) -> Path:
    return todo.with_name("answer.json")
