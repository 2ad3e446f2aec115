"""Check the record of the samples that a run has trained on, or compare the records of two runs.

    python -m pipeline.audit runs/demo
    python -m pipeline.audit runs/demo runs/demo-again

A run keeps this record if it is started with log.samples=true. With one run, the command counts the recorded samples,
and reports steps that are missing and samples that an epoch had twice. With two runs, it reports whether both trained
on the same samples in every step that both have recorded, and the first step in which they differ. The number of ranks
does not matter for that, nor does it matter where a run was killed and resumed.

The exit code is 1 if something is missing or repeated, or if the runs differ.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import argparse
import heapq
import itertools
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.command_line import UserError, a_path, command_parser, say
from common.small_files import read_yaml
from common.wording import counted
from pipeline.data.sample_record import StepSamples, steps_of

_MOST_SHOWN = 8  # problems, or samples that differ


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exit with code 1 if something is missing or repeated, or if two runs differ.

    Raises:
        UserError: a folder is not a run, or has no record, or two runs have no step in common.
    """
    arguments = _parse(argv)
    runs = [_RecordedRun(path) for path in arguments.runs]
    is_good = _report(runs[0]) if len(runs) == 1 else _compare(*runs)
    sys.exit(0 if is_good else 1)


class _RecordedRun:
    """A run to check: its recorded steps, and the values of its config.yaml that they are compared with.

    Raises:
        UserError: config.yaml cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.incomplete: StepSamples | None = None
        try:
            values = read_yaml(path / "config.yaml")
            batch_tokens, seq_len = _count(values, "train", "batch_tokens"), _count(values, "data", "seq_len")
            canonical_nodes = _count(values, "data", "num_canonical_nodes")
        except UserError as error:
            raise UserError(f"{path} is not a run: {error}; give a folder under runs/") from error
        self.samples_per_step = batch_tokens // seq_len
        # Streaming repeats samples until each canonical node has equally many (`batches.windows_per_epoch`).
        self.most_padding = canonical_nodes - 1

    def steps(self) -> Iterator[StepSamples]:
        """Yield the recorded steps; a last step that lacks samples is kept in `incomplete` instead.

        Such a step is running now, or the run was killed after some ranks had written it.
        """
        steps = steps_of(self.path)
        last = next(steps)
        for step in steps:
            yield last
            last = step
        if last.samples.total() == self.samples_per_step:
            yield last
        else:
            self.incomplete = last


def _count(values: Any, section: str, field: str) -> int:
    """Return a field of a recipe that counts something.

    Raises:
        UserError: it is missing, or is no whole number above 0.
    """
    in_section = values.get(section) if isinstance(values, dict) else None
    value = in_section.get(field) if isinstance(in_section, dict) else None
    if type(value) is not int or value < 1:
        raise UserError(f"its config.yaml has {section}.{field}={value!r:.80}, which is no whole number above 0")
    return value


def _report(run: _RecordedRun) -> bool:
    """Print what one run's record holds; return True if nothing is wrong."""
    by_epoch: dict[int, array[int]] = {}
    n_steps = n_replaced = last = 0
    problems = []
    for found in run.steps():
        last, n_steps = found.step, n_steps + 1
        n_replaced += found.replaced.total()
        for (epoch, sample), count in found.samples.items():
            by_epoch.setdefault(epoch, array("q")).extend([sample] * count)
        if found.samples.total() != run.samples_per_step:
            problems.append(f"step {found.step} has {found.samples.total()} samples instead of {run.samples_per_step}")
    before = last if run.incomplete is None else run.incomplete.step - 1  # the last step that must be whole
    if n_steps < before:
        problems.append(f"{before - n_steps:,} of the steps up to {before:,} are missing")
    n_samples = sum(map(len, by_epoch.values()))
    say(
        f"{run.path}: {counted(n_steps, 'step')} up to step {last:,}, {counted(n_samples, 'sample')},"
        f" {counted(len(by_epoch), 'epoch')}"
    )
    for epoch, samples in sorted(by_epoch.items()):
        n_repeated = len(samples) - len(np.unique(samples))
        say(f"  epoch {epoch}: {counted(len(samples), 'sample')}, {n_repeated:,} of them repeated")
        if n_repeated > run.most_padding:
            problems.append(
                f"epoch {epoch} repeats {counted(n_repeated, 'sample')}; at most {run.most_padding} can be padding"
            )
    if n_replaced:
        say(f"  replaced by others: {counted(n_replaced, 'window')} of damaged shards")
    if run.incomplete is not None:
        say(
            f"  step {run.incomplete.step} is ignored: not all ranks have written it, so it is still running, or the"
            " run was killed in it"
        )
    for problem in _shortened(problems):
        say(f"  wrong: {problem}")
    if not problems:
        say(f"  no step is missing; no epoch repeats more samples than padding may ({run.most_padding})")
    return not problems


def _compare(one: _RecordedRun, other: _RecordedRun) -> bool:
    """Print whether two runs read the same samples in each step that both have recorded; return True if they did."""
    n_common = 0
    for of_one, of_other in _common_steps(one, other):
        n_common += 1
        if of_one != of_other:
            say(f"different from step {of_one.step:,} on, after {counted(n_common - 1, 'equal step')}")
            _print_difference(one.path, of_one, of_other)
            _print_difference(other.path, of_other, of_one)
            return False
    if not n_common:
        raise UserError(f"{one.path} and {other.path} have no recorded step in common")
    say(f"the same samples in {counted(n_common, 'common step')}")
    return True


def _common_steps(one: _RecordedRun, other: _RecordedRun) -> Iterator[tuple[StepSamples, StepSamples]]:
    both = heapq.merge(one.steps(), other.steps(), key=lambda found: found.step)
    for _, same_step in itertools.groupby(both, key=lambda found: found.step):
        pair = list(same_step)
        if len(pair) == 2:
            yield pair[0], pair[1]


def _print_difference(path: Path, here: StepSamples, there: StepSamples) -> None:
    only_here = here.samples - there.samples
    names = [f"{sample} of epoch {epoch}" for epoch, sample in sorted(only_here.elements())]
    replaced = here.replaced - there.replaced
    names += [f"{read} in place of {sample} of epoch {epoch}" for (epoch, sample), read in sorted(replaced.elements())]
    say(f"  only {path} had {'; '.join(_shortened(names)) or 'nothing'}")


def _shortened(items: list[str]) -> list[str]:
    return items if len(items) <= _MOST_SHOWN else [*items[:_MOST_SHOWN], f"and {len(items) - _MOST_SHOWN} more"]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("pipeline.audit", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=a_path, metavar="RUN", help="the folder of one run to check, or of two to compare"
    )
    arguments = parser.parse_args(argv)
    if len(arguments.runs) > 2:
        parser.error(f"give one run or two, not {len(arguments.runs)}")
    return arguments


if __name__ == "__main__":
    exit_on_user_error(main, program="pipeline.audit")
