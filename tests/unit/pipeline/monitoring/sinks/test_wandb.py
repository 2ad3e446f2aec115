"""Weights & Biases, if installed: the scalars it gets, the run that a resume continues, and a failed start."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.small_files import BadFileError
from pipeline.monitoring.sinks.wandb import run_id
from tests.conftest import REPOSITORY

WANDB_RUN = """
import sys
from dataclasses import replace
from pathlib import Path
from pipeline.config.schema import LogConfig
from pipeline.monitoring.sinks.wandb import WeightsAndBiases
from tests.helpers.monitored import config_in
config = replace(config_in(Path(sys.argv[1])), log=LogConfig(wandb="project"))
config.run_dir.mkdir(exist_ok=True)
sink = WeightsAndBiases(config)
for step in (1, 2):
    sink.write(step, {"loss/total": 10.0 * step})
sink.write(2, {"val/loss_head_1": 3.0})
sink.close()
"""


def run_with_wandb(directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb==0.31.0")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", WANDB_RUN, str(directory)], cwd=REPOSITORY, stdin=subprocess.DEVNULL,
        env={**inherited, "PYTHONPATH": path, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_wandb_gets_the_same_scalars_and_continues_the_same_run(tmp_path: Path) -> None:
    """Read offline from the file that wandb would upload."""
    for _ in range(2):
        done = run_with_wandb(tmp_path, WANDB_MODE="offline")
        assert (done.returncode, done.stderr) == (0, "")
    runs = sorted((tmp_path / "try" / "wandb").glob("offline-run-*"))
    assert len({run.name.rpartition("-")[2] for run in runs}) == 1
    (file,) = runs[0].glob("run-*.wandb")
    assert wandb_history(file) == {1: {"loss/total": 10.0}, 2: {"loss/total": 20.0, "val/loss_head_1": 3.0}}


def test_wandb_that_cannot_start_warns_once_and_does_not_end_the_run(tmp_path: Path) -> None:
    done = run_with_wandb(tmp_path, HOME=str(tmp_path))  # without an API key
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wandb failed and gets nothing more until the run is started again: No API key") == 1


def wandb_history(file: Path) -> dict[int, dict[str, float]]:
    """Return step -> scalars from wandb's own file of a run."""
    from wandb.proto import wandb_internal_pb2

    history: dict[int, dict[str, float]] = {}
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            history[items["_step"]] = {key: value for key, value in items.items() if not key.startswith("_")}
    return history


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format, after the 7 bytes that wandb's files begin with.

    A log is blocks of 32 KiB. They hold parts of records, each after its checksum (4 bytes), length (2) and kind (1):
    whole, first, middle or last. The rest of a block that is too small for another part is zeros.
    """
    at, record, whole, last = 7, b"", 1, 4
    while at + 7 <= len(log):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        record += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (whole, last):
            yield record
            record = b""


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_an_id_file_that_is_no_file_is_not_waited_for(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "wandb_id")
    with pytest.raises(BadFileError, match="wandb_id cannot be read: it is a"):
        run_id(tmp_path)


@pytest.mark.parametrize("text", ["", "../x", "a" * 99, "\0" * 9])
def test_an_id_file_without_an_id_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "wandb_id").write_text(text)
    with pytest.raises(ValueError, match="which is not an id of wandb's; delete it"):
        run_id(tmp_path)


def test_a_run_keeps_its_id(tmp_path: Path) -> None:
    assert run_id(tmp_path) == run_id(tmp_path)
