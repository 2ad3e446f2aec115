"""When a job starts again: the decision over whole histories, and how it reads a run directory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.requeue import Ends, RunProgress, decide, progress_of, read_ends
from pipeline.runtime.stop import ExitCode
from tests.conftest import REPOSITORY, run_module


def starts(*ends: tuple[int, int, int]) -> list[bool]:
    """Return, for each end (exit code, step, step of the newest checkpoint), whether the job starts again."""
    again, before = [], None
    for exit_code, step, checkpoint in ends:
        progress = RunProgress(step=step, checkpoint=checkpoint)
        reason, before = decide(exit_code, progress=progress, job="7", before=before)
        again.append(reason is None)
    return again


@pytest.mark.parametrize("exit_code", [0, 2, 65, 74, 77])
def test_a_job_does_not_start_again_after_a_final_code(exit_code: int) -> None:
    assert starts((exit_code, 5, 0)) == [False]


@pytest.mark.parametrize("exit_code", [1, 75, 76, 134, 137, 138, 143])
def test_it_starts_again_after_any_other_code(exit_code: int) -> None:
    assert starts((exit_code, 5, 0)) == [True]


def test_every_exit_code_of_a_run_is_either_final_or_not() -> None:
    final = {code for code in ExitCode if starts((code, 5, 0)) == [False]}
    assert set(ExitCode) - final == {ExitCode.STOPPED, ExitCode.HUNG}


def test_the_second_end_at_one_step_is_the_last() -> None:
    assert starts((1, 12, 10), (1, 12, 10)) == [True, False]
    assert starts((1, 12, 10), (1, 13, 10), (1, 12, 10)) == [True, True, False]
    assert starts((1, 0, 0), (137, 0, 0)) == [True, False]
    assert starts((75, 10, 10), (75, 10, 10)) == [True, False]  # the time limit is shorter than a start


def test_a_new_checkpoint_clears_the_memory() -> None:
    assert starts(*((75, 10 * i, 10 * i) for i in range(1, 30))) == [True] * 29
    assert starts(*((137, 10 * i + 3, 10 * i) for i in range(1, 30))) == [True] * 29


def test_failures_at_different_steps_without_a_checkpoint_are_limited() -> None:
    assert starts(*((1, 11 + i, 10) for i in range(6))) == [True, True, True, True, False, False]


def test_a_new_job_starts_with_an_empty_memory() -> None:
    before = Ends(job="6", checkpoint=10, steps=(12,))
    reason, ends = decide(1, progress=RunProgress(step=12, checkpoint=10), job="7", before=before)
    assert (reason, ends) == (None, Ends(job="7", checkpoint=10, steps=(12,)))


def test_progress_is_the_last_whole_line_or_the_newest_checkpoint(tmp_path: Path) -> None:
    assert progress_of(tmp_path) == RunProgress(step=0, checkpoint=0)
    for name in ("step_00000010", "step_00000020", ".step_00000030.ab.partial", "step_new"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert progress_of(tmp_path) == RunProgress(step=20, checkpoint=20)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 22}\n{"step": 23}\n{"step": 2')
    assert progress_of(tmp_path) == RunProgress(step=23, checkpoint=20)
    metrics.write_bytes(b'{"step": 24}\n\0\0\0\n\xff\n[]\n{}\n')  # as after a power cut
    assert progress_of(tmp_path) == RunProgress(step=24, checkpoint=20)


def test_the_command_remembers_and_decides(tmp_path: Path) -> None:
    def ask(exit_code: int, job: str) -> tuple[int, str]:
        done = run_module("pipeline.requeue", tmp_path, "--exit_code", exit_code, "--job", job)
        assert done.stderr == ""
        return done.returncode, done.stdout

    assert ask(137, "7") == (0, "")
    code, said = ask(1, "7")
    assert code == 3
    assert "job 7 does not start again: it ended twice after step 0" in said
    assert json.loads((tmp_path / "requeues.json").read_text()) == {"job": "7", "checkpoint": 0, "steps": [0, 0]}
    nulls, no_steps = "[null, null, null, null, null]", '{"job": "7", "checkpoint": 0, "steps": "12345"}'
    for text in ("{", "[]", no_steps, '{"job": 7, "checkpoint": 0, "steps": []}', no_steps.replace('"12345"', nulls)):
        (tmp_path / "requeues.json").write_text(text)
        assert read_ends(tmp_path / "requeues.json") is None
    assert ask(1, "8") == (0, "")
    done = run_module("pipeline.requeue", tmp_path / "nowhere", "--exit_code", 1, "--job", 7)
    assert done.returncode == 2
    assert "is not a run directory" in done.stderr


@pytest.mark.parametrize("trouble", ["full disk", "a folder in the way", "damaged memory"])
def test_in_doubt_the_job_starts_again(tmp_path: Path, trouble: str) -> None:
    """And a final exit code stays final."""
    memory = tmp_path / "requeues.json"
    if trouble == "a folder in the way":
        memory.mkdir()
    elif trouble == "damaged memory":
        memory.write_text("[" * 100_000)
    limit = "ulimit -f 0;" if trouble == "full disk" else ""  # no file may grow
    said = "" if trouble == "damaged memory" else f"warning: {memory} cannot be written: "
    for exit_code, expected in ((137, 0), (0, 3)):
        command = f"{limit} exec {sys.executable} -m pipeline.requeue {tmp_path} --exit_code {exit_code} --job 7"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=REPOSITORY)
        assert (done.returncode, done.stderr[: len(said)]) == (expected, said), done.stderr
        assert "Traceback" not in done.stderr


def test_only_the_runs_own_checkpoints_are_progress(tmp_path: Path) -> None:
    for name in ("step_00000010", "step_00000020.bad", "step_99"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000030").touch()
    assert progress_of(tmp_path) == RunProgress(step=10, checkpoint=10)
