"""Whole runs with the deepspeed command on 2 CPU ranks: kill and resume, damage, stop requests, refusals."""

import json
import math
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.runtime.stop import ExitCode
from tests.conftest import REPOSITORY, launch_deepspeed, run_module
from tests.distributed.conftest import EVERY_STEPS, STEPS
from tests.helpers.held import Hold, wait_until
from tests.helpers.run_results import Metrics, curves, event_files, history, metrics, validations, without_times


def start(
    recipe: Path, name: str, *overrides: str, deepspeed_json: str = "zero1_fp32", ranks: int = 2,
    hold: Hold | None = None,
) -> subprocess.Popen[str]:  # fmt: skip
    return launch_deepspeed(
        "tests.helpers.held" if hold else "pipeline.train", "--config", recipe,
        "--deepspeed_config", f"ds_configs/{deepspeed_json}.json", f"run.name={name}", *overrides,
        ranks=ranks, variables=hold.variables if hold else {},
    )  # fmt: skip


def before_line(number: int, *, file: Path) -> Hold:
    """Return a hold that stops rank 0 before it writes line `number` (from 1) of metrics.jsonl."""
    return Hold(
        command="pipeline.train",
        at="pipeline.monitoring.sinks.metrics_file:MetricsFile.write",
        after=number - 1,
        file=file,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path) -> Path:
    returncode, output = finish(start(recipe, "uninterrupted"))
    assert returncode == 0, output
    return recipe.parent / "runs" / "uninterrupted"


def test_run_directory_is_as_documented(uninterrupted: Path) -> None:
    assert {path.name for path in uninterrupted.iterdir()} == {
        "config.yaml", "ds_config.json", "environment.json", "shards.json", "train.log", "metrics.jsonl", "tensorboard",
        "checkpoints",
        "hangs", "ranks", ".lock", "history.jsonl", "lease.json",
    }  # fmt: skip
    assert not list((uninterrupted / "hangs").iterdir())
    assert history(uninterrupted) == [
        {"event": "launch", "step": 0, "ranks": 2, "device": "cpu"},
        {"event": "end", "exit_code": 0},
    ]
    assert sorted(path.name for path in (uninterrupted / "checkpoints").iterdir()) == ["step_00000060", "step_00000080"]
    assert yaml.safe_load((uninterrupted / "config.yaml").read_text())["optim"]["beta2"] == 0.95
    assert json.loads((uninterrupted / "ds_config.json").read_text())["gradient_accumulation_steps"] == 2
    lines = metrics(uninterrupted)
    assert list(lines) == list(range(1, STEPS + 1))
    assert lines[STEPS]["tokens"] == STEPS * 256
    assert lines[STEPS]["loss/total"] < lines[1]["loss/total"] - 2


