"""The slowest rank, waiting for data, and when to warn; tests/distributed/test_profile.py has real ranks."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.monitoring import step_times
from pipeline.monitoring.step_times import PATIENCE, SILENCE, ForwardTimer, StepTimes
from pipeline.runtime.world import World


def times_of(n_ranks: int, *, n_stages: int = 1, rank: int = 0) -> StepTimes:
    world = World(rank=rank, local_rank=rank, world_size=n_ranks, local_world_size=n_ranks)
    return StepTimes(world=world, n_stages=n_stages, num_workers=2)


def logged_step(
    times: StepTimes, monkeypatch: pytest.MonkeyPatch, *, waits_s: list[float], computed_s: list[float], step_s: float
) -> dict[str, float]:
    """Take and report one step; the ranks' numbers are laid out as in the sum over ranks."""
    clock = iter([10.0, 10.0 + step_s])
    monkeypatch.setattr(step_times, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with times.step():
        times.observe([number for pair in zip(waits_s, computed_s, strict=True) for number in pair])
    return times.take_scalars()


def test_a_slow_rank_is_reported_after_some_time_and_then_rarely(
    monkeypatch: pytest.MonkeyPatch, pipeline_log: pytest.LogCaptureFixture
) -> None:
    times = times_of(4)
    for n in range(1, PATIENCE + SILENCE + 1):
        scalars = logged_step(
            times, monkeypatch, waits_s=[0.0, 0.0, 0.01, 0.0], computed_s=[1.0, 1.1, 1.99, 1.0], step_s=4
        )
        assert scalars == {
            "time/step_s": 4, "data/wait_s": 0.01, "time/slowest_rank": 2,
            "time/slowest_rank_ratio": pytest.approx(2.0),
        }  # fmt: skip
        assert len(pipeline_log.records) == (n >= PATIENCE) + (n >= PATIENCE + SILENCE)
    assert "rank 2 is slow: 2.00 s per step of local work, 0.01 s of it waiting for data" in pipeline_log.text
    assert "the median of comparable ranks is 1.00 s" in pipeline_log.text


@pytest.mark.parametrize(
    "computed_s",
    [
        [1.0, 1.0, 1.2, 1.0],  # a little slow
        [0.01, 0.01, 0.05, 0.01],  # slow, but it costs little
    ],
)
def test_slowness_that_costs_little_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, pipeline_log: pytest.LogCaptureFixture, computed_s: list[float]
) -> None:
    times = times_of(4)
    for _ in range(2 * PATIENCE):
        logged_step(times, monkeypatch, waits_s=[0.0] * 4, computed_s=computed_s, step_s=2)
    assert not pipeline_log.records


def test_a_different_rank_each_time_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, pipeline_log: pytest.LogCaptureFixture
) -> None:
    times = times_of(3)
    for n in range(3 * PATIENCE):
        computed_s = [1.0, 1.0, 1.0]
        computed_s[n % 3] = 2.0
        assert logged_step(times, monkeypatch, waits_s=[0.0] * 3, computed_s=computed_s, step_s=2)
    assert not pipeline_log.records


def test_a_stage_is_compared_with_the_same_stage_of_other_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    times = times_of(6, n_stages=2)  # the second stages do five times as much work
    scalars = logged_step(times, monkeypatch, waits_s=[0.0] * 6, computed_s=[1.0, 5.0, 1.5, 5.0, 1.0, 6.0], step_s=10)
    assert (scalars["time/slowest_rank"], scalars["time/slowest_rank_ratio"]) == (2, 1.5)


def test_the_warning_about_waiting_for_data_says_what_to_change(
    monkeypatch: pytest.MonkeyPatch, pipeline_log: pytest.LogCaptureFixture
) -> None:
    times = times_of(2)
    for _ in range(PATIENCE):
        scalars = logged_step(times, monkeypatch, waits_s=[0.5, 0.45], computed_s=[1.0, 1.0], step_s=2)
        assert scalars["data/wait_s"] == 0.5
    (record,) = pipeline_log.records
    assert "training waits for data: 0.50 of 2.00 s per step. Raise data.num_workers (now 2)" in record.getMessage()


def test_steps_that_a_rollback_undoes_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    times = times_of(2)
    times.observe([7.0, 1.0, 0.0, 1.0])  # a step after the last report, whose loss jumped
    times.forget()
    scalars = logged_step(times, monkeypatch, waits_s=[0.25, 0.5], computed_s=[1.0, 1.0], step_s=2)
    assert (scalars["data/wait_s"], scalars["time/step_s"]) == (0.5, 2)
    assert scalars["time/slowest_rank_ratio"] == pytest.approx(1.5 / 1.25)


def test_a_contribution_covers_only_this_rank_and_step() -> None:
    times = times_of(3, rank=1)
    assert times.contribution(wait_s=2.0, compute_s=5.0) == [0, 0, 2.0, 5.0, 0, 0]
    assert times.contribution(wait_s=2.5, compute_s=6.0) == [0, 0, 0.5, 6.0, 0, 0]


def test_only_forwards_in_training_are_timed() -> None:
    class Sleeping(nn.Module):
        def forward(self, seconds: float) -> None:
            time.sleep(seconds)

    module = Sleeping()
    timer = ForwardTimer(module, device=torch.device("cpu"))
    module(0.05)
    module(0.06)
    assert timer.take_s() >= 0.11
    module.eval()
    module(0.05)
    assert timer.take_s() == 0
