"""The best checkpoint interval and the goodput: formulas compared with a search, a limit and a simulation."""

from dataclasses import replace
from statistics import mean

import pytest

from pipeline.planning.failures import FailureModel, best_interval_s, expected_goodput, simulate

RUN = FailureModel(mtbf_s=6 * 3600, stall_s=60, restart_s=600)


@pytest.mark.parametrize("stall_s", [1, 60, 600])
@pytest.mark.parametrize("mtbf_s", [3600, 86_400, 30 * 86_400])
def test_no_other_interval_is_noticeably_better(stall_s: float, mtbf_s: float) -> None:
    run = replace(RUN, stall_s=stall_s, mtbf_s=mtbf_s)
    best = expected_goodput(run, interval_s=best_interval_s(run))
    searched = max(expected_goodput(run, interval_s=10 * 1.02**power) for power in range(700))
    assert best == pytest.approx(searched, rel=1e-3)


def test_without_failures_only_the_stalls_are_lost() -> None:
    run = replace(RUN, mtbf_s=1e12)
    assert expected_goodput(run, interval_s=540) == pytest.approx(0.9, rel=1e-6)
    assert simulate(run, interval_s=540, wall_s=6e6, seed=1).goodput == pytest.approx(0.9, rel=1e-6)


@pytest.mark.parametrize(("interval_s", "lag_s"), [(600, 0), (1800, 0), (1800, 300), (7200, 0)])
def test_a_simulation_agrees_with_the_formula(interval_s: float, lag_s: float) -> None:
    run = replace(RUN, lag_s=lag_s)
    years = [simulate(run, interval_s=interval_s, wall_s=365 * 86_400, seed=seed) for seed in range(5)]
    expected = expected_goodput(run, interval_s=interval_s)
    assert mean(year.goodput for year in years) == pytest.approx(expected, abs=0.01)
    assert mean(year.failures for year in years) == pytest.approx(365 * 86_400 / (6 * 3600 + 600), rel=0.05)


def test_the_same_seed_gives_the_same_simulation() -> None:
    months = [simulate(RUN, interval_s=1800, wall_s=30 * 86_400, seed=seed) for seed in (1, 1, 2)]
    assert months[0] == months[1] != months[2]
