"""The sinks of a run's scalars: the console, TensorBoard, metrics.jsonl and, on request, Weights & Biases.

All of them show the same scalars under the same tags (docs/monitoring.md). A sink that cannot write logs a warning; it
never ends the run.
"""

import json
import math
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from common.files import PatientFile, write_text
from pipeline.config.schema import Config
from pipeline.monitoring import dashboard
from pipeline.monitoring.console import console_line
from pipeline.runtime.logs import logger
from pipeline.runtime.metrics_lines import METRICS, metrics_lines
from pipeline.runtime.world import World

Scalars = dict[str, float]
HISTOGRAM_BINS = 60  # TensorBoard itself draws 30


class Sink:
    """A destination for scalars and, if it can show them, texts and histograms."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Record the scalars of one optimizer step."""

    def write_text(self, step: int, tag: str, markdown: str) -> None:
        """Record a text."""

    def write_histogram(self, step: int, tag: str, values: Tensor) -> None:
        """Record the distribution of values."""

    def close(self) -> None:
        """Flush, and release resources."""


class TensorBoard(Sink):
    """Event files for TensorBoard; after a resume, points beyond the resumed step are dropped.

    Each write is flushed at once. A kill right after a checkpoint then loses no points of the steps before it, which
    the next start does not repeat.
    """

    def __init__(self, config: Config, *, resumed_step: int) -> None:
        self._config, self._directory = config, config.run_dir / "tensorboard"
        self._last_step = resumed_step
        self._first_step: int | None = resumed_step + 1  # None once the first writer is open
        self._writer: Any = None
        self._attempt(resumed_step, lambda: None)

    def write(self, step: int, scalars: Scalars) -> None:
        self._last_step = step
        self._attempt(step, lambda: [self._writer.add_scalar(tag, value, step) for tag, value in scalars.items()])

    def write_text(self, step: int, tag: str, markdown: str) -> None:
        self._attempt(step, lambda: self._writer.add_text(tag, markdown, step))

    def write_histogram(self, step: int, tag: str, values: Tensor) -> None:
        if values.isfinite().all():  # other values fit into no bin
            self._attempt(step, lambda: self._writer.add_histogram(tag, values, step, bins=HISTOGRAM_BINS))

    def close(self) -> None:
        if self._writer is not None:
            with suppress(OSError):
                if self._last_step == self._config.total_steps:
                    self._writer.file_writer.add_summary(dashboard.end_of_session())
                self._writer.close()

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _await_next_second(self._directory)
        self._writer = SummaryWriter(str(self._directory), purge_step=self._first_step)
        if self._first_step is not None:
            self._begin(self._first_step)
            self._first_step = None

    def _begin(self, first_step: int) -> None:
        """Write what the dashboard shows besides curves."""
        self._writer.add_custom_scalars(dashboard.layout(self._config.log))
        for summary in dashboard.hyperparameters(self._config):
            self._writer.file_writer.add_summary(summary)
        # At the first step that it is valid for: a later start that repeats this step then replaces it.
        self._writer.add_text("config", dashboard.config_text(self._config), first_step)

    def _attempt(self, step: int, action: Callable[[], object]) -> None:
        try:
            if self._writer is None:
                self._open()
            action()
            self._writer.flush()
        except OSError as error:  # the writer has lost its buffer and cannot be used again
            logger.warning("could not write step %d to TensorBoard (%s)", step, error)
            self._writer = None


