"""The sinks: console and terminal, TensorBoard's event files, metrics.jsonl; a resume repeats no step in them."""

import json
import math
import os
import pty
import re
import subprocess
import sys
import termios
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pipeline.monitoring.sinks import Console, MetricsFile, TensorBoard, has_validation
from tests.conftest import REPOSITORY
from tests.helpers.monitored import Clock, config_in, jsonl


def test_metrics_beyond_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, resumed_step=0)
    for step in (1, 2, 3, 4):
        first.write(step, {"loss/total": 10.0 * step, "progress/tokens": 512.0 * step})
    first.close()
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "loss/to')  # a kill within a line
    resumed = MetricsFile(path, resumed_step=2)
    resumed.write(3, {"loss/total": 33.0, "optim/grad_norm": math.nan})  # JSON has no NaN
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


def test_metrics_show_whether_a_step_was_validated(tmp_path: Path) -> None:
    assert not has_validation(tmp_path, step=1)  # no file yet
    sink = MetricsFile(tmp_path / "metrics.jsonl", resumed_step=0)
    sink.write(1, {"loss/total": 1.0, "loss/head_1": 1.0})
    sink.write(1, {"val/loss_head_1": 1.0})
    sink.write(2, {"loss/total": 1.0, "loss/head_1": 1.0})
    sink.close()
    assert [has_validation(tmp_path, step=step) for step in (1, 2, 3)] == [True, False, False]


