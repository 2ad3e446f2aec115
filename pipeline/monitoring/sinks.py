"""Where a run's figures go: console, TensorBoard, metrics.jsonl, and Weights & Biases where it is asked for.

All of them show the same scalars under the same tags (docs/monitoring.md). A sink that cannot write says so, and goes
on: no run ends because nobody can see it.
"""

import json
import math
import sys
import time
import uuid
from collections.abc import Callable, Iterator
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
from pipeline.runtime.world import World, logger

Scalars = dict[str, float]
METRICS = "metrics.jsonl"
HISTOGRAM_BINS = 60  # TensorBoard draws 30


class Sink:
    """A place that scalars, and texts where it can show them, go to."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Record scalars of one optimizer step."""

    def write_text(self, step: int, tag: str, markdown: str) -> None:
        """Record a text."""

    def write_histogram(self, step: int, tag: str, values: Tensor) -> None:
        """Record how values are distributed."""

    def close(self) -> None:
        """Flush and release."""


class TensorBoard(Sink):
    """Event files; after a resume, points beyond the resumed step are dropped.

    All that was written is in the file before the next thing happens, so that a kill right after a checkpoint loses no
    point of the steps before it, which do not come again.
    """

    def __init__(self, config: Config, *, resumed_step: int) -> None:
        self._config, self._directory = config, config.run_dir / "tensorboard"
        self._last_step = resumed_step
        self._first_step: int | None = resumed_step + 1  # until it is begun
        self._writer: Any = None
        self._attempt(resumed_step, lambda: None)

    def write(self, step: int, scalars: Scalars) -> None:
        self._last_step = step
        self._attempt(step, lambda: [self._writer.add_scalar(tag, value, step) for tag, value in scalars.items()])

    def write_text(self, step: int, tag: str, markdown: str) -> None:
        self._attempt(step, lambda: self._writer.add_text(tag, markdown, step))

    def write_histogram(self, step: int, tag: str, values: Tensor) -> None:
        if values.isfinite().all():  # no bin takes others
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
        """Write what the dashboard has besides figures."""
        self._writer.add_custom_scalars(dashboard.layout(self._config.log))
        for summary in dashboard.hyperparameters(self._config):
            self._writer.file_writer.add_summary(summary)
        # at the first step that it holds for, so that a start which comes again drops it
        self._writer.add_text("config", dashboard.config_text(self._config), first_step)

    def _attempt(self, step: int, action: Callable[[], object]) -> None:
        try:
            if self._writer is None:
                self._open()
            action()
            self._writer.flush()
        except OSError as error:  # the writer has lost what was on its way, and is of no more use
            logger.warning("TensorBoard misses what came at step %d (%s)", step, error)
            self._writer = None


class MetricsFile(Sink):
    """metrics.jsonl: one object per step; after a resume, lines beyond the resumed step are dropped."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        write_text(path, "".join(line for line, said in _whole_lines(path) if said["step"] <= resumed_step))
        self._file = PatientFile(path)

    def write(self, step: int, scalars: Scalars) -> None:
        tokens = {"tokens": int(scalars["progress/tokens"])} if "progress/tokens" in scalars else {}
        finite = {tag: value if math.isfinite(value) else None for tag, value in scalars.items()}  # JSON knows no NaN
        refused = self._file.write(json.dumps({"step": step, **tokens, **finite}) + "\n")
        if refused is not None:
            logger.warning("step %d waits to be written to metrics.jsonl (%s)", step, refused.strerror)

    def close(self) -> None:
        self._file.close()


class Console(Sink):
    """One tidy line per logged step, above a progress bar where stdout is a terminal."""

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
    """A run of wandb's, the same one after a resume.

    It never takes back a step: what it has of those that come again after a resume or a rollback stays as it was. What
    it uploads, and where, is for its own variables to say (WANDB_MODE, WANDB_BASE_URL).
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
        except Exception as error:  # whatever it raises, training does not depend on it
            logger.warning("wandb gets no more of this run until it is started again (%s)", error)
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
    """Return whether metrics.jsonl has the validation after a step."""
    return any(said["step"] == step and "val/loss_head_1" in said for _, said in _whole_lines(run_dir / METRICS))


def _await_next_second(directory: Path) -> None:
    """Wait until an event file that is made now is read after those that are there.

    They are read in the order of their names: the second, then host, process and number, where 10 comes before 9.
    """
    newest_s = max((int(path.name.split(".")[3]) for path in directory.glob("events.out.tfevents.*")), default=0)
    time.sleep(min(1.0, max(0.0, newest_s + 1 - time.time())))


def _whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the lines of a metrics.jsonl, and what they say; what a kill cut, or a disk lost, says nothing."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines(keepends=True):
        with suppress(ValueError):
            said = json.loads(line)
            if line.endswith("\n") and isinstance(said, dict) and isinstance(said.get("step"), int):
                yield line, said
