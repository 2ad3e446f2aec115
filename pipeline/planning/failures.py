"""What failures cost: the interval between checkpoints that loses least, the goodput to expect, a simulation of both.

A run takes a checkpoint each `interval_s` of training and stands still `stall_s` for it; `lag_s` later it is whole
(asynchronous saves; 0 is a save that is waited for). A failure throws it back to the last whole checkpoint, and
`restart_s` pass before it trains again. Failures are independent of each other (exponential times between them).

Formulas: J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation
Computer Systems 22 (2006), whose first term is J. W. Young's (Communications of the ACM 17, 1974).
"""

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FailureModel:
    """A run that fails.

    mtbf_s: mean time between failures of the whole run.  stall_s, lag_s, restart_s: see above.
    """

    mtbf_s: float
    stall_s: float
    restart_s: float
    lag_s: float = 0.0


def best_interval_s(run: FailureModel) -> float:
    """Return the seconds of training between checkpoints that lose least (Daly's equation 37)."""
    stall, mtbf = run.stall_s, run.mtbf_s
    if stall >= 2 * mtbf:
        return mtbf
    ratio = stall / (2 * mtbf)
    return math.sqrt(2 * stall * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def expected_goodput(run: FailureModel, *, interval_s: float) -> float:
    """Return the part of the wall clock that is training which was not done again (Daly's equation 20).

    A save that lags is lost work as a longer restart would be: what was trained since it began is done again.
    """
    try:
        restart = math.exp((run.restart_s + run.lag_s) / run.mtbf_s)
        wasted = math.expm1((interval_s + run.stall_s) / run.mtbf_s)
        return interval_s / (run.mtbf_s * restart * wasted)
    except OverflowError:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a simulated time: the part that was training not done again, and how many failures there were."""

    goodput: float
    failures: int


def simulate(run: FailureModel, *, interval_s: float, wall_s: float, seed: int) -> Outcome:
    """Live through `wall_s` seconds, failure by failure."""
    draw = random.Random(seed)
    now = trained = 0.0
    failures = 0
    while now < wall_s:
        end = min(now + draw.expovariate(1 / run.mtbf_s), wall_s)
        failed = end < wall_s
        trained += _kept(run, span_s=end - now, interval_s=interval_s, failed=failed)
        failures += failed
        now = _restarted(run, end, draw=draw) if failed else end
    return Outcome(goodput=trained / wall_s, failures=failures)


def _kept(run: FailureModel, *, span_s: float, interval_s: float, failed: bool) -> float:
    """Return the training within a span that is not lost at its end."""
    period = interval_s + run.stall_s
    if not failed:
        periods, rest = divmod(span_s, period)
        return periods * interval_s + min(rest, interval_s)
    whole = int((span_s - run.lag_s) // period)  # checkpoints whose writing had time to end
    return max(0, whole) * interval_s


def _restarted(run: FailureModel, failed_at: float, *, draw: random.Random) -> float:
    """Return when training goes on; a failure during the restart begins it anew."""
    now = failed_at
    while (until_next := draw.expovariate(1 / run.mtbf_s)) < run.restart_s:
        now += until_next
    return now + run.restart_s
