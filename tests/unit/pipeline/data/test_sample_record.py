"""The record of samples, as runs write it: continued, cut, killed, and on a full disk."""

import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.config.schema import LogConfig
from pipeline.data.sample_record import SampleRecord, remove_after, samples_by_step
from pipeline.runtime.world import World
from tests.conftest import REPOSITORY
from tests.helpers.recorded import GOOD, recorded_run

WORLD = World(rank=0, local_rank=0, world_size=1, local_world_size=1)


def opened(run_dir: Path, *, is_on: bool = True, resumed_step: int = 0) -> SampleRecord:
    return SampleRecord(
        run_dir, log=LogConfig(samples=is_on), ranks_per_replica=1, world=WORLD, resumed_step=resumed_step
    )


def test_the_samples_of_a_step_are_those_of_all_ranks(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run", {1: [[0, [3, 3]]], 3: [[0, [5]], [1, [5]]]}, {}, {1: [[0, [1, [2, 9]]]]})
    assert samples_by_step(run) == {1: Counter({(0, 3): 2, (0, 1): 1, (0, 2): 1}), 3: Counter({(0, 5): 1, (1, 5): 1})}


def write(run_dir: Path, *, steps: range, resumed_step: int = 0) -> None:
    with opened(run_dir, resumed_step=resumed_step) as record:
        for step in steps:
            record.write(step, [(0, [step, (100 + step, 7)])])


def recorded(run_dir: Path) -> dict[int, list[int]]:
    return {step: sorted(sample for _, sample in had) for step, had in samples_by_step(run_dir).items()}


def test_a_record_continues_from_the_resumed_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, steps=range(1, 8))
    write(run, steps=range(5, 9), resumed_step=4)
    assert recorded(run) == {step: [step, 100 + step] for step in range(1, 9)}
    text = (run / "samples" / "rank_00000.jsonl").read_text()
    assert text.splitlines()[0] == '{"step":1,"samples":[[0,[1,[101,7]]]]}'
    write(run, steps=range(1, 3))
    assert recorded(run) == {1: [1, 101], 2: [2, 102]}, "a run that starts again has a new record"


def test_files_of_ranks_that_no_longer_exist_are_cut_too(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run", GOOD, GOOD, {})
    remove_after(run / "samples", step=2)
    assert sorted(samples_by_step(run)) == [1, 2]
    assert sorted(path.name for path in (run / "samples").iterdir()) == [f"rank_0000{rank}.jsonl" for rank in range(3)]


@pytest.mark.parametrize(
    "torn", ['{"step":3,"sam', '{"step":3,"samples":[[0,[1,2,3]]]}', "\0\0\0\0", '{"step":3}\n', "7\n"]
)
def test_an_incomplete_last_line_is_removed(tmp_path: Path, torn: str) -> None:
    """Also one that is whole but for its end: the next one would be appended to it."""
    run = tmp_path / "run"
    write(run, steps=range(1, 3))
    with (run / "samples" / "rank_00000.jsonl").open("a") as file:
        file.write(torn)
    assert sorted(samples_by_step(run)) == [1, 2]
    write(run, steps=range(3, 5), resumed_step=2)
    assert recorded(run) == {step: [step, 100 + step] for step in range(1, 5)}


def test_nothing_is_written_without_log_samples(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with opened(run, is_on=False) as record:
        record.write(1, [(0, [1])])
    assert not run.exists()


def test_a_run_without_a_record_still_removes_steps_that_run_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, steps=range(1, 6))
    with opened(run, is_on=False, resumed_step=3):
        pass
    assert sorted(samples_by_step(run)) == [1, 2, 3]


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.config.schema import LogConfig
from pipeline.data.sample_record import SampleRecord
from pipeline.runtime.world import World
world = World(rank=0, local_rank=0, world_size=1, local_world_size=1)
log = LogConfig(samples=True)
record = SampleRecord(Path(sys.argv[1]), log=log, ranks_per_replica=1, world=world, resumed_step=0)
for step in range(1, 4):
    record.write(step, [(0, [step])])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_written_lines_survive_a_kill(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", KILLED, str(run)], cwd=REPOSITORY, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL
    assert recorded(run) == {1: [1], 2: [2], 3: [3]}


def test_lines_that_a_full_disk_refuses_are_written_later(tmp_path: Path) -> None:
    run = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(run) as record:
        record.write(1, [(0, [1])])
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))
        try:
            record.write(2, [(0, [2])])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert recorded(run) == {1: [1]}
        record.write(3, [(0, [3])])
    assert recorded(run) == {1: [1], 2: [2], 3: [3]}


def test_what_is_no_file_is_left_alone_with_a_warning(tmp_path: Path, pipeline_log: pytest.LogCaptureFixture) -> None:
    run = recorded_run(tmp_path / "run", GOOD)
    os.mkfifo(run / "samples" / "rank_00001.jsonl")
    (run / "samples" / "rank_00002.jsonl").mkdir()
    remove_after(run / "samples", step=2)
    assert [record.getMessage().partition("samples/")[2] for record in pipeline_log.records] == [
        "rank_00001.jsonl keeps steps after 2, which will run again: "
        f"{run}/samples/rank_00001.jsonl cannot be read: it is a FIFO, not a file",
        "rank_00002.jsonl keeps steps after 2, which will run again: "
        f"{run}/samples/rank_00002.jsonl cannot be read: it is a folder, not a file",
    ]
    assert (run / "samples" / "rank_00000.jsonl").read_text().count("\n") == 2


def test_a_record_that_cannot_be_written_says_so_once_and_ends_nothing(
    tmp_path: Path, pipeline_log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "samples").write_text("no folder")
    with opened(tmp_path) as record:
        record.write(1, [(0, [1])])
        record.write(2, [(0, [2])])
    waits, lost = (found.getMessage() for found in pipeline_log.records)
    assert waits.startswith("the record of samples waits until it can be written: ")
    assert lost.startswith("the record of samples lost its last steps: ")
