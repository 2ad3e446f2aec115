"""Sums up a run: its state, losses, speed and cost. Pure functions of what `run_folder` has read."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np

from pipeline.monitoring.reporting.run_folder import RunFolder, Series
from pipeline.runtime.stop import ExitCode

FINAL_POINTS = 10  # a final loss is the mean of this many logged losses, because a single step's is noisy

State = Literal["finished", "stopped", "failed", "open", "unknown"]
_STATES: dict[int, tuple[State, str]] = {
    ExitCode.FINISHED: ("finished", "finished"),
    ExitCode.STOPPED: ("stopped", "stopped on request; the same command continues it"),
    ExitCode.BAD_NUMBERS: ("failed", "failed: the numbers or the data went bad"),
    ExitCode.FAILED_SAVE: ("failed", "failed: a checkpoint could not be written"),
}


@dataclass(frozen=True, kw_only=True)
class LaunchRecord:
    """One start of a run."""

    time: datetime
    step: int  # that it started from
    ranks: int
    device: str
    until: datetime  # when it ended or, if it was killed, when it was last known to be alive
    exit_code: int | None  # None if it was killed or is still running

    @property
    def rank_hours(self) -> float:
        """Hours from the start to `until`, times the number of ranks."""
        return (self.until - self.time) / timedelta(hours=1) * self.ranks


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A run in figures; None stands for values that its folder does not contain."""

    state: State
    standing: str  # the state in words
    last_step: int
    total_steps: int | None
    tokens: int | None  # trained on; repeated steps count once
    n_heads: int
    train_loss: float | None  # mean of head 1 over the last `FINAL_POINTS` logged points
    validation: list[float]  # each head's last validation loss
    tokens_per_s: float | None
    mfu: float | None
    peak_memory_gib: float | None
    left_s: float | None  # seconds to the last step at the median throughput, without validation and checkpoints
    launches: list[LaunchRecord] | None
    n_rollbacks: int
    skipped_steps: int


def summarize(run: RunFolder) -> Summary:
    """Return the summary of a run."""
    launches = launches_of(run) if run.history else None
    state, standing = _standing(run, launches)
    tokens_per_s = median_of(run.series.get("throughput/tokens_per_s"))
    tokens = run.last_step * run.tokens_per_step if run.tokens_per_step else None
    left_s = None
    if run.total_steps is not None and run.tokens_per_step and tokens_per_s:
        left_s = max(0, run.total_steps - run.last_step) * run.tokens_per_step / tokens_per_s
    skipped = run.series.get("faults/skipped_steps")
    memory = finite(run.series.get("memory/peak_GiB"))
    validation = [finite(run.series[tag]) for tag in run.validation_tags]
    return Summary(
        state=state,
        standing=standing,
        last_step=run.last_step,
        total_steps=run.total_steps,
        tokens=tokens,
        n_heads=len(run.head_tags),
        train_loss=loss_before(run, step=run.last_step),
        validation=[float(values[-1]) if len(values) else float("nan") for values in validation],
        tokens_per_s=tokens_per_s,
        mfu=median_of(run.series.get("throughput/mfu")),
        peak_memory_gib=float(memory.max()) if len(memory) else None,
        left_s=left_s,
        launches=launches,
        n_rollbacks=sum(event.get("event") == "rollback" for event in run.history),
        skipped_steps=int(finite(skipped)[-1]) if len(finite(skipped)) else 0,
    )


def loss_before(run: RunFolder, *, step: int) -> float | None:
    """Return the mean of head 1's finite losses among the last `FINAL_POINTS` points up to a step."""
    series = run.series.get("loss/head_1")
    if series is None:
        return None
    values = series.values[series.steps <= step][-FINAL_POINTS:]
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def launches_of(run: RunFolder) -> list[LaunchRecord]:
    """Return the launches in the history. A killed one counts as alive until its last line in the log."""
    starts = [(i, event) for i, event in enumerate(run.history) if event.get("event") == "launch"]
    launches = []
    for (i, event), (after, following) in zip(starts, [*starts, (len(run.history), None)][1:], strict=True):
        end = next((e for e in run.history[i:after] if e.get("event") == "end"), None)
        limit = following["time"] if following else datetime.max
        signs = [time for time in run.signs_of_life if event["time"] <= time < limit]
        launches.append(
            LaunchRecord(
                time=event["time"],
                step=_whole(event.get("step")),
                ranks=_whole(event.get("ranks"), default=1),
                device=str(event.get("device", "")),
                until=end["time"] if end else max(signs, default=event["time"]),
                exit_code=_whole(end.get("exit_code"), default=1) if end else None,
            )
        )
    return launches


def finite(series: Series | None) -> np.ndarray:
    """Return the finite values of a series in order; an empty array if there is no series."""
    return np.empty(0) if series is None else series.values[np.isfinite(series.values)]


def median_of(series: Series | None) -> float | None:
    """Return the median of the finite values, or None if there are none."""
    values = finite(series)
    return float(np.median(values)) if len(values) else None


def _standing(run: RunFolder, launches: list[LaunchRecord] | None) -> tuple[State, str]:
    if launches:
        code = launches[-1].exit_code
        if code is None:
            seen = launches[-1].until.isoformat(sep=" ", timespec="minutes")
            return "open", f"running or killed; no end is recorded, last seen {seen}"
        return _STATES.get(code, ("failed", f"failed: exit code {code}"))
    if run.total_steps is not None and run.last_step >= run.total_steps:
        return "finished", "finished"
    return "unknown", "unfinished; no end is recorded"


def _whole(value: Any, *, default: int = 0) -> int:
    return value if isinstance(value, int) else default