def test_kill_9_and_restart_is_bit_identical(recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """The reports are identical, too: TensorBoard has each step once, also of texts and histograms.

    The kill comes between two checkpoints, when the first is complete.
    """
    run_dir, watched = (
        recipe.parent / "runs" / "killed",
        ("log.previews_every_steps=10", "log.grad_norms_every_steps=5"),
    )
    lines = 32 + 32 // 5 + 1  # steps, norms of every fifth step, and a validation
    hold = before_line(lines + 1, file=tmp_path / "held")
    process = start(recipe, "killed", *watched, hold=hold)
    hold.reached(process)
    wait_until((run_dir / "checkpoints" / f"step_{EVERY_STEPS:08d}").exists, process)  # written in the background
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    killed_at = max(metrics(run_dir))
    assert killed_at == 32
    returncode, output = finish(start(recipe, "killed", *watched))
    assert returncode == 0, output
    assert "resumed from" in output
    assert [event["event"] for event in history(run_dir)] == ["launch", "launch", "end"]  # a killed start has no end
    assert history(run_dir)[1]["step"] == killed_at // EVERY_STEPS * EVERY_STEPS
    expected, actual = metrics(uninterrupted), metrics(run_dir)
    assert {step: without_times(line) for step, line in actual.items()} == {
        s: without_times(line) for s, line in expected.items()
    }
    usual, resumed = without_times(curves(uninterrupted)), without_times(curves(run_dir))
    assert {tag: resumed[tag] for tag in usual} == usual
    norms = resumed.keys() - usual
    assert {"grad_norms/embedding", "grad_norms/head_4"} <= norms
    assert all([step for step, _ in resumed[tag]] == list(range(5, STEPS + 1, 5)) for tag in norms)
    files = event_files(run_dir)
    assert [event.step for event in files.Tensors("previews/prompt_1/text_summary")] == list(range(10, STEPS + 1, 10))
    assert [event.step for event in files.Tensors("grad_norms_log10/head_4")] == list(range(5, STEPS + 1, 5))
    first_of_start = killed_at // EVERY_STEPS * EVERY_STEPS + 1
    assert [event.step for event in files.Tensors("config/text_summary")] == [1, first_of_start]


def test_a_damaged_checkpoint_is_named_and_an_older_one_used(recipe: Path, uninterrupted: Path) -> None:
    run_dir = recipe.parent / "runs" / "damaged"
    shutil.copytree(uninterrupted, run_dir)
    victim = run_dir / "checkpoints" / "step_00000080" / "weights_and_moments" / "__1_0.distcp"
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    victim.write_bytes(damaged)
    returncode, output = finish(start(recipe, "damaged"))
    assert returncode == 0, output
    assert "step_00000080 is damaged: weights_and_moments/__1_0.distcp does not match its hash" in output
    assert "resumed from" in output
    assert without_times(metrics(run_dir)[STEPS]) == without_times(metrics(uninterrupted)[STEPS])


def test_ctrl_c_stops_and_saves(recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """A terminal sends SIGINT to the launcher and to all ranks."""
    run_dir = recipe.parent / "runs" / "ctrl_c"
    hold = before_line(3, file=tmp_path / "held")
    process = start(recipe, "ctrl_c", hold=hold)
    hold.reached(process)
    launched = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    hold.release()
    _, output = finish(process)
    assert psutil.wait_procs(launched, timeout=300)[1] == []  # ranks, which the launcher leaves behind, and workers
    assert "stopping: the run saves after this step; Ctrl-C again ends it at once" in output
    log = (run_dir / "train.log").read_text()
    assert "stopped on request (SIGINT on rank 0, SIGINT on rank 1) after step" in log
    saved = max((run_dir / "checkpoints").glob("step_*"))
    assert int(saved.name.removeprefix("step_")) == max(metrics(run_dir))
    returncode, output = finish(start(recipe, "ctrl_c"))
    assert returncode == 0, output
    assert f"resumed from {saved}" in output
    assert without_times(metrics(run_dir)[STEPS]) == without_times(metrics(uninterrupted)[STEPS])


def test_a_signal_to_one_rank_stops_all_and_the_same_command_continues(
    recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """It runs under ZeRO-3, where save, load and validation need every rank.

    The stop skips a validation. Here it looks as if a killed start in between had already made up for it.
    """
    run_dir = recipe.parent / "runs" / "stopped"
    hold = before_line(2 * 2 + 1, file=tmp_path / "held")  # each step has a validation
    process = start(recipe, "stopped", "train.eval_every_steps=1", deepspeed_json="zero3_fp32", hold=hold)
    hold.reached(process)
    assert list(metrics(run_dir)) == [1, 2]
    launched = psutil.Process(process.pid).children(recursive=True)
    rank_1 = next(child for child in launched if "--local_rank=1" in child.cmdline())  # its loader workers follow it
    rank_1.send_signal(signal.SIGUSR1)
    hold.release()
    returncode, output = finish(process)
    assert returncode == ExitCode.STOPPED, output
    assert "stopped on request (SIGUSR1 on rank 1) after step" in output
    assert max(metrics(run_dir)) < 5
    assert list((run_dir / "checkpoints").glob("step_*"))
    stopped_after = max(metrics(run_dir))
    assert stopped_after - 1 in validations(run_dir)
    assert stopped_after not in validations(run_dir)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": stopped_after, "val/loss_head_1": 9.0}) + "\n")
    returncode, output = finish(start(recipe, "stopped", deepspeed_json="zero3_fp32"))
    assert returncode == 0, output
    assert "resumed from" in output
    assert validations(run_dir)[stopped_after]["val/loss_head_1"] == 9.0  # it was not repeated
    losses, expected = metrics(run_dir), metrics(uninterrupted)
    for step in range(1, STEPS + 1):
        assert losses[step]["loss/total"] == pytest.approx(expected[step]["loss/total"], rel=1e-5)


def without_the_last_checkpoint(run_dir: Path, name: str) -> Path:
    """Copy a finished run without its last checkpoint, so that it must continue from the one before."""
    copy = run_dir.with_name(name)
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "checkpoints" / f"step_{STEPS:08d}")
    return copy


def assert_same_losses(actual: Metrics, expected: Metrics) -> None:
    assert list(actual) == list(expected)
    for step, line in expected.items():
        tags = [tag for tag in line if tag.startswith("loss/")]
        assert [actual[step][tag] for tag in tags] == pytest.approx([line[tag] for tag in tags], rel=1e-5), step


def test_a_run_continues_in_other_modes_on_other_numbers_of_ranks(recipe: Path, uninterrupted: Path) -> None:
    """ZeRO-1 on two ranks, then a pipeline on four, then ZeRO-3 on one; by the same command, without conversion."""
    pipelined = without_the_last_checkpoint(uninterrupted, "pipelined")
    how = ("parallel.pipeline_stages=2", "checkpoint.every_steps=10")
    returncode, output = finish(start(recipe, pipelined.name, *how, ranks=4))
    assert returncode == 0, output
    assert f"resumed from {pipelined}/checkpoints/step_00000060" in output
    assert_same_losses(metrics(pipelined), metrics(uninterrupted))

    alone = without_the_last_checkpoint(pipelined, "alone")
    returncode, output = finish(start(recipe, alone.name, ranks=1, deepspeed_json="zero3_fp32"))
    assert returncode == 0, output
    assert f"resumed from {alone}/checkpoints/step_00000070" in output
    assert_same_losses(metrics(alone), metrics(uninterrupted))


@pytest.mark.parametrize(
    ("to", "how", "heads", "begins_as"),
    [
        (None, ("parallel.pipeline_stages=2",), (), ["1", "2", "3", "4"]),
        ("meta", (), ("model.n_layers=3", "model.n_future_tokens=1"), ["1"]),
        ("hf", (), ("model.n_layers=7", "model.n_future_tokens=5"), ["1", "2", "3", "4", None]),
    ],
)
def test_a_run_starts_from_weights(
    recipe: Path, uninterrupted: Path, to: str | None, how: tuple[str, ...], heads: tuple[str, ...],
    begins_as: list[str | None],
) -> None:  # fmt: skip
    """The weights are a run or an export of it; with the same, fewer or more heads, validation losses are the same."""
    weights, name = uninterrupted, f"started-from-{to}"
    if to is not None:
        weights = uninterrupted.with_name(f"exported-{to}")
        done = run_module("pipeline.convert", "--input", uninterrupted, "--to", to, "--output", weights)
        assert done.returncode == 0, done.stderr
    overrides = (f"model.init_from={weights}", "optim.lr=1e-30", "optim.warmup_steps=0", "train.total_tokens=256")
    deepspeed_json = "zero1_fp32" if how else "zero3_fp32"
    returncode, output = finish(start(recipe, name, *overrides, *how, *heads, deepspeed_json=deepspeed_json))
    assert returncode == 0, output
    assert f"starting from {weights}" in output
    validation = validations(recipe.parent / "runs" / name)[1]
    expected = validations(uninterrupted)[STEPS]
    for head, origin in enumerate(begins_as, start=1):
        if origin is not None:
            assert validation[f"val/loss_head_{head}"] == pytest.approx(expected[f"val/loss_head_{origin}"], rel=1e-5)
    if begins_as[-1] is None:  # a copy of the next-token head still predicts frequent tokens for another position
        assert validation["val/loss_head_4"] < validation["val/loss_head_5"] < math.log(258) - 1


def test_weights_that_do_not_fit_are_refused_without_a_trace(recipe: Path, uninterrupted: Path) -> None:
    done = run_module(
        "pipeline.train", "--config", recipe, "--deepspeed_config", "ds_configs/zero1_fp32.json", "run.name=misfit",
        f"model.init_from={uninterrupted}", "model.n_layers=9",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "its trunk has 2 layers, and this run's 5" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (recipe.parent / "runs" / "misfit").exists()


STARTS = ("train.log", ".lock", "lease.json")


def times_of_files(run_dir: Path) -> dict[str, int]:
    """Return the modification time of each file, except those that every start writes."""
    files = (path for path in run_dir.rglob("*") if path.is_file() and path.name not in STARTS)
    return {str(path): path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("model.n_future_tokens=2", "model.n_future_tokens=4, and this run has 2"),
        ("data.shuffle_seed=7", "data.shuffle_seed=1, and this run has 7"),
        ("train.batch_tokens=512", "train.batch_tokens=256, and this run has 512"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    recipe: Path, uninterrupted: Path, override: str, complaint: str
) -> None:
    before = times_of_files(uninterrupted)
    done = run_module(
        "pipeline.train", "--config", recipe, "--deepspeed_config", "ds_configs/zero1_fp32.json",
        "run.name=uninterrupted", override,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert times_of_files(uninterrupted) == before


def test_a_finished_run_is_reported_and_no_resume_is_refused(recipe: Path, uninterrupted: Path) -> None:
    returncode, output = finish(start(recipe, "uninterrupted"))
    assert returncode == 0
    assert "is the run's last step" in output
    returncode, output = finish(start(recipe, "uninterrupted", "--no-resume"))
    assert returncode == 2
    assert "set another run.name" in output
    assert (REPOSITORY / "runs" / "uninterrupted").exists() is False
