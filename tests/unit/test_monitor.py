"""What people see of a run: the same numbers under the design's tags in all three places, resumed without doubles."""

import dataclasses
import json
import math
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import monitor
from pipeline.architecture import recomputed_flops_per_token, training_flops_per_token
from pipeline.config import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from pipeline.distributed import World
from pipeline.monitor import Console, MetricsFile, Monitor, Scalars, TensorBoard, sinks_for
from tests.conftest import REPOSITORY

CPU = torch.device("cpu")
MAIN = World(rank=0, local_rank=0, world_size=2, local_world_size=2)
TRAINING_TAGS = {  # the design's, for 2 heads on a device whose peak is not known
    "loss/total", "loss/head_1", "loss/head_2", "optim/lr", "optim/grad_norm", "throughput/tokens_per_s",
    "memory/peak_GiB", "time/step_s", "data/wait_s", "progress/tokens", "faults/skipped_steps",
    "faults/skipped_windows",
}  # fmt: skip
VALIDATION_TAGS = {"val/loss_head_1", "val/loss_head_2"}


class Recorder:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.points: list[tuple[int, Scalars]] = []
        self.is_closed = False

    def write(self, step: int, scalars: Scalars) -> None:
        self.points.append((step, scalars))

    def close(self) -> None:
        self.is_closed = True


class Clock:
    """`time.perf_counter` under the test's control."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(monitor, "time", SimpleNamespace(perf_counter=lambda: self.now_s))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def config_in(directory: Path) -> Config:
    return Config(
        run=RunConfig(dir=str(directory), name="try"),
        model=ModelConfig(dim=16, n_layers=6, n_heads=2, vocab_size=50, n_future_tokens=2, multiple_of=8),
        data=DataConfig(seq_len=32),
        train=TrainConfig(total_tokens=20_000, batch_tokens=512, micro_batch_size=4),
    )


def log_step(
    monitor: Monitor, step: int, *, losses: tuple[float, ...] = (2.0, 3.5), wait_s: float = 0.0, skipped: int = 0
) -> None:
    monitor.log_step(
        step, losses_N=torch.tensor(losses), learning_rate=1e-3, gradient_norm=0.75, wait_s=wait_s,
        skipped_steps=skipped, skipped_windows=2 * skipped, times={"time/step_s": 0.25},
    )  # fmt: skip


def jsonl(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def events(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Return tag -> (step, value), as TensorBoard itself reads the event files."""
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_a_steps_scalars(tmp_path: Path, clock: Clock) -> None:
    sink = Recorder()
    with Monitor(config_in(tmp_path), sinks=[sink], device=CPU, step=10) as it:
        clock.now_s += 8
        log_step(it, 14, wait_s=0.5, skipped=3)
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
    assert 0.05 < memory < 64  # this process, with torch in it
    assert sink.is_closed


def test_throughput_and_waiting_are_of_the_last_interval(tmp_path: Path, clock: Clock) -> None:
    sink = Recorder()
    it = Monitor(config_in(tmp_path), sinks=[sink], device=CPU, step=0)
    for step, seconds, wait_s in ((10, 4.0, 1.0), (15, 10.0, 1.25)):
        clock.now_s += seconds
        log_step(it, step, wait_s=wait_s)
    assert [scalars["throughput/tokens_per_s"] for _, scalars in sink.points] == [10 * 512 / 4, 5 * 512 / 10]
    assert [scalars["data/wait_s"] for _, scalars in sink.points] == [1.0, 0.25]


def test_what_is_paused_is_not_in_the_throughput(tmp_path: Path, clock: Clock) -> None:
    sink = Recorder()
    it = Monitor(config_in(tmp_path), sinks=[sink], device=CPU, step=0)
    clock.now_s += 3
    for pause_s in (50.0, 7.0):
        with it.paused():
            clock.now_s += pause_s
            it.log_validation(5, torch.tensor([1.5, 2.5]))
    clock.now_s += 1
    log_step(it, 10)
    clock.now_s += 2
    log_step(it, 11)  # the pause before does not count again
    rates = [scalars["throughput/tokens_per_s"] for _, scalars in sink.points if "loss/total" in scalars]
    assert rates == [10 * 512 / 4, 512 / 2]
    assert sink.points[0] == (5, {"val/loss_head_1": 1.5, "val/loss_head_2": 2.5})


def test_all_sinks_show_the_designs_tags_and_the_same_numbers(tmp_path: Path, pipeline_log: object) -> None:
    config = config_in(tmp_path)
    config.run_dir.mkdir()
    with Monitor(config, sinks=sinks_for(config, world=MAIN, resumed_step=0), device=CPU, step=0) as it:
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
            assert math.isclose(value, line[tag], rel_tol=1e-6), tag  # event files hold fp32


