"""Readers of a run directory: its metrics, its history, and the curves that TensorBoard shows."""

import json
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

Metrics = dict[int, dict[str, Any]]
"""Lines of metrics.jsonl by step."""
TIMES_AND_MEMORY = ("throughput/", "memory/", "data/", "time/")


def metrics(run_dir: Path) -> Metrics:
    """Return the training lines of metrics.jsonl by step; fail if a step has two. Empty if there is no such file."""
    return _lines(run_dir, having="loss/total")


def validations(run_dir: Path) -> Metrics:
    """Return the validation lines of metrics.jsonl by step; fail if a step has two."""
    return _lines(run_dir, having="val/loss_head_1")


def _lines(run_dir: Path, *, having: str) -> Metrics:
    path = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    lines = [line for line in lines if having in line]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line for line in lines}


def without_times(values_by_tag: dict[str, Any]) -> dict[str, Any]:
    """Return the values that must not depend on interruptions: all except times and memory."""
    return {tag: value for tag, value in values_by_tag.items() if not tag.startswith(TIMES_AND_MEMORY)}


def history(run_dir: Path) -> list[dict[str, Any]]:
    """Return the events of history.jsonl without their times."""
    events = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    assert all(event.pop("time") for event in events)
    return events


def event_files(run_dir: Path) -> EventAccumulator:
    """Return a run's TensorBoard files as TensorBoard's server reads them."""
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0}).Reload()


def curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the steps and values of each scalar that TensorBoard shows, by tag."""
    files = event_files(run_dir)
    scalars = files.PluginTagToContent("scalars")
    return {
        tag: [(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in files.Tensors(tag)] for tag in scalars
    }
