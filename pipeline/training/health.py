"""Finds bad steps: steps that were skipped because a number was not finite, and steps whose loss jumps.

Large runs have met such jumps. PaLM (arXiv 2204.02311, §5.1) went back to a checkpoint about 100 steps before the jump,
and left out 200 to 500 batches. The batches are harmless by themselves; the jump needs them and the weights of that
moment.

A loss is judged by the losses of the last 128 steps, once half of them are known, as in OLMo-core, whose optimizer
skips steps with a loss 6 standard deviations above the mean. Two things differ here. The centre is the median, and the
spread comes from the median distance to it, because a single jump in the window would widen the standard deviation so
much that it hides the next one. And the spread has a floor.

This module knows nothing of ranks. Every rank calls it with the same numbers, the means over all ranks, and so comes to
the same verdict at the same step.
"""

import json
import math
from collections import deque
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Any

from common.files import append_line
from pipeline.config.schema import FaultsConfig

DEVIATIONS_PER_MAD = 1.4826  # standard deviation / median distance to the median, for normal noise
SPREAD_FLOOR = 0.01  # relative to the loss; with 10 deviations, a rise of less than a tenth is never a jump


class Verdict(Enum):
    """The verdict on a step. After TOO_MANY_SKIPPED the run should end, and after SPIKE it may roll back."""

    GOOD = "good"
    SKIPPED = "skipped"
    TOO_MANY_SKIPPED = "too many skipped"
    SPIKE = "spike"


def is_spike(loss: float, *, losses: Sequence[float], deviations: float) -> bool:
    """Return True if `loss` lies more than `deviations` robust standard deviations above the median of `losses`.

    A loss that has long been flat has hardly any spread, so any unusual batch would be a jump. Therefore the spread is
    at least `SPREAD_FLOOR` times the median, and times 1 nat if the median is lower (a small model that has memorised
    its corpus). A falling loss is never a jump, because it widens the spread and lies below the median. Neither is a
    rise that takes longer than the window, because the median rises too; validation shows such a rise.

    Args:
        loss: the step's loss in nats; finite.
        losses: losses of the steps before, in any order; finite, at least one.
        deviations: the threshold.
    """
    centre = median(losses)
    spread = DEVIATIONS_PER_MAD * median(abs(other - centre) for other in losses)
    return loss > centre + deviations * max(spread, SPREAD_FLOOR * max(1.0, centre))


class Health:
    """Judges each step by the steps before it. With `state_dict`, a resumed run judges as if it had not stopped."""

    def __init__(self, faults: FaultsConfig) -> None:
        self._faults = faults
        self._losses: deque[float] = deque(maxlen=faults.spike_window)
        self.skipped = 0
        """Number of skipped steps of the whole run."""
        self.skipped_in_a_row = 0
        """Number of skipped steps since the last good one."""

    def observe(self, *, loss: float, gradient_norm: float) -> Verdict:
        """Judge the latest step, and remember its loss.

        A step whose loss or gradient norm is not finite counts as skipped, and its loss is not remembered. The loss of
        a spike is remembered, so that a new level becomes normal within half a window if the run does not roll back.

        Args:
            loss: total loss of the step, in nats.
            gradient_norm: L2 norm of its gradient before clipping.
        """
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            self.skipped += 1
            self.skipped_in_a_row += 1
            too_many = self.skipped_in_a_row > self._faults.max_skipped_steps
            return Verdict.TOO_MANY_SKIPPED if too_many else Verdict.SKIPPED
        self.skipped_in_a_row = 0
        enough = len(self._losses) >= self._faults.spike_window // 2
        spike = enough and is_spike(loss, losses=self._losses, deviations=self._faults.spike_deviations)
        self._losses.append(loss)
        return Verdict.SPIKE if spike else Verdict.GOOD

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and the window's losses as plain, finite values: a few KiB of JSON, without loss."""
        return {
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "losses": list(self._losses),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`. If its window was longer, only the newest losses are kept."""
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self._losses = deque(state["losses"], maxlen=self._faults.spike_window)


def record_bad_step(
    path: Path, *, step: int, loss: float, gradient_norm: float, verdict: Verdict, samples: Sequence[Any]
) -> None:
    """Append a line of JSON about a bad step to `path` (bad_steps.jsonl) and flush it; only rank 0 may call it.

    The lines are in the order of events: a step that is repeated after a rollback may have several lines. JSON has no
    NaN or infinity, so these are written as "nan", "inf" and "-inf", which `float` reads. `samples` are the samples of
    the step on all ranks, as plain values.

    Raises:
        OSError: the file cannot be written.
    """
    numbers = {"loss": loss, "gradient_norm": gradient_norm}
    plain = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
    line = json.dumps({"step": step, **plain, "verdict": verdict.value, "samples": list(samples)}, allow_nan=False)
    append_line(path, line)
