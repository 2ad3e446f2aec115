"""Compares an interrupted run with an uninterrupted one, bit for bit: metrics, windows, last checkpoint."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.conftest import run_module
from tests.faults.runs import checkpoints_of
from tests.helpers.run_results import without_times

Line = tuple[int, str]  # a step, and "training" or "validation"


def lines_of(run_dir: Path) -> list[tuple[Line, dict[str, Any]]]:
    """Return the lines of metrics.jsonl without times and memory; a line that is still being written is left out."""
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [
        ((line["step"], "training" if "loss/total" in line else "validation"), without_times(line)) for line in lines
    ]


def differences(run_dir: Path, reference: Path, *, up_to: int) -> list[str]:
    """Return the differences in the metrics of all steps before `up_to`, whose validation may still be running."""
    found, expected = lines_of(run_dir), dict(lines_of(reference))
    problems = [
        f"{what} of step {step} appears twice" for (step, what), n in Counter(k for k, _ in found).items() if n > 1
    ]
    expected_before = {key for key in expected if key[0] < up_to}
    problems += [f"{what} of step {step} is missing" for step, what in sorted(expected_before - dict(found).keys())]
    for key, line in found:
        if line != expected.get(key):
            tags = [tag for tag, value in line.items() if value != expected.get(key, {}).get(tag)]
            problems.append(f"{key[1]} of step {key[0]} differs in {', '.join(tags) or 'missing values'}")
    return _shortened(problems)


def differences_at_the_end(run_dir: Path, reference: Path, *, total_steps: int) -> list[str]:
    """Return the differences between two finished runs: all metrics, all windows, the last checkpoint."""
    problems = differences(run_dir, reference, up_to=total_steps + 1)
    problems += _problems_of_samples(run_dir, reference)
    mine, its = checkpoints_of(run_dir)[0], checkpoints_of(reference)[0]
    if mine.name != its.name:
        return [*problems, f"the last checkpoint is {mine.name} instead of {its.name}"]
    if _hashes(mine) != _hashes(its):
        problems.append(f"weights or moments differ in {mine.name}")
    if _state(mine) != _state(its):
        problems.append(f"training_state.json differs in {mine.name}")
    return problems + [f"{path} was left behind" for path in (run_dir / "checkpoints").glob(".*")]


def skipped_steps(run_dir: Path) -> list[int]:
    """Return the steps of a run that were skipped because a number was not finite."""
    counts = {step: line["faults/skipped_steps"] for (step, what), line in lines_of(run_dir) if what == "training"}
    return [step for step, count in sorted(counts.items()) if count > counts.get(step - 1, 0)]


def epochs_of(run_dir: Path) -> int:
    """Return the number of epochs in the record of samples."""
    record = (run_dir / "samples" / "rank_00000.jsonl").read_text(encoding="utf-8")
    return 1 + max(epoch for line in record.splitlines() for epoch, _ in json.loads(line)["samples"])


def _problems_of_samples(run_dir: Path, reference: Path) -> list[str]:
    problems = []
    for runs in ([run_dir], [run_dir, reference]):
        done = run_module("pipeline.audit", *runs)
        if done.returncode:
            problems.append(f"pipeline.audit: {' '.join((done.stdout + done.stderr).split())}")
    return problems


def _hashes(checkpoint: Path) -> dict[str, Any]:
    """Return the manifest's entries of the tensor files; their index file differs in every run."""
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    return {name: entry for name, entry in manifest.items() if name.endswith(".distcp")}


def _state(checkpoint: Path) -> dict[str, Any]:
    state = json.loads((checkpoint / "training_state.json").read_text(encoding="utf-8"))
    return {key: value for key, value in state.items() if key != "config"}


def _shortened(problems: list[str]) -> list[str]:
    return problems if len(problems) <= 4 else [*problems[:3], f"and {len(problems) - 3} more"]
