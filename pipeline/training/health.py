"""Numbers going bad: steps that were skipped because a number was not finite, and losses that jump.

A jump is what large runs have met in earnest, and answered by going back to a checkpoint some 100 steps before it and
leaving 200 to 500 batches out (PaLM, arXiv 2204.02311, §5.1: the batches are harmless in themselves; it takes them and
the weights of that moment). Steps by the standard deviations of the last 128 losses, none being judged before half of
them are there, are OLMo-core's way (its optimizer skips what lies 6 above the mean). Two things differ here. The centre
is the median and the spread comes from the median distance to it, since one jump inside the window would widen a
standard deviation so far that the next one hides behind it. And the spread has a floor.

Nothing here knows of ranks. Every rank is to call it with the same numbers, the means over all of them, and so reaches
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

DEVIATIONS_PER_MAD = 1.4826  # median distance to the median -> standard deviation, for normal noise
SPREAD_FLOOR = 0.01  # of the loss; with 10 deviations, no rise of less than a tenth is a jump


class Verdict(Enum):
    """What became of a step. After TOO_MANY_SKIPPED the run should end, and after SPIKE go back."""

    GOOD = "good"
    SKIPPED = "skipped"
    TOO_MANY_SKIPPED = "too many skipped"
    SPIKE = "spike"


def is_spike(loss: float, *, losses: Sequence[float], deviations: float) -> bool:
    """Return whether `loss` lies more than `deviations` robust standard deviations above the median of `losses`.

    A loss that has been flat for long has hardly any spread: the next batch of a slightly different kind would be a
    jump. So the spread is at least `SPREAD_FLOOR` of the median, and of 1 nat where the loss is below that (a small
    model that has learnt its corpus by heart). A falling loss widens the spread and lies below the median: it is never
    a jump. Nor is a rise that takes longer than the window, which moves the median along; validation shows that.

    Args:
        loss: of the step to judge, in nats; finite.
        losses: of the steps before it, in any order; finite, at least one.
        deviations: how many are too many.
    """
    centre = median(losses)
    spread = DEVIATIONS_PER_MAD * median(abs(other - centre) for other in losses)
    return loss > centre + deviations * max(spread, SPREAD_FLOOR * max(1.0, centre))


class Health:
    """Judges each step by the ones before it; `state_dict` lets a resumed run go on as if it had not stopped.

    `skipped` counts the skipped steps of the whole run, `skipped_in_a_row` those since the last good one.
    """

    def __init__(self, faults: FaultsConfig) -> None:
        self._faults = faults
        self._losses: deque[float] = deque(maxlen=faults.spike_window)
        self.skipped = self.skipped_in_a_row = 0

    def observe(self, *, loss: float, gradient_norm: float) -> Verdict:
        """Judge the step that has just been made, and remember it.

        A step whose loss or gradient norm is not finite counts as skipped, and its loss is forgotten. The loss of a
        spike is remembered: where nobody goes back, a new level becomes the usual one within half a window.

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
        """Return the counts and the window's losses: plain, finite values, a few KiB as JSON, which loses nothing."""
        return {
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "losses": list(self._losses),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`; of a longer window's losses, the newest stay."""
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self._losses = deque(state["losses"], maxlen=self._faults.spike_window)


def record_bad_step(
    path: Path, *, step: int, loss: float, gradient_norm: float, verdict: Verdict, samples: Sequence[Any]
) -> None:
    """Append one line of JSON about a step to `path` (bad_steps.jsonl), and flush it to disk; for rank 0 alone.

    It tells what happened, in that order: a step that a run meets again after going back has a line each time. JSON has
    no NaN and no infinity; they stand as "nan", "inf" and "-inf", which `float` reads. `samples` are plain values that
    tell which ones the step had, of all ranks.

    Raises:
        OSError: the file cannot be written.
    """
    numbers = {"loss": loss, "gradient_norm": gradient_norm}
    plain = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
    line = json.dumps({"step": step, **plain, "verdict": verdict.value, "samples": list(samples)}, allow_nan=False)
    append_line(path, line)
