"""Whole runs on 2 CPU ranks, one with slowed parts: their traces, tables, metrics and warnings."""

import gzip
import json
from pathlib import Path

import pytest
import yaml

from pipeline.monitoring.step_times import PATIENCE
from tests.conftest import launch_deepspeed
from tests.distributed.slow_train import SHOWN
from tests.helpers.run_results import metrics, without_times

STEPS = PATIENCE + 2
READ_S, HEAD_S = 0.3, 0.15
MICRO_BATCHES, WINDOWS = 2, 4  # per rank and step
RECORDED = "steps_3_to_5.rank_00000"


def train(module: str, folder: Path, shards: Path, *overrides: str) -> str:
    """Train a tiny recipe to its end; return the output."""
    recipe = folder / "tiny.yaml"
    values = {
        "run": {"dir": str(folder)},
        "model": {"dim": 32, "n_layers": 4, "n_heads": 4, "vocab_size": 258, "n_future_tokens": 2, "multiple_of": 16},
        "data": {"shards": str(shards), "seq_len": 32, "num_workers": 0, "num_canonical_nodes": 2},
        "train": {"total_tokens": STEPS * 256, "batch_tokens": 256, "micro_batch_size": 2, "eval_every_steps": 0},
        "optim": {"warmup_steps": 2},
        "log": {"every_steps": 1},
    }
    recipe.write_text(yaml.safe_dump(values))
    process = launch_deepspeed(
        module, "--config", recipe, "--deepspeed_config", "ds_configs/zero1_fp32.json", *overrides
    )
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output


def totals(table: str) -> dict[str, float]:
    """Return the seconds of each part in a profile's table."""
    return {line[:16].rstrip(): float(line.split()[-2]) for line in table.splitlines()[1:]}


def test_slowed_ranks_loaders_and_heads_are_found(
    tmp_path: Path, byte_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 reads shards slowly, and one head is slow on both ranks; the second run has neither, and no profile.

    The trace has the true seconds for which rank 0, which records, waits for rank 1 in every step.
    """
    monkeypatch.setenv("SLOW_READS_S", str(READ_S))
    monkeypatch.setenv("SLOW_HEAD_2_S", str(HEAD_S))
    slowed = ("run.name=slowed", "profile.steps=[3, 5]")
    output = train("tests.distributed.slow_train", tmp_path, byte_shards, *slowed)
    train("pipeline.train", tmp_path, byte_shards, "run.name=plain")

    lines = metrics(tmp_path / "slowed")
    for line in lines.values():
        assert line["time/slowest_rank"] == 1
        assert line["time/slowest_rank_ratio"] > 1
        assert line["data/wait_s"] >= SHOWN * WINDOWS * READ_S
        assert line["time/step_s"] >= WINDOWS * READ_S + MICRO_BATCHES * HEAD_S
    assert "rank 1 is slow: " in output
    assert "training waits for data: " in output
    assert "Raise data.num_workers (now 0)" in output

    folder = tmp_path / "slowed" / "profile"
    assert {path.name for path in folder.iterdir()} == {f"{RECORDED}.pt.trace.json.gz", f"{RECORDED}.txt"}
    table = (folder / f"{RECORDED}.txt").read_text()
    assert table in (tmp_path / "slowed" / "train.log").read_text()
    parts = totals(table)
    assert sum(parts.values()) == pytest.approx(2 * parts["step"], abs=1e-3)  # the parts, and their sum
    assert parts["head 2"] >= MICRO_BATCHES * HEAD_S
    assert parts["communication"] > parts["data"]  # rank 0, which records, waits for rank 1's reads
    assert parts["communication"] > WINDOWS * READ_S / 2
    assert 0 < parts["optimizer"] < parts["step"] / 2
    with gzip.open(folder / f"{RECORDED}.pt.trace.json.gz") as file:
        names = [event["name"] for event in json.load(file)["traceEvents"]]
    assert names.count("train: step") == 3

    plain = metrics(tmp_path / "plain")
    assert {step: without_times(line) for step, line in plain.items()} == {
        step: without_times(line) for step, line in lines.items()
    }
    assert not (tmp_path / "plain" / "profile").exists()
