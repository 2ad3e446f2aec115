"""pass@k: the probability that one of k completions solves a problem, estimated from n >= k of them (Chen et al. 2021).

The unbiased estimate is the share of all choices of k of the n completions that contain one of the c that passed,
1 - C(n - c, k) / C(n, k). The best temperature depends on k, and the paper reports the best one for each k (its
temperature oracle, table S12).
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

Scores = Mapping[float, Mapping[int, float]]
"""pass@k by temperature and k."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The highest pass@k over all temperatures, and the lowest temperature that reaches it."""

    pass_at_k: float
    temperature: float


def pass_at_k(*, n_samples: int, n_passed: int, k: int) -> float:
    """Return the estimate of pass@k for one problem.

    Raises:
        ValueError: k is not 1 to n_samples, or n_passed not 0 to n_samples.
    """
    if not (1 <= k <= n_samples and 0 <= n_passed <= n_samples):
        raise ValueError(f"pass@{k} cannot be estimated from {n_passed} of {n_samples} completions")
    # C(n - c, k) / C(n, k), one factor per passed completion; it cannot overflow, and a factor with n = k makes it 0
    n_failed = n_samples - n_passed
    return 1.0 - math.prod(1.0 - k / n for n in range(n_failed + 1, n_samples + 1))


def scores(n_passed: Mapping[float, Collection[int]], *, n_samples: int, ks: Iterable[int]) -> Scores:
    """Return pass@k by temperature and k, averaged over the problems.

    Args:
        n_passed: by temperature, the number of passed completions of each problem.
        n_samples: completions of each problem at each temperature.
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
    """Return the choice of a temperature oracle for each k."""
    return {
        k: max(
            (Best(pass_at_k=scores[temperature][k], temperature=temperature) for temperature in sorted(scores)),
            key=lambda candidate: candidate.pass_at_k,
        )
        for k in next(iter(scores.values()))
    }


def table(scores: Scores) -> str:
    """Return a table of pass@k in percent: a row per temperature and one for the best, a column per k."""
    rows = {f"temperature {temperature:g}": list(by_k.values()) for temperature, by_k in scores.items()}
    rows["best"] = [choice.pass_at_k for choice in best(scores).values()]
    width = max(map(len, rows))
    header = " " * width + "".join(f"{f'pass@{k}':>10}" for k in best(scores))
    lines = [f"{name:<{width}}" + "".join(f"{100 * value:>10.1f}" for value in row) for name, row in rows.items()]
    return "\n".join([header, *lines])
