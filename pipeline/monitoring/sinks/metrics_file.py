"""metrics.jsonl: one JSON object per report; after a resume, lines beyond the resumed step are dropped."""

import json
import math
from pathlib import Path

from common.files import written_whole
from common.small_files import BadFileError
from pipeline.monitoring.sinks.sink import FileSink, Scalars
from pipeline.runtime.metrics_lines import METRICS, metrics_lines


class MetricsFile(FileSink):
    """A run's metrics.jsonl, continued after `resumed_step`."""

    def __init__(self, run_dir: Path, *, resumed_step: int) -> None:
        super().__init__(METRICS, lambda: _cut(run_dir / METRICS, step=resumed_step))
        self.append(resumed_step, b"")

    def write(self, step: int, scalars: Scalars) -> None:
        tokens = {"tokens": int(scalars["progress/tokens"])} if "progress/tokens" in scalars else {}
        finite = {tag: value if math.isfinite(value) else None for tag, value in scalars.items()}  # JSON has no NaN
        self.append(step, json.dumps({"step": step, **tokens, **finite}).encode() + b"\n")


def has_validation(run_dir: Path, *, step: int) -> bool:
    """Return whether metrics.jsonl contains the validation after this step; False if it cannot be read."""
    try:
        return any(
            values["step"] == step and "val/loss_head_1" in values for _, values in metrics_lines(run_dir / METRICS)
        )
    except BadFileError:
        return False


def _cut(path: Path, *, step: int) -> Path:
    """Drop the lines of later steps, and those that are damaged; return the path."""
    with written_whole(path) as partial, partial.open("wb") as file:
        file.writelines(line for line, values in metrics_lines(path) if values["step"] <= step)
    return path
