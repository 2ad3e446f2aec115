"""TensorBoard's event files, as its own readers see them: a resume repeats no step, and a kill loses none."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
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

from pipeline.monitoring.sinks import event_files
from pipeline.monitoring.sinks.tensorboard import TensorBoard
from tests.conftest import REPOSITORY
from tests.helpers.full_disk import file_size_limit
from tests.helpers.monitored import config_in


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


@pytest.mark.parametrize(
    "times",
    [
        (1000, 2000, 3000, 4000),
        (4000, 3000, 2000, 1000),  # each start is on a node whose clock is behind
        (5000, 5000, 5000, 5000),  # within a second, as after quick rollbacks
        (10**10 - 1, 10**10, 1000, 2000),  # on a node whose clock is centuries ahead
    ],
)
def test_tensorboard_shows_each_step_once_in_any_clock(
    times: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scalars, texts and histograms; with a kill before the first checkpoint, one after it, and a rollback."""
    for start, (resumed_step, last) in enumerate([(0, 2), (0, 5), (3, 6), (3, 7)], start=1):
        now_s = times[start - 1] + 0.5
        monkeypatch.setattr(event_files, "time", SimpleNamespace(time=lambda now_s=now_s: now_s))
        sink = TensorBoard(config_in(tmp_path), resumed_step=resumed_step)
        for step in range(resumed_step + 1, last + 1):
            sink.write(step, {"loss/total": 10.0 * start + step, "val/loss_head_1": float(step)})
            sink.write_text(step, "previews/prompt_1", f"start {start}")
            sink.write_histogram(step, "grad_norms_log10/head_1", torch.full((start,), 2.0))
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
    sink = TensorBoard(config_in(tmp_path), resumed_step=0)
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
    assert metrics == ["val/loss_head_1", "loss/head_1", "val/loss_head_2", "throughput/tokens_per_s"]


def copy_of_the_first(folder: Path, path: Path) -> None:
    path.write_bytes(next(folder.glob("events.*")).read_bytes())


def half_of_a_file(folder: Path, path: Path) -> None:
    whole = next(folder.glob("events.*")).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def link_to_nowhere(_: Path, path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "make",
    [copy_of_the_first, half_of_a_file, link_to_nowhere, lambda _, path: path.mkdir(), lambda _, p: os.mkfifo(p)],
)
@pytest.mark.parametrize("name", ["events.out.tfevents.old", "zz.tfevents", "events.out.tfevents.123.me.7.0.bak"])
def test_foreign_event_files_are_named_and_hide_no_step_of_the_run(
    make: Callable[[Path, Path], None], name: str, tmp_path: Path, pipeline_log: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "try" / "tensorboard"
    for resumed_step in (0, 0, 2):
        sink = TensorBoard(config_in(tmp_path), resumed_step=resumed_step)
        for step in range(resumed_step + 1, 5):
            sink.write(step, {"loss/total": 10.0 * resumed_step + step})
        sink.close()
        if not os.path.lexists(folder / name):
            assert "TensorBoard takes" not in pipeline_log.text
            make(folder, folder / name)
    assert pipeline_log.text.count(f"TensorBoard takes {name} in {folder} for a part of this run") == 2
    if (folder / name).is_file():
        losses = [(e.step, e.value) for e in accumulated(tmp_path).Scalars("loss/total")]
        assert losses == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]


def test_histograms_count_every_value_and_skip_values_that_are_not_finite(tmp_path: Path) -> None:
    norms = torch.tensor([-10.0, -5.0, -0.3, -0.25, -0.25, 2.5])
    sink = TensorBoard(config_in(tmp_path), resumed_step=0)
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
    sink = TensorBoard(config_in(tmp_path), resumed_step=0)
    sink.write(3, {"loss/total": 1.0})
    sink.close()
    with pytest.raises(KeyError):
        accumulated(tmp_path).SummaryMetadata("_hparams_/session_end_info")


def test_a_kill_loses_no_point(tmp_path: Path) -> None:
    """The steps before a checkpoint are not repeated, so their points must be in the file."""
    code = """
import os, sys
from pathlib import Path
from pipeline.monitoring.sinks.tensorboard import TensorBoard
from tests.helpers.monitored import config_in
sink = TensorBoard(config_in(Path(sys.argv[1])), resumed_step=0)
sink.write(1, {"loss/total": 1.0})
sink.write(2, {"loss/total": 2.0})
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path], cwd=REPOSITORY, check=False).returncode == -9
    assert [e.step for e in accumulated(tmp_path).Scalars("loss/total")] == [1, 2]


def test_what_a_full_disk_refuses_is_written_later(tmp_path: Path, pipeline_log: pytest.LogCaptureFixture) -> None:
    sink = TensorBoard(config_in(tmp_path), resumed_step=0)
    sink.write(1, {"loss/total": 1.0})
    size = next((tmp_path / "try" / "tensorboard").iterdir()).stat().st_size
    with file_size_limit(size + 10):  # looks like a full disk to this process, in the middle of a record
        for step in (2, 3):
            sink.write(step, {"loss/total": float(step)})
    assert [e.step for e in accumulated(tmp_path).Scalars("loss/total")] == [1]
    sink.write(4, {"loss/total": 4.0})
    sink.close()
    assert [(e.step, e.value) for e in accumulated(tmp_path).Scalars("loss/total")] == [
        (step, float(step)) for step in (1, 2, 3, 4)
    ]
    assert [record.getMessage() for record in pipeline_log.records] == [
        "TensorBoard's event file cannot be written after step 2: [Errno 27] File too large; its reports wait in"
        " memory, and each report tries again",
        "TensorBoard's event file is written again after step 4; nothing is missing",
    ]


def test_a_run_goes_on_without_a_folder_for_its_event_files(
    tmp_path: Path, pipeline_log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "try").mkdir()
    (tmp_path / "try" / "tensorboard").write_text("")
    sink = TensorBoard(config_in(tmp_path), resumed_step=0)
    sink.write(1, {"loss/total": 1.0})
    assert "TensorBoard's event file cannot be written after step 0: [Errno 17] File exists: " in pipeline_log.text
    (tmp_path / "try" / "tensorboard").unlink()
    sink.write(2, {"loss/total": 2.0})
    sink.close()
    assert [e.step for e in accumulated(tmp_path).Scalars("loss/total")] == [1, 2]
