"""The cost of failures: the best interval between checkpoints, the expected goodput, and a simulation that checks both.

A run saves a checkpoint after every `interval_s` of training, which stops for `stall_s`. The checkpoint is complete
`lag_s` later (asynchronous saves; 0 if training waits for the whole save). A failure sets the run back to its last
complete checkpoint, and `restart_s` pass before it trains again. Failures are independent: the times between them are
exponentially distributed.

Formulas: J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation
Computer Systems 22 (2006), whose first term is J. W. Young's (Communications of the ACM 17, 1974).
"""

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FailureModel:
    """Failure rate and saves of a run; the module's docstring explains the fields."""

    mtbf_s: float  # mean time between failures of the whole run
    stall_s: float
    restart_s: float
    lag_s: float = 0.0


def best_interval_s(run: FailureModel) -> float:
    """Return the seconds of training between checkpoints that lose the least time (Daly's equation 37)."""
    stall, mtbf = run.stall_s, run.mtbf_s
    if stall >= 2 * mtbf:
        return mtbf
    ratio = stall / (2 * mtbf)
    return math.sqrt(2 * stall * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def expected_goodput(run: FailureModel, *, interval_s: float) -> float:
    """Return the share of the wall time that is training which no failure undid (Daly's equation 20).

    The lag of a save counts like a longer restart: a failure also undoes the training since that save began.
    """
    try:
        restart = math.exp((run.restart_s + run.lag_s) / run.mtbf_s)
        wasted = math.expm1((interval_s + run.stall_s) / run.mtbf_s)
        return interval_s / (run.mtbf_s * restart * wasted)
    except OverflowError:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a simulation."""

    goodput: float  # share of the time that was training which no failure undid
    failures: int


def simulate(run: FailureModel, *, interval_s: float, wall_s: float, seed: int) -> Outcome:
    """Simulate `wall_s` seconds of a run, failure by failure."""
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
    """Return the seconds of training within a span between failures that are kept after it."""
    period = interval_s + run.stall_s
    if not failed:
        periods, rest = divmod(span_s, period)
        return periods * interval_s + min(rest, interval_s)
    whole = int((span_s - run.lag_s) // period)  # checkpoints that were complete before the failure
    return max(0, whole) * interval_s


def _restarted(run: FailureModel, failed_at: float, *, draw: random.Random) -> float:
    """Return the time at which training continues; a failure during a restart makes it start over."""
    now = failed_at
    while (until_next := draw.expovariate(1 / run.mtbf_s)) < run.restart_s:
        now += until_next
    return now + run.restart_s
