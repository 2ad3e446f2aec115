"""Which samples a run has trained on: the record that `log.samples=true` keeps, and a command that examines it.

    python -m pipeline.audit runs/demo
    python -m pipeline.audit runs/demo runs/demo-again

The first form counts what was recorded, and says whether steps are missing and whether an epoch had a sample twice. The
second says whether two runs trained on the same samples in every step that both have, and in which they first differ;
the number of ranks, and where a run was killed and resumed, make no difference to that. Exit code 1: something is
missing or twice, or the runs differ.

    runs/<name>/samples/rank_00003.jsonl    what this rank read, a line per step:
        {"step": 12, "samples": [[0, [17, 4, [9, 33]]]]}

These are samples 17, 4 and 9 of epoch 0; a damaged shard had 9, and 33 took its place. Of the ranks that share a
replica of the model, and so its samples, the first one writes.
"""

import argparse
import heapq
import itertools
import json
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from common.command_line import UserError, command_parser, exit_on_user_error
from common.files import PatientFile, write_text
from pipeline.config.schema import Config
from pipeline.runtime.collectives import from_main
from pipeline.runtime.world import World

if TYPE_CHECKING:  # torch takes seconds to import
    from pipeline.data.batches import EpochSamples

FOLDER, PATTERN = "samples", "rank_*.jsonl"
Sample = tuple[int, int]  # an epoch, and the number of a window


@dataclass(frozen=True, kw_only=True)
class StepSamples:
    """What all ranks together had in one step.

    samples: how often each sample was asked for.
    replaced: those of damaged shards, by sample and the number of the window in its place.
    """

    step: int
    samples: Counter[Sample] = field(default_factory=Counter)
    replaced: Counter[tuple[Sample, int]] = field(default_factory=Counter)


class SampleRecord:
    """A rank's part of the record, from a step on. Without `log.samples` it writes nothing.

    All ranks make one together. What the record has after `resumed_step`, also of ranks that are gone, is dropped then:
    those steps come again.
    """

    def __init__(self, config: Config, *, world: World, resumed_step: int) -> None:
        folder = config.run_dir / FOLDER
        if world.is_main:
            cut_after(folder, step=resumed_step)
        if world.world_size > 1:
            from_main(None)  # nobody writes before that
        self._file: PatientFile | None = None
        if config.log.samples and world.rank % config.parallel.ranks_per_replica == 0:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = PatientFile(folder / f"rank_{world.rank:05d}.jsonl")

    def __enter__(self) -> "SampleRecord":
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, step: int, samples: "list[EpochSamples]") -> None:
        """Append what this rank consumed in a step; before the step's checkpoint, which vouches for it."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "samples": samples}, separators=(",", ":")) + "\n")


def cut_after(folder: Path, *, step: int) -> None:
    """Drop from every rank's record what is later than `step`, and lines that a kill cut off."""
    for path in folder.glob(PATTERN):
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = list(file)
        kept = [line for line in lines if (record := _parsed(line)) is not None and record["step"] <= step]
        if kept != lines:
            write_text(path, "".join(kept))


def steps_of(run_dir: Path) -> Iterator[StepSamples]:
    """Yield the recorded steps of a run in order, each with what all ranks had, holding one in memory at a time.

    Raises:
        UserError: there is no record, or nothing whole in it.
    """
    records = heapq.merge(*map(_records, sorted((run_dir / FOLDER).glob(PATTERN))), key=_step)
    first = next(records, None)
    if first is None:
        raise UserError(
            f"{run_dir} has no record of its samples ({FOLDER}/{PATTERN}); a run keeps one with log.samples=true"
        )
    for step, of_ranks in itertools.groupby(itertools.chain([first], records), key=_step):
        had = StepSamples(step=step)
        for epoch, samples in itertools.chain.from_iterable(record["samples"] for record in of_ranks):
            for sample in samples:
                asked, *read = sample if isinstance(sample, list) else [sample]
                had.samples[epoch, asked] += 1
                had.replaced.update(((epoch, asked), other) for other in read)
        yield had


def consumed(run_dir: Path) -> dict[int, Counter[Sample]]:
    """Return how often each step of a run had each sample, as (epoch, id), over all ranks.

    Raises:
        UserError: there is no record.
    """
    return {had.step: had.samples for had in steps_of(run_dir)}


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from (record for record in map(_parsed, file) if record is not None)


def _step(record: dict[str, Any]) -> int:
    return record["step"]


