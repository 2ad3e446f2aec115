"""The scalars of a run: the same numbers under the same tags in every sink, and throughput without pauses."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.model.formulas import recomputed_flops_per_token, training_flops_per_token
from pipeline.monitoring.monitor import Monitor, is_due
from pipeline.monitoring.sinks.selection import sinks_for
from pipeline.monitoring.sinks.sink import Scalars, Sink
from pipeline.runtime.world import World
from tests.helpers.monitored import MAIN, Clock, config_in, jsonl, monitor_of

TRAINING_TAGS = {  # for 2 heads on a device whose peak is unknown
    "loss/total", "loss/head_1", "loss/head_2", "optim/lr", "optim/grad_norm", "throughput/tokens_per_s",
    "memory/peak_GiB", "time/step_s", "data/wait_s", "progress/tokens", "faults/skipped_steps",
    "faults/skipped_windows",
}  # fmt: skip
VALIDATION_TAGS = {"val/loss_head_1", "val/loss_head_2"}


class Recorder(Sink):
    """A sink that keeps everything it is given."""

    def __init__(self) -> None:
        self.points: list[tuple[int, Scalars]] = []
        self.histograms: list[tuple[int, str, list[float]]] = []
        self.is_closed = False

    def write(self, step: int, scalars: Scalars) -> None:
        self.points.append((step, scalars))

    def write_histogram(self, step: int, tag: str, values: torch.Tensor) -> None:
        self.histograms.append((step, tag, values.tolist()))

    def close(self) -> None:
        self.is_closed = True


def log_step(monitor: Monitor, step: int, *, losses: tuple[float, ...] = (2.0, 3.5), skipped: int = 0) -> None:
    monitor.log_step(
        step, losses_N=torch.tensor(losses), learning_rate=1e-3, gradient_norm=0.75, skipped_steps=skipped,
        skipped_windows=2 * skipped, times={"time/step_s": 0.25, "data/wait_s": 0.5},
    )  # fmt: skip


def events(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Return tag -> (step, value) pairs, as TensorBoard itself reads the event files."""
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_a_step_becomes_scalars(tmp_path: Path, clock: Clock) -> None:
    sink = Recorder()
    with monitor_of(config_in(tmp_path), sinks=[sink], step=10) as it:
        clock.now_s += 8
        log_step(it, 14, skipped=3)
        assert not sink.is_closed
    ((step, scalars),) = sink.points
    memory = scalars.pop("memory/peak_GiB")
    assert step == 14
    assert scalars == {
        "loss/total": 5.5,
        "loss/head_1": 2.0,
        "loss/head_2": 3.5,
        "optim/lr": 1e-3,
        "optim/grad_norm": 0.75,
        "throughput/tokens_per_s": 4 * 512 / 8,
        "time/step_s": 0.25,
        "data/wait_s": 0.5,
        "progress/tokens": 14 * 512,
        "faults/skipped_steps": 3.0,
        "faults/skipped_windows": 6.0,
    }
    assert 0.05 < memory < 64  # of this process, which has imported torch
    assert sink.is_closed


def test_throughput_is_measured_since_the_last_report(tmp_path: Path, clock: Clock) -> None:
    sink = Recorder()
    it = monitor_of(config_in(tmp_path), sinks=[sink])
    for step, seconds in ((10, 4.0), (15, 10.0)):
        clock.now_s += seconds
        log_step(it, step)
    assert [scalars["throughput/tokens_per_s"] for _, scalars in sink.points] == [10 * 512 / 4, 5 * 512 / 10]


def test_pauses_do_not_count_for_the_throughput(tmp_path: Path, clock: Clock) -> None:
    sink = Recorder()
    it = monitor_of(config_in(tmp_path), sinks=[sink])
    clock.now_s += 3
    for pause_s in (50.0, 7.0):
        with it.paused():
            clock.now_s += pause_s
            it.log_validation(5, torch.tensor([1.5, 2.5]))
    clock.now_s += 1
    log_step(it, 10)
    clock.now_s += 2
    log_step(it, 11)  # the earlier pause does not count again
    rates = [scalars["throughput/tokens_per_s"] for _, scalars in sink.points if "loss/total" in scalars]
    assert rates == [10 * 512 / 4, 512 / 2]
    assert sink.points[0] == (5, {"val/loss_head_1": 1.5, "val/loss_head_2": 2.5})


