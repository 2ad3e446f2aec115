"""The estimator, compared with exact integers and with every possible choice of completions."""

import itertools
from fractions import Fraction
from math import comb

import pytest

from pipeline.inference.evaluation.pass_at_k import Best, best, pass_at_k, scores, table


def exact(n: int, c: int, k: int) -> Fraction:
    return 1 - Fraction(comb(n - c, k), comb(n, k))


@pytest.mark.parametrize("n", range(1, 13))
def test_it_is_the_combinatorial_formula(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        assert pass_at_k(n_samples=n, n_passed=c, k=k) == pytest.approx(float(exact(n, c, k)), abs=1e-14)


@pytest.mark.parametrize("n", [200, 1000])
def test_it_stays_exact_where_binomials_are_huge(n: int) -> None:
    for c, k in itertools.product((0, 1, 2, 7, 50, 101, n - 1, n), (1, 10, 100, n)):
        assert pass_at_k(n_samples=n, n_passed=c, k=k) == pytest.approx(float(exact(n, c, k)), abs=1e-12)


def test_it_is_the_share_of_choices_with_a_passed_completion() -> None:
    passed = [True, False, False, True, False, False, False]
    choices = [any(choice) for choice in itertools.combinations(passed, 3)]
    assert pass_at_k(n_samples=7, n_passed=2, k=3) == pytest.approx(sum(choices) / len(choices))


@pytest.mark.parametrize(("n", "c", "k"), [(10, 5, 11), (10, 5, 0), (10, 11, 1), (10, -1, 1)])
def test_impossible_estimates_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} cannot be estimated from {c} of {n} completions"):
        pass_at_k(n_samples=n, n_passed=c, k=k)


def test_scores_are_means_over_problems_and_the_best_temperature_depends_on_k() -> None:
    by_temperature = scores({0.8: [1, 1], 0.1: [4, 0]}, n_samples=4, ks=[1, 4])
    assert by_temperature == {0.8: {1: pytest.approx(0.25), 4: 1.0}, 0.1: {1: 0.5, 4: 0.5}}
    assert best(by_temperature) == {
        1: Best(pass_at_k=0.5, temperature=0.1),
        4: Best(pass_at_k=1.0, temperature=0.8),
    }


def test_of_equal_temperatures_the_lowest_is_best() -> None:
    assert best({0.8: {1: 0.5}, 0.2: {1: 0.5}, 0.1: {1: 0.4}})[1].temperature == 0.2


def test_table() -> None:
    assert table({0.1: {1: 0.3, 10: 0.401}, 0.8: {1: 0.1, 10: 1.0}}).splitlines() == [
        "                   pass@1   pass@10",
        "temperature 0.1      30.0      40.1",
        "temperature 0.8      10.0     100.0",
        "best                 30.0     100.0",
    ]
