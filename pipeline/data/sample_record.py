"""The record of the samples that a run has trained on, which `log.samples=true` keeps in the run directory.

A sample is a window of training data, identified by its epoch and its index in the train split. Every rank writes a
file of its own, with one line for each step, appended before the step's checkpoint:

    runs/<name>/samples/rank_00003.jsonl
        {"step": 12, "samples": [[0, [17, 4, [9, 33]]]]}

This line says that rank 3 read samples 17, 4 and 9 of epoch 0 in step 12; sample 9 lies in a damaged shard, and window
33 was read in its place. The ranks that share a replica of the model read the same samples, and only the first of them
writes. `SampleRecord` writes the files, `steps_of` reads them back, and `python -m pipeline.audit` checks them.
"""

import heapq
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from common.command_line import UserError, one_line
from common.files import PatientFile, written_whole
from common.small_files import read_lines
from pipeline.config.schema import LogConfig
from pipeline.runtime.collectives import from_main
from pipeline.runtime.logs import logger
from pipeline.runtime.metrics_lines import is_step, json_object
from pipeline.runtime.world import World

NOTHING = -1  # stands for the index of the window that was read if none could be
ReadSample = int | tuple[int, int]  # index of the requested window, and of the window read in its place if another
EpochSamples = tuple[int, list[ReadSample]]  # an epoch, and samples of it in the order in which they were read
Sample = tuple[int, int]  # an epoch, and the index of a window

FOLDER, PATTERN = "samples", "rank_*.jsonl"


class SampleRecord:
    """Writes one rank's file from a step on; writes nothing without `log.samples`."""

    def __init__(
        self, run_dir: Path, *, log: LogConfig, ranks_per_replica: int, world: World, resumed_step: int
    ) -> None:
        """Open the record; all ranks must call it together.

        Steps after `resumed_step` are removed from all files, including those of ranks that no longer exist, because
        these steps will run again.

        Args:
            run_dir: the run directory.
            log: the config section that turns the record on.
            ranks_per_replica: consecutive ranks that read the same samples.
            world: this rank.
            resumed_step: the last step that is kept; 0 for a new run.
        """
        folder = run_dir / FOLDER
        if world.is_main:
            remove_after(folder, step=resumed_step)
        if world.world_size > 1:
            from_main(None)  # no rank may append before the files are cut
        self._file: PatientFile | None = None
        self._waits = False
        if log.samples and world.rank % ranks_per_replica == 0:
            self._file = PatientFile(lambda: _made(folder) / f"rank_{world.rank:05d}.jsonl")

    def __enter__(self) -> "SampleRecord":
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None and (error := self._file.close()) is not None:
            logger.warning("the record of samples lost its last steps: %s", one_line(error))

    def write(self, step: int, samples: list[EpochSamples]) -> None:
        """Append what this rank read in a step. Call it before the step's checkpoint, which relies on it."""
        if self._file is not None:
            line = json.dumps({"step": step, "samples": samples}, separators=(",", ":")) + "\n"
            error = self._file.write(line.encode())
            if error is not None and not self._waits:
                logger.warning("the record of samples waits until it can be written: %s", one_line(error))
            self._waits = error is not None


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove_after(folder: Path, *, step: int) -> None:
    """Remove later steps than `step` from every rank's file, and lines that a killed process left incomplete.

    What cannot be read or written is left as it is, with a warning: a record must not end a run.
    """
    for path in sorted(folder.glob(PATTERN)):
        try:
            _cut(path, step=step)
        except (OSError, UserError) as error:
            logger.warning("%s keeps steps after %d, which will run again: %s", path, step, one_line(error))


def _cut(path: Path, *, step: int) -> None:
    if all(_is_kept(line, step=step) for line in read_lines(path)):
        return
    with written_whole(path) as partial, partial.open("wb") as file:
        file.writelines(line for line in read_lines(path) if line is not None and _is_kept(line, step=step))


def _is_kept(line: bytes | None, *, step: int) -> bool:
    record = _parsed(line)
    return record is not None and record["step"] <= step


@dataclass(frozen=True, kw_only=True)
class StepSamples:
    """The samples of one step, of all ranks together."""

    step: int
    samples: Counter[Sample] = field(default_factory=Counter)
    """How often each sample was requested."""
    replaced: Counter[tuple[Sample, int]] = field(default_factory=Counter)
    """Samples of damaged shards, each with the index of the window that was read in its place."""


def steps_of(run_dir: Path) -> Iterator[StepSamples]:
    """Yield the recorded steps of a run in order; only one of them is in memory at a time.

    Raises:
        UserError: there is no record, or it holds no complete line, or a file of it cannot be read.
    """
    files = sorted((run_dir / FOLDER).glob(PATTERN))
    records = heapq.merge(*map(_records, files), key=_step)
    first = next(records, None)
    if first is None:
        raise UserError(
            f"{run_dir} has no record of its samples ({FOLDER}/{PATTERN}); a run keeps one with log.samples=true"
        )
    for step, of_ranks in itertools.groupby(itertools.chain([first], records), key=_step):
        found = StepSamples(step=step)
        for epoch, samples in itertools.chain.from_iterable(record["samples"] for record in of_ranks):
            for sample in samples:
                requested, *read = sample if isinstance(sample, list) else [sample]
                found.samples[epoch, requested] += 1
                found.replaced.update(((epoch, requested), other) for other in read)
        yield found


def samples_by_step(run_dir: Path) -> dict[int, Counter[Sample]]:
    """Return how often all ranks together requested each sample, for each step of a run.

    Raises:
        UserError: there is no record.
    """
    return {found.step: found.samples for found in steps_of(run_dir)}


def _records(path: Path) -> Iterator[dict[str, Any]]:
    return (record for record in map(_parsed, read_lines(path)) if record is not None)


def _step(record: dict[str, Any]) -> int:
    return record["step"]


def _parsed(line: bytes | None) -> dict[str, Any] | None:
    """Return a line's object, or None if the line is damaged; its step then lacks samples, which an audit reports."""
    record = json_object(line) if line is not None and line.endswith(b"\n") else None
    if record is None or not is_step(record.get("step")) or not isinstance(record.get("samples"), list):
        return None
    return record if all(map(_is_epoch, record["samples"])) else None


def _is_epoch(value: Any) -> bool:
    """Return True if a value is an epoch and a list of samples, each of which is an index, or a pair of them."""
    if not isinstance(value, list) or len(value) != 2 or not _is_index(value[0]) or not isinstance(value[1], list):
        return False
    return all(
        _is_index(sample) if not isinstance(sample, list) else len(sample) == 2 and all(map(_is_index, sample))
        for sample in value[1]
    )


def _is_index(value: Any) -> bool:
    return type(value) is int and NOTHING <= value < 1 << 63
