"""Skipped steps and jumps of the loss: in thousands of synthetic runs, for jumps of known sizes, and across resumes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import median_abs_deviation

from pipeline.config.schema import FaultsConfig
from pipeline.training.health import Health, Verdict, is_spike, record_bad_step

NOISES = ("normal", "laplace", "student")


def health(*, window: int = 128, max_skipped_steps: int = 10) -> Health:
    return Health(FaultsConfig(max_skipped_steps=max_skipped_steps, spike_deviations=10.0, spike_window=window))


def verdicts(losses: list[float], *, judge: Health | None = None) -> list[Verdict]:
    judge = judge or health()
    return [judge.observe(loss=loss, gradient_norm=1.0) for loss in losses]


def spikes(losses: list[float]) -> list[int]:
    """Return the indices of the losses that are jumps."""
    return [index for index, verdict in enumerate(verdicts(losses)) if verdict is Verdict.SPIKE]


def noise(rng: np.random.Generator, *, kind: str, n_steps: int) -> np.ndarray:
    """Return noise of standard deviation 1; "student" has 5 degrees of freedom, so its tails are heavy."""
    if kind == "normal":
        return rng.standard_normal(n_steps)
    if kind == "laplace":
        return rng.laplace(size=n_steps) / math.sqrt(2)
    return rng.standard_t(5, n_steps) / math.sqrt(5 / 3)


def training_run(seed: int, *, kind: str, n_steps: int = 160) -> list[float]:
    """Return losses that decay by a power law, steeply or slowly, with noise of 0.1 % to 30 % of them."""
    rng = np.random.default_rng(seed)
    final, fall, knee = rng.uniform(1.5, 3), rng.uniform(3, 9), rng.uniform(3, 100)
    relative_noise = 10 ** rng.uniform(-3, -0.5)
    decay = final + fall * (1 + np.arange(n_steps) / knee) ** -0.5
    return list(decay * (1 + relative_noise * noise(rng, kind=kind, n_steps=n_steps)))


def test_the_defaults_are_the_values_tested_here() -> None:
    faults = FaultsConfig()
    assert (faults.spike_window, faults.spike_deviations, faults.max_skipped_steps) == (128, 10.0, 10)


@pytest.mark.parametrize("kind", NOISES)
def test_healthy_runs_raise_no_alarm(kind: str) -> None:
    """No step is called a jump in 1000 runs for each kind of noise, of which 96,000 steps are judged."""
    assert [seed for seed in range(1000) if spikes(training_run(seed, kind=kind))] == []


def test_every_jump_by_half_is_found_if_the_noise_is_small() -> None:
    for seed in range(300):
        rng = np.random.default_rng(seed)
        losses = list(2.5 * (1 + 0.02 * rng.standard_normal(200)))
        at = int(rng.integers(64, 200))
        losses[at] *= 1.5
        assert spikes(losses) == [at]


def test_an_odd_batch_among_noise_is_no_jump() -> None:
    for seed in range(300):
        rng = np.random.default_rng(seed)
        losses = list(2.5 + 0.1 * rng.standard_normal(200))
        losses[int(rng.integers(64, 200))] = 2.5 + 6 * 0.1
        assert spikes(losses) == []


@pytest.mark.parametrize(("level", "rise", "found"), [(3.0, 0.29, False), (3.0, 0.31, True), (0.02, 0.09, False),
                                                       (0.02, 0.11, True), (0.0, 0.09, False)])  # fmt: skip
def test_a_flat_loss_may_rise_by_a_tenth_of_itself_or_of_one_nat(level: float, rise: float, found: bool) -> None:
    assert is_spike(level + rise, losses=[level] * 128, deviations=10.0) == found


def test_deviations_are_counted_from_the_median_by_the_median_deviation() -> None:
    losses = list(np.random.default_rng(1).normal(3.0, 0.3, size=99))
    limit = np.median(losses) + 7.0 * median_abs_deviation(losses, scale="normal")
    assert is_spike(limit * 1.001, losses=losses, deviations=7.0)
    assert not is_spike(limit * 0.999, losses=losses, deviations=7.0)


def test_a_falling_loss_is_never_a_jump() -> None:
    assert spikes([9.0] * 100 + [2.0] * 300) == []


def test_earlier_jumps_do_not_hide_a_later_one() -> None:
    losses = [2.5] * 300
    for at in (100, 110, 120, 290):
        losses[at] *= 3
    assert spikes(losses) == [100, 110, 120, 290]


def test_nothing_is_judged_before_half_a_window() -> None:
    assert spikes([3.0] * 63 + [9.0]) == []
    assert spikes([3.0] * 64 + [9.0]) == [64]


def test_a_fast_divergence_is_found_while_it_rises() -> None:
    rising = [2.5 * 1.03**step for step in range(40)]
    assert spikes([2.5] * 200 + rising)[0] < 200 + 5


def test_a_rise_slower_than_the_window_is_no_jump() -> None:
    assert spikes(list(np.linspace(2.5, 7.0, 2000))) == []


def test_a_new_level_becomes_normal() -> None:
    found = spikes([2.5] * 200 + [5.0] * 200)
    assert found == list(range(200, 200 + 64))  # then half of the window has the new level


@pytest.mark.parametrize(
    ("loss", "gradient_norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf), (2.0, -math.inf)]
)
def test_a_step_that_is_not_finite_is_skipped(loss: float, gradient_norm: float) -> None:
    judge = health()
    before = judge.state_dict()["losses"]
    assert judge.observe(loss=loss, gradient_norm=gradient_norm) is Verdict.SKIPPED
    assert judge.state_dict()["losses"] == before
    assert (judge.skipped_in_a_row, judge.skipped) == (1, 1)


def test_one_skipped_step_above_the_limit_is_too_many() -> None:
    judge = health(max_skipped_steps=2)
    losses = [math.nan, math.nan, 2.0, math.nan, math.nan, math.nan, math.nan]
    assert verdicts(losses, judge=judge) == [
        *[Verdict.SKIPPED] * 2, Verdict.GOOD, *[Verdict.SKIPPED] * 2, *[Verdict.TOO_MANY_SKIPPED] * 2,
    ]  # fmt: skip
    assert (judge.skipped_in_a_row, judge.skipped) == (4, 6)


def test_the_limit_may_be_zero() -> None:
    assert verdicts([math.nan], judge=health(max_skipped_steps=0)) == [Verdict.TOO_MANY_SKIPPED]


def test_a_resumed_run_judges_like_an_uninterrupted_one() -> None:
    rng = np.random.default_rng(3)
    losses = [float(loss) for loss in 2.5 + 0.3 * rng.standard_normal(400)]
    for at in rng.choice(400, 60, replace=False):
        losses[at] = float(rng.choice([math.nan, 9.0, math.inf]))
    losses[199:204] = [math.nan] * 5
    uninterrupted = health(max_skipped_steps=3)
    whole = verdicts(losses, judge=uninterrupted)
    assert set(whole) == set(Verdict)
    for stop in (0, 1, 50, 200, 202, 399):
        first, second = health(max_skipped_steps=3), health(max_skipped_steps=3)
        begun = verdicts(losses[:stop], judge=first)
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        assert begun + verdicts(losses[stop:], judge=second) == whole
        assert second.state_dict() == uninterrupted.state_dict()


def test_a_saved_state_does_not_change_afterwards() -> None:
    judge = health()
    verdicts([2.0, 3.0], judge=judge)
    state = judge.state_dict()
    verdicts([4.0], judge=judge)
    assert state["losses"] == [2.0, 3.0]


def test_a_shorter_window_keeps_the_newest_losses() -> None:
    long, short = health(window=64), health(window=32)
    verdicts([float(step) for step in range(64)], judge=long)
    short.load_state_dict(long.state_dict())
    assert short.state_dict()["losses"] == [float(step) for step in range(32, 64)]


def test_bad_steps_are_recorded_one_line_each(tmp_path: Path) -> None:
    path = tmp_path / "bad_steps.jsonl"
    record_bad_step(path, step=7, loss=math.nan, gradient_norm=-math.inf, verdict=Verdict.SKIPPED, samples=[4, 5])
    record_bad_step(path, step=9, loss=8.5, gradient_norm=2.0, verdict=Verdict.SPIKE, samples=[])
    assert path.read_text() == (
        '{"step": 7, "loss": "nan", "gradient_norm": "-inf", "verdict": "skipped", "samples": [4, 5]}\n'
        '{"step": 9, "loss": 8.5, "gradient_norm": 2.0, "verdict": "spike", "samples": []}\n'
    )


def test_a_line_that_was_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "bad_steps.jsonl"
    path.write_text('{"step": 7, "lo')
    record_bad_step(path, step=9, loss=8.5, gradient_norm=2.0, verdict=Verdict.SPIKE, samples=[1])
    torn, line = path.read_text().splitlines()
    assert torn == '{"step": 7, "lo'
    assert json.loads(line)["step"] == 9
