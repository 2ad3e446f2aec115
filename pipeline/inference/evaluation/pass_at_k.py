"""pass@k: how likely one of k samples solves a problem, estimated from n >= k samples of it (Chen et al. 2021).

The estimate is unbiased: of all ways to choose k of the n samples, the share that holds one of the c that passed,
1 - C(n - c, k) / C(n, k). Which temperature serves best depends on k, and the paper reports the best for each (its
temperature oracle, table S12).
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

Scores = Mapping[float, Mapping[int, float]]
"""pass@k by temperature and k."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The highest pass@k of several temperatures, and the lowest temperature that has it."""

    pass_at_k: float
    temperature: float


def pass_at_k(*, n_samples: int, n_passed: int, k: int) -> float:
    """Return the estimate for one problem.

    Raises:
        ValueError: k is not 1 to n_samples, or n_passed not 0 to n_samples.
    """
    if not (1 <= k <= n_samples and 0 <= n_passed <= n_samples):
        raise ValueError(f"pass@{k} cannot be estimated from {n_passed} of {n_samples} samples")
    # C(n - c, k) / C(n, k) with one factor per passed sample: nothing overflows, and n = k, if among them, makes it 0
    n_failed = n_samples - n_passed
    return 1.0 - math.prod(1.0 - k / n for n in range(n_failed + 1, n_samples + 1))


def scores(n_passed: Mapping[float, Collection[int]], *, n_samples: int, ks: Iterable[int]) -> Scores:
    """Return the means over the problems.

    Args:
        n_passed: by temperature, how many samples of each problem passed.
        n_samples: of each problem at each temperature.
        ks: the k of pass@k.
    """
    ks = list(ks)
    return {
        temperature: {
            k: math.fsum(pass_at_k(n_samples=n_samples, n_passed=n, k=k) for n in counts) / len(counts) for k in ks
        }
        for temperature, counts in n_passed.items()
    }


def best(scores: Scores) -> dict[int, Best]:
    """Return, for each k, what a temperature oracle would choose."""
    return {
        k: max(
            (Best(pass_at_k=scores[temperature][k], temperature=temperature) for temperature in sorted(scores)),
            key=lambda candidate: candidate.pass_at_k,
        )
        for k in next(iter(scores.values()))
    }


def table(scores: Scores) -> str:
    """Return pass@k in percent as text: a row per temperature and one for the best, a column per k."""
    rows = {f"temperature {temperature:g}": list(by_k.values()) for temperature, by_k in scores.items()}
    rows["best"] = [choice.pass_at_k for choice in best(scores).values()]
    width = max(map(len, rows))
    header = " " * width + "".join(f"{f'pass@{k}':>10}" for k in best(scores))
    lines = [f"{name:<{width}}" + "".join(f"{100 * value:>10.1f}" for value in row) for name, row in rows.items()]
    return "\n".join([header, *lines])