class MetricsFile(Sink):
    """metrics.jsonl: one object per report; after a resume, lines beyond the resumed step are dropped."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        write_text(path, "".join(line for line, values in metrics_lines(path) if values["step"] <= resumed_step))
        self._file = PatientFile(path)

    def write(self, step: int, scalars: Scalars) -> None:
        tokens = {"tokens": int(scalars["progress/tokens"])} if "progress/tokens" in scalars else {}
        finite = {tag: value if math.isfinite(value) else None for tag, value in scalars.items()}  # JSON has no NaN
        refused = self._file.write(json.dumps({"step": step, **tokens, **finite}) + "\n")
        if refused is not None:
            logger.warning(
                "could not write step %d to metrics.jsonl yet (%s); the next report tries again", step, refused.strerror
            )

    def close(self) -> None:
        self._file.close()


class Console(Sink):
    """One line per report; above a progress bar if stdout is a terminal."""

    def __init__(self, *, total_steps: int, resumed_step: int) -> None:
        self._total_steps = total_steps
        self._bar = tqdm(
            total=total_steps, initial=resumed_step, unit="step", file=sys.stdout, disable=None, leave=False
        )
        self._start_s, self._start_step = time.perf_counter(), resumed_step

    def write(self, step: int, scalars: Scalars) -> None:
        self._bar.update(step - self._bar.n)
        line = console_line(scalars)
        if line:
            logger.info("step %*d/%d  %s%s", self._width, step, self._total_steps, line, self._eta(step, scalars))

    def close(self) -> None:
        self._bar.close()

    @property
    def _width(self) -> int:
        return len(str(self._total_steps))

    def _eta(self, step: int, scalars: Scalars) -> str:
        if "loss/total" not in scalars:
            return ""
        per_step_s = (time.perf_counter() - self._start_s) / max(1, step - self._start_step)
        return f"  ETA {timedelta(seconds=round(per_step_s * (self._total_steps - step)))}"


class WeightsAndBiases(Sink):
    """A run in Weights & Biases, which continues after a resume.

    wandb never takes back a step: the first values of steps that a resume or a rollback repeats stay. Its own variables
    (WANDB_MODE, WANDB_BASE_URL) say whether and where it uploads.
    """

    def __init__(self, config: Config) -> None:
        self._run: Any = None
        self._attempt(lambda: self._begin(config))

    def write(self, step: int, scalars: Scalars) -> None:
        self._attempt(lambda: self._run.log(scalars, step=step))

    def close(self) -> None:
        self._attempt(lambda: self._run.finish())

    def _begin(self, config: Config) -> None:
        import wandb

        id_file = config.run_dir / "wandb_id"
        if not id_file.exists():
            write_text(id_file, uuid.uuid4().hex)
        self._run = wandb.init(
            project=config.log.wandb, name=config.run.name, id=id_file.read_text(encoding="utf-8"), resume="allow",
            dir=str(config.run_dir), config=config.as_dict(),
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )  # fmt: skip

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # wandb may raise anything, and training does not depend on it
            logger.warning("wandb failed and gets nothing more until the run is started again (%s)", error)
            self._attempt = lambda action: None  # type: ignore[method-assign]


def sinks_for(config: Config, *, world: World, resumed_step: int) -> list[Sink]:
    """Return the sinks of this rank: all of them on rank 0, none elsewhere."""
    if not world.is_main:
        return []
    return [
        Console(total_steps=config.total_steps, resumed_step=resumed_step),
        TensorBoard(config, resumed_step=resumed_step),
        MetricsFile(config.run_dir / METRICS, resumed_step=resumed_step),
        *([WeightsAndBiases(config)] if config.log.wandb else []),
    ]


def has_validation(run_dir: Path, *, step: int) -> bool:
    """Return whether metrics.jsonl contains the validation after this step."""
    return any(values["step"] == step and "val/loss_head_1" in values for _, values in metrics_lines(run_dir / METRICS))


def _await_next_second(directory: Path) -> None:
    """Wait until a new event file would be read after the existing ones.

    TensorBoard reads them in the order of their names: creation time in seconds, host, process, and a number that is
    compared as text, so that 10 comes before 9.
    """
    newest_s = max((int(path.name.split(".")[3]) for path in directory.glob("events.out.tfevents.*")), default=0)
    time.sleep(min(1.0, max(0.0, newest_s + 1 - time.time())))