def test_all_sinks_show_the_same_tags_and_numbers(tmp_path: Path, pipeline_log: object) -> None:
    config = config_in(tmp_path)
    config.run_dir.mkdir()
    with monitor_of(config, sinks=sinks_for(config, world=MAIN, resumed_step=0)) as it:
        log_step(it, 1)
        it.log_validation(1, torch.tensor([1.5, 2.5]))
        log_step(it, 2, losses=(1.0, 2.0))
    points = events(config.run_dir / "tensorboard")
    assert set(points) == TRAINING_TAGS | VALIDATION_TAGS
    assert points["loss/total"] == [(1, 5.5), (2, 3.0)]
    assert points["val/loss_head_2"] == [(1, 2.5)]
    assert points["progress/tokens"] == [(1, 512), (2, 1024)]
    lines = jsonl(config.run_dir / "metrics.jsonl")
    assert [set(line) for line in lines] == [
        {"step", "tokens"} | TRAINING_TAGS,
        {"step"} | VALIDATION_TAGS,
        {"step", "tokens"} | TRAINING_TAGS,
    ]
    assert [line.get("tokens") for line in lines] == [512, None, 1024]
    for line in lines:
        for tag in line.keys() - {"step", "tokens"}:
            (value,) = [value for step, value in points[tag] if step == line["step"]]
            assert math.isclose(value, line[tag], rel_tol=1e-6), tag  # event files store fp32


def test_gradient_norms_of_blocks_are_reported_if_there_are_any(tmp_path: Path) -> None:
    sink = Recorder()
    it = monitor_of(config_in(tmp_path), sinks=[sink])
    it.log_grad_norms(1, {})
    it.log_grad_norms(2, {"embedding": torch.tensor([0.3, 0.0, 0.4]), "head_1": torch.tensor([100.0])})
    ((step, norms),) = sink.points
    assert (step, norms) == (2, {"grad_norms/embedding": pytest.approx(0.5), "grad_norms/head_1": 100.0})
    assert sink.histograms == [
        (2, "grad_norms_log10/embedding", pytest.approx([math.log10(0.3), -10, math.log10(0.4)])),
        (2, "grad_norms_log10/head_1", pytest.approx([2.0])),
    ]


class Failing(Sink):
    """A sink in which everything fails."""

    def write(self, step: int, scalars: Scalars) -> None:
        raise ValueError("of scalars")

    def write_text(self, step: int, tag: str, markdown: str) -> None:
        raise RuntimeError("of texts")

    def write_histogram(self, step: int, tag: str, values: torch.Tensor) -> None:
        raise OSError("of histograms")

    def close(self) -> None:
        raise AssertionError("at the end")


def test_what_fails_in_a_sink_is_a_warning_and_the_other_sinks_get_everything(
    tmp_path: Path, pipeline_log: pytest.LogCaptureFixture
) -> None:
    sink = Recorder()
    with monitor_of(config_in(tmp_path), sinks=[Failing(), sink]) as it:
        log_step(it, 1)
        it.log_grad_norms(1, {"embedding": torch.tensor([0.3])})
        it.log_text(1, "config", "text")
    assert ([step for step, _ in sink.points], len(sink.histograms), sink.is_closed) == ([1, 1], 1, True)
    failures = [str(record.exc_info[1]) for record in pipeline_log.records if record.exc_info]
    assert failures == ["of scalars", "of scalars", "of histograms", "of texts", "at the end"]
    assert "a report to Failing failed; training goes on" in pipeline_log.text


def test_a_step_is_due_every_so_many_steps() -> None:
    assert [step for step in range(1, 10) if is_due(step, every_steps=4)] == [4, 8]
    assert not any(is_due(step, every_steps=0) for step in range(10))


def test_other_ranks_have_no_sinks(tmp_path: Path) -> None:
    other = World(rank=1, local_rank=1, world_size=2, local_world_size=2)
    assert sinks_for(config_in(tmp_path), world=other, resumed_step=0) == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize("recompute", [False, True])
def test_utilisation_is_the_share_of_the_devices_peak(tmp_path: Path, clock: Clock, recompute: bool) -> None:
    """MFU counts the model's FLOPs; HFU counts recomputed FLOPs too."""
    config, sink = config_in(tmp_path), Recorder()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, activation_checkpointing=recompute))
    it = monitor_of(config, sinks=[sink], peak_flops=1e9)
    clock.now_s += 2
    log_step(it, 1)
    flops_per_s = 256 * training_flops_per_token(config.model, seq_len=32)
    recomputed_per_s = 256 * recomputed_flops_per_token(config.model, seq_len=32) * recompute
    assert sink.points[0][1]["throughput/mfu"] == pytest.approx(flops_per_s / 1e9)
    assert sink.points[0][1]["throughput/hfu"] == pytest.approx((flops_per_s + recomputed_per_s) / 1e9)