def _parsed(line: str) -> dict[str, Any] | None:
    """Return a line's object, or None where it is damaged; then its step misses samples, which does not go unseen."""
    try:
        record: dict[str, Any] = json.loads(line)
        is_whole = line.endswith("\n") and isinstance(record["step"], int) and isinstance(record["samples"], list)
    except (ValueError, KeyError, TypeError):
        return None
    return record if is_whole else None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exit with code 1 if something is missing or twice, or two runs differ.

    Raises:
        UserError: a folder is no run, or has no record; or two runs have no step in common.
    """
    arguments = _parse(argv)
    runs = [_Run(path) for path in arguments.runs]
    is_good = _report(runs[0]) if len(runs) == 1 else _compare(*runs)
    sys.exit(0 if is_good else 1)


class _Run:
    """A run to examine: its folder, and of its config.yaml what the record is measured by."""

    def __init__(self, path: Path) -> None:
        import yaml

        self.path = path
        self.cut_off: StepSamples | None = None
        try:
            values = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
            self.per_step: int = values["train"]["batch_tokens"] // values["data"]["seq_len"]
            self.most_padding: int = values["data"]["num_canonical_nodes"] - 1  # windows_per_epoch in data.py
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise UserError(
                f"{path} is not a run: its config.yaml cannot be read ({' '.join(str(error).split())}); give a folder"
                " under runs/"
            ) from error

    def steps(self) -> Iterator[StepSamples]:
        """Yield its steps; a last one that lacks samples is kept in `cut_off` instead: a kill came between ranks."""
        steps = steps_of(self.path)
        last = next(steps)
        for had in steps:
            yield last
            last = had
        if last.samples.total() == self.per_step:
            yield last
        else:
            self.cut_off = last


def _report(run: _Run) -> bool:
    """Print what one run's record holds; return whether nothing is wrong."""
    by_epoch: dict[int, array[int]] = {}
    n_steps = n_replaced = last = 0
    problems = []
    for had in run.steps():
        last, n_steps = had.step, n_steps + 1
        n_replaced += had.replaced.total()
        for (epoch, sample), count in had.samples.items():
            by_epoch.setdefault(epoch, array("q")).extend([sample] * count)
        if had.samples.total() != run.per_step:
            problems.append(f"step {had.step} has {had.samples.total()} samples instead of {run.per_step}")
    if n_steps < last:
        problems.append(f"{last - n_steps} of the steps up to {last} are missing")
    n_samples = sum(map(len, by_epoch.values()))
    print(f"{run.path}: {n_steps:,} steps up to step {last:,}, {n_samples:,} samples, {len(by_epoch)} epochs")
    for epoch, samples in sorted(by_epoch.items()):
        n_again = len(samples) - len(np.unique(samples))
        print(f"  epoch {epoch}: {len(samples):,} samples, {n_again:,} of them again")
        if n_again > run.most_padding:
            problems.append(f"epoch {epoch} has {n_again} samples again, of which {run.most_padding} can be padding")
    if n_replaced:
        print(f"  {n_replaced:,} windows of damaged shards were replaced by others")
    if run.cut_off is not None:
        print(
            f"  step {run.cut_off.step} is left out: not all ranks have written it, so it runs now or was killed there"
        )
    for problem in _shortened(problems):
        print(f"  wrong: {problem}")
    if not problems:
        print(f"  no step is missing; every sample came once an epoch, but for up to {run.most_padding} of padding")
    return not problems


def _compare(one: _Run, other: _Run) -> bool:
    """Print whether two runs had the same samples in each step that both have; return whether they did."""
    n_common = 0
    for had, had_there in _common_steps(one, other):
        n_common += 1
        if had != had_there:
            print(f"different from step {had.step:,} on; {n_common - 1:,} common steps before it are the same")
            _print_difference(one.path, had, had_there)
            _print_difference(other.path, had_there, had)
            return False
    if not n_common:
        raise UserError(f"{one.path} and {other.path} have no recorded step in common")
    print(f"the same samples in each of {n_common:,} common steps")
    return True


def _common_steps(one: _Run, other: _Run) -> Iterator[tuple[StepSamples, StepSamples]]:
    both = heapq.merge(one.steps(), other.steps(), key=lambda had: had.step)
    for _, same_step in itertools.groupby(both, key=lambda had: had.step):
        found = list(same_step)
        if len(found) == 2:
            yield found[0], found[1]


def _print_difference(path: Path, had: StepSamples, had_elsewhere: StepSamples) -> None:
    only_here = had.samples - had_elsewhere.samples
    names = [f"{sample} of epoch {epoch}" for epoch, sample in sorted(only_here.elements())]
    replaced = had.replaced - had_elsewhere.replaced
    names += [f"{read} in place of {sample} of epoch {epoch}" for (epoch, sample), read in sorted(replaced.elements())]
    print(f"  only {path} had {'; '.join(_shortened(names)) or 'nothing'}")


def _shortened(items: list[str]) -> list[str]:
    most = 8
    return items if len(items) <= most else [*items[:most], f"and {len(items) - most} more"]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("pipeline.audit", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="one run's folder to examine, or two to compare"
    )
    arguments = parser.parse_args(argv)
    if len(arguments.runs) > 2:
        parser.error(f"give one run or two, not {len(arguments.runs)}")
    return arguments


if __name__ == "__main__":
    exit_on_user_error(main, program="pipeline.audit")