def test_other_ranks_have_no_sinks(tmp_path: Path) -> None:
    other = World(rank=1, local_rank=1, world_size=2, local_world_size=2)
    assert sinks_for(config_in(tmp_path), world=other, resumed_step=0) == []
    assert list(tmp_path.iterdir()) == []


def test_metrics_beyond_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, resumed_step=0)
    for step in (1, 2, 3, 4):
        first.write(step, {"loss/total": 10.0 * step, "progress/tokens": 512.0 * step})
    first.close()
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "loss/to')  # a kill in the middle of a line
    resumed = MetricsFile(path, resumed_step=2)
    resumed.write(3, {"loss/total": 33.0, "optim/grad_norm": math.nan})  # which JSON does not know
    resumed.close()
    assert jsonl(path) == [
        {"step": 1, "tokens": 512, "loss/total": 10.0, "progress/tokens": 512.0},
        {"step": 2, "tokens": 1024, "loss/total": 20.0, "progress/tokens": 1024.0},
        {"step": 3, "loss/total": 33.0, "optim/grad_norm": None},
    ]


def test_metrics_are_on_disk_after_each_step(tmp_path: Path) -> None:
    sink = MetricsFile(tmp_path / "metrics.jsonl", resumed_step=0)
    sink.write(1, {"loss/total": 1.0})
    assert len(jsonl(tmp_path / "metrics.jsonl")) == 1
    sink.close()


def test_a_fresh_run_leaves_no_old_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n', encoding="utf-8")
    MetricsFile(path, resumed_step=0).close()
    assert jsonl(path) == []


def test_tensorboard_shows_no_step_twice_after_a_resume(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, resumed_step=0)
    for step in range(1, 6):
        first.write(step, {"loss/total": float(step), "val/loss_head_1": float(step)})
    first.close()
    (file,) = tmp_path.iterdir()
    file.rename(re.sub(r"tfevents\.\d+", "tfevents.0000000001", str(file)))  # written long before
    resumed = TensorBoard(tmp_path, resumed_step=3)
    for step in range(4, 7):
        resumed.write(step, {"loss/total": 10.0 * step})
    resumed.close()
    points = events(tmp_path)
    assert points["loss/total"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0)]
    assert points["val/loss_head_1"] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_the_console_line(clock: Clock, pipeline_log: pytest.LogCaptureFixture) -> None:
    console = Console(total_steps=4000, resumed_step=1000)
    clock.now_s += 20
    scalars = {
        "loss/total": 5.5, "loss/head_1": 2.0, "loss/head_2": 3.5, "optim/lr": 3e-4, "optim/grad_norm": 0.756,
        "throughput/tokens_per_s": 12_345.6, "memory/peak_GiB": 1.26, "data/wait_s": 0.034,
        "progress/tokens": 1_234_567_890.0,
    }  # fmt: skip
    console.write(1010, scalars)
    console.write(1010, {**scalars, "throughput/mfu": 0.4567})
    console.write(1010, {"val/loss_head_1": 1.2345, "val/loss_head_2": 2.5})
    console.close()
    plain, with_mfu, validation = (record.getMessage() for record in pipeline_log.records)
    assert plain == (
        "step 1010/4000  tokens 1,234.57M  loss 5.500 [2.000 3.500]  lr 3.0e-04  grad 0.76  12,346 tok/s"
        "  mem 1.3 GiB  wait 0.03s  ETA 1:39:40"  # 2 s a step since the resume, 2,990 to go
    )
    assert with_mfu == plain.replace("tok/s", "tok/s  MFU 45.7%")
    assert validation == "step 1010/4000  validation loss per head [1.234 2.500]"


@pytest.fixture
def world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize("recompute", [False, True])
def test_utilisation_is_the_share_of_the_devices_peak(tmp_path: Path, clock: Clock, recompute: bool) -> None:
    """The model's FLOPs for MFU; for HFU those that are computed again, too."""
    config, sink = config_in(tmp_path), Recorder()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, activation_checkpointing=recompute))
    it = Monitor(config, sinks=[sink], device=CPU, step=0, peak_flops=1e9)
    clock.now_s += 2
    log_step(it, 1)
    flops_per_s = 256 * training_flops_per_token(config.model, seq_len=32)
    again_per_s = 256 * recomputed_flops_per_token(config.model, seq_len=32) * recompute
    assert sink.points[0][1]["throughput/mfu"] == pytest.approx(flops_per_s / 1e9)
    assert sink.points[0][1]["throughput/hfu"] == pytest.approx((flops_per_s + again_per_s) / 1e9)


def test_the_environment_names_versions_and_commit_only() -> None:
    values = monitor.environment()
    assert set(values) == {"python", "packages", "device", "git_commit"}
    assert values["packages"]["deepspeed"] == metadata.version("deepspeed")
    assert values["packages"]["torch"] == metadata.version("torch")
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--verify", "--quiet", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    assert values["git_commit"] == (head or None)