def test_damaged_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n\xff\n[]\n{}\n{"step": "x"}\n{"step": 2}\n{"step": 3')
    assert not has_validation(tmp_path, step=2)
    MetricsFile(path, resumed_step=2).close()
    assert jsonl(path) == [{"step": 1}, {"step": 2}]


def test_a_new_run_drops_old_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n', encoding="utf-8")
    MetricsFile(path, resumed_step=0).close()
    assert jsonl(path) == []


def opened(directory: Path, *, resumed_step: int) -> TensorBoard:
    """Return the TensorBoard sink of a start, as if long after the earlier starts."""
    for number, file in enumerate(sorted((directory / "try" / "tensorboard").glob("events.*"))):
        file.rename(re.sub(r"tfevents\.\d+", f"tfevents.{number:010d}", str(file)))
    return TensorBoard(config_in(directory), resumed_step=resumed_step)


def accumulated(directory: Path) -> EventAccumulator:
    """Return the event files as TensorBoard's scalar reader sees them."""
    return EventAccumulator(
        str(directory / "try" / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0}
    ).Reload()


def accumulated_tensors(directory: Path) -> plugin_event_accumulator.EventAccumulator:
    """Return them as the server's own reader sees them; the other reader drops no texts after a restart."""
    path = str(directory / "try" / "tensorboard")
    return plugin_event_accumulator.EventAccumulator(path, size_guidance={"tensors": 0}).Reload()


def texts(directory: Path, tag: str) -> list[tuple[int, str]]:
    """Return the (step, text) pairs of a tag."""
    found = accumulated_tensors(directory).Tensors(f"{tag}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]


def test_tensorboard_shows_no_step_twice_after_kills_and_rollbacks(tmp_path: Path) -> None:
    """Scalars, texts and histograms; with a kill before the first checkpoint, one after it, and a rollback."""
    for start, (resumed_step, last) in enumerate([(0, 2), (0, 5), (3, 6), (3, 7)], start=1):
        sink = opened(tmp_path, resumed_step=resumed_step)
        for step in range(resumed_step + 1, last + 1):
            sink.write(step, {"loss/total": 10.0 * start + step, "val/loss_head_1": float(step)})
            sink.write_text(step, "previews/prompt_1", f"start {start}")
            sink.write_histogram(step, "grad_norms_log10/head_1", torch.full((start,), 2.0))
        sink._writer.close()  # not the sink's close(), which a killed run does not reach
    found = accumulated(tmp_path)
    losses = [(e.step, e.value) for e in found.Scalars("loss/total")]
    assert losses == [(1, 21.0), (2, 22.0), (3, 23.0), (4, 44.0), (5, 45.0), (6, 46.0), (7, 47.0)]
    assert [e.step for e in found.Scalars("val/loss_head_1")] == [1, 2, 3, 4, 5, 6, 7]
    starts = [2, 2, 2, 4, 4, 4, 4]
    assert texts(tmp_path, "previews/prompt_1") == [(step, f"start {of}") for step, of in enumerate(starts, start=1)]
    histograms = found.Histograms("grad_norms_log10/head_1")
    assert [(e.step, e.histogram_value.num) for e in histograms] == list(enumerate(starts, start=1))
    assert [step for step, _ in texts(tmp_path, "config")] == [1, 4]


def test_the_dashboard_shows_config_hyperparameters_and_all_heads_in_one_chart(tmp_path: Path) -> None:
    sink = opened(tmp_path, resumed_step=0)
    sink.write(config_in(tmp_path).total_steps, {"loss/total": 1.0})
    sink.close()
    found = accumulated_tensors(tmp_path)
    ((_, text),) = texts(tmp_path, "config")
    assert yaml.safe_load(text.removeprefix("```yaml\n").removesuffix("```")) == json.loads(
        json.dumps(config_in(tmp_path).as_dict())
    )
    layout = layout_pb2.Layout.FromString(found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts == {"training": ["^loss/head_"], "validation": ["^val/loss_head_"]}
    content = {
        tag: HParamsPluginData.FromString(found.SummaryMetadata(tag).plugin_data.content)
        for tag in ("_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info")
    }
    hparams = content["_hparams_/session_start_info"].session_start_info.hparams
    assert (hparams["model.n_future_tokens"].number_value, hparams["model.head_type"].string_value) == (
        2,
        "transformer",
    )
    metrics = [info.name.tag for info in content["_hparams_/experiment"].experiment.metric_infos]
    assert metrics == ["loss/total", "val/loss_head_1", "val/loss_head_2", "throughput/tokens_per_s"]


def test_event_files_are_at_least_a_second_apart(tmp_path: Path) -> None:
    """TensorBoard would read a process's tenth file of one second before its ninth, as after quick rollbacks."""
    for resumed_step in (0, 1, 1):
        sink = TensorBoard(config_in(tmp_path), resumed_step=resumed_step)
        sink.write(resumed_step + 1, {"loss/total": 1.0})
        sink.close()
    seconds = [int(path.name.split(".")[3]) for path in (tmp_path / "try" / "tensorboard").iterdir()]
    assert len(set(seconds)) == len(seconds) == 3


def test_histograms_count_every_value_and_skip_values_that_are_not_finite(tmp_path: Path) -> None:
    norms = torch.tensor([-10.0, -5.0, -0.3, -0.25, -0.25, 2.5])
    sink = opened(tmp_path, resumed_step=0)
    sink.write_histogram(1, "grad_norms_log10/layer_000", norms)
    sink.write_histogram(2, "grad_norms_log10/layer_000", torch.tensor([1.0, math.nan]))
    sink.write_histogram(3, "grad_norms_log10/layer_000", torch.zeros(4))
    sink.close()
    of_norms, of_zeros = accumulated(tmp_path).Histograms("grad_norms_log10/layer_000")
    found = of_norms.histogram_value
    assert (of_norms.step, found.num, found.min, found.max, found.sum) == (1, 6, -10, 2.5, pytest.approx(-13.3))
    edges = [*found.bucket_limit[:-1], math.inf]  # the last bin includes its upper edge
    counts = [int(((norms >= low) & (norms < high)).sum()) for low, high in pairwise([-math.inf, *edges])]
    assert found.bucket == counts
    assert len(counts) > 50
    assert (of_zeros.step, of_zeros.histogram_value.max) == (3, 0)


def test_an_unfinished_run_is_not_marked_as_finished(tmp_path: Path) -> None:
    sink = opened(tmp_path, resumed_step=0)
    sink.write(3, {"loss/total": 1.0})
    sink.close()
    with pytest.raises(KeyError):
        accumulated(tmp_path).SummaryMetadata("_hparams_/session_end_info")


def test_a_kill_loses_no_point(tmp_path: Path) -> None:
    """The steps before a checkpoint are not repeated, so their points must be in the file."""
    code = """
import os, sys
from pathlib import Path
from pipeline.monitoring.sinks import TensorBoard
from tests.helpers.monitored import config_in
sink = TensorBoard(config_in(Path(sys.argv[1])), resumed_step=0)
sink.write(1, {"loss/total": 1.0})
sink.write(2, {"loss/total": 2.0})
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path], cwd=REPOSITORY, check=False).returncode == -9
    assert [e.step for e in accumulated(tmp_path).Scalars("loss/total")] == [1, 2]


def test_after_a_failed_write_earlier_points_stay_and_later_ones_follow(
    tmp_path: Path, pipeline_log: pytest.LogCaptureFixture
) -> None:
    sink = opened(tmp_path, resumed_step=0)
    sink.write(1, {"loss/total": 1.0})
    writer, sink._writer = sink._writer, SimpleNamespace(add_scalar=fail)
    sink.write(2, {"loss/total": 2.0})
    writer.close()
    sink.write(3, {"loss/total": 3.0})
    sink.close()
    assert [e.step for e in accumulated(tmp_path).Scalars("loss/total")] == [1, 3]
    assert "could not write step 2 to TensorBoard ([Errno 28] full)" in pipeline_log.text


def fail(*_: object) -> None:
    raise OSError(28, "full")


BAR = """
import logging
from pipeline.runtime.logs import configure_logging
from pipeline.runtime.world import World
from pipeline.monitoring.console import console_handler
from pipeline.monitoring.sinks import Console
configure_logging(World(rank=0, local_rank=0, world_size=1, local_world_size=1), handlers=[console_handler()])
console = Console(total_steps=4, resumed_step=0)
for step in (1, 2, 3):
    console.write(step, {"val/loss_head_1": float(step)})
console.close()
"""


def test_a_terminal_shows_a_progress_bar_and_a_log_file_only_lines(tmp_path: Path) -> None:
    lines = [f"step {step}/4  validation loss per head [{step}.000]" for step in (1, 2, 3)]
    command = [sys.executable, "-c", BAR]
    with (tmp_path / "log").open("w") as log:
        assert subprocess.run(command, cwd=REPOSITORY, stdout=log, check=False).returncode == 0
    assert (tmp_path / "log").read_text().splitlines() == lines
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=theirs):
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # a terminal ends with this when its last writer is gone
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    text = shown.decode()
    assert "1/4 [" in text and "%|" in text  # noqa: PT018
    assert [line for line in re.split(r"[\r\n]+", text) if line.startswith("step ")] == lines


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
    amounts = {4096: "4.10k", 250_000: "250.00k", 1_024_000: "1.02M", 200.01e9: "200.01B", 1e12: "1.00T"}
    for amount in amounts:
        console.write(1010, {**scalars, "progress/tokens": amount})
    console.close()
    plain, with_mfu, validation, *others = (record.getMessage() for record in pipeline_log.records)
    assert [line.split("  ")[1] for line in others] == [f"tokens {short}" for short in amounts.values()]
    assert plain == (
        "step 1010/4000  tokens 1.23B  loss 5.500 [2.000 3.500]  lr 3.0e-04  grad 0.76  12,346 tok/s"
        "  mem 1.3 GiB  wait 0.03s  ETA 1:39:40"  # 2 s per step since the resume, 2,990 steps left
    )
    assert with_mfu == plain.replace("tok/s", "tok/s  MFU 45.7%")
    assert validation == "step 1010/4000  validation loss per head [1.234 2.500]"
