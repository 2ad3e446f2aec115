"""Ends of commands: users' mistakes, bugs, Ctrl-C at any moment, closed pipes and full disks."""

from common.endings import exit_on_user_error

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from common.command_line import USER_ERROR_EXIT_CODE, UserError
from tests.conftest import REPOSITORY


def test_a_user_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        print("some output")
        raise UserError("--seq_len must be at least 1, not 0")

    with pytest.raises(SystemExit) as stopped:
        exit_on_user_error(main, program="write_shards")
    assert stopped.value.code == USER_ERROR_EXIT_CODE == 2
    assert capsys.readouterr().err == "write_shards: error: --seq_len must be at least 1, not 0\n"


def test_bugs_keep_their_traceback() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_on_user_error(main, program="p")


def test_ctrl_c_is_a_line_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        exit_on_user_error(main, program="stats")
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\nstats: interrupted\n"


@pytest.mark.parametrize("n_lines", [1, 100_000])  # output that fits into the buffer, and output that does not
def test_a_closed_pipe_is_a_line_and_141(n_lines: int, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom common.endings import exit_on_user_error\n"
        "def main():\n    for i in range(int(sys.argv[1])):\n        print(i)\n"
        "exit_on_user_error(main, program='stats')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, str(program), str(n_lines)]
    done = subprocess.run(words, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "stats: stopped: its output is no longer read\n")


@pytest.mark.parametrize(
    ("printed_to", "code", "message"),
    [
        ("/dev/full", 2, "stats: error: cannot print: No space left on device; make room for its output\n"),
        ("&-", 0, ""),
    ],
)
def test_a_full_and_a_closed_stdout(printed_to: str, code: int, message: str) -> None:
    call = "from common.endings import *; exit_on_user_error(lambda: print(7), program='stats')"
    command = f"{shlex.join([sys.executable, '-c', call])} >{printed_to}"
    done = subprocess.run(command, shell=True, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, message)


def test_a_mistake_is_reported_even_if_stdout_is_closed() -> None:
    call = (
        "from common.endings import *\nfrom common.command_line import *\ndef main():\n    raise UserError('wrong')\n"
        "exit_on_user_error(main, program='stats')"
    )
    command = f"{shlex.join([sys.executable, '-c', call])} >&-"
    done = subprocess.run(command, shell=True, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "stats: error: wrong\n")


def test_a_broken_pipe_elsewhere_is_a_bug() -> None:
    def main() -> None:
        raise BrokenPipeError(errno.EPIPE, "a socket's")

    with pytest.raises(BrokenPipeError):
        exit_on_user_error(main, program="p")


def test_success_does_not_exit() -> None:
    calls: list[str] = []
    exit_on_user_error(lambda: calls.append("ran"), program="p")
    assert calls == ["ran"]


@pytest.mark.parametrize(("local_rank", "prints"), [("0", True), ("1", False), ("2", True), ("x", True)])
def test_one_rank_per_node_prints_the_message(
    local_rank: str, prints: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So does a process whose variables are those of no rank: nobody else would."""

    def main() -> None:
        raise UserError("wrong")

    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as exit_info:
        exit_on_user_error(main, program="p")
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == ("p: error: wrong\n" if prints else "")


def test_messages_are_safe_for_a_terminal_and_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("\x1b]0;title\x07 at http://me:secret@host: " + "x" * 10**8)

    with pytest.raises(SystemExit):
        exit_on_user_error(main, program="p")
    message = capsys.readouterr().err
    assert message.startswith(r"p: error: \x1b]0;title\x07 at http://***@host: xxx")
    assert len(message) < 21_000


COMMAND = """
from common.endings import exit_on_user_error

import atexit, os, signal, sys
from pathlib import Path
from common.command_line import UserError

where = sys.argv[1]

def interrupt(place):
    if where == place:
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(10**6))

def main():
    interrupt("main")
    if where == "mistake":
        raise UserError("wrong \\udcff")
    if where == "exit":
        print("as planned", "\\udcff")
        sys.exit(1)
    if where == "first file":
        with Path("first").open("w") as file:
            print("printed")
            os.system("echo by a child")
            file.write("content")

atexit.register(interrupt, "end")
interrupt("imports")
if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.late")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a command of a package that has the name of one of ours."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "late.py").write_text(COMMAND)
    return tmp_path


def run(folder: Path, what: str, *, redirection: str = "", **variables: str) -> tuple[int, str]:
    """Return the exit code and the standard error of the command."""
    command = f"{shlex.join([sys.executable, '-m', 'benchmarks.late', what])} {redirection}"
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit $?"], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("moment", ["imports", "main", "end"])
def test_ctrl_c_is_a_line_and_130_at_any_moment(moment: str, folder: Path) -> None:
    assert run(folder, moment) == (130, "\nbenchmarks.late: interrupted\n")
    assert run(folder, moment, LOCAL_RANK="1", LOCAL_SIZE="2") == (130, "")
    assert run(folder, moment, redirection="2>/dev/full") == (130, "")
    assert run(folder, moment, redirection="2>&-") == (130, "")


def test_ctrl_c_that_is_ignored_stays_ignored(folder: Path) -> None:
    command = f"trap '' INT; {shlex.join([sys.executable, '-m', 'benchmarks.late', 'main'])}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == 0


NO_ROOM = "benchmarks.late: error: cannot print: No space left on device; make room for its output\n"


@pytest.mark.parametrize(
    ("what", "redirection", "code", "message"),
    [
        ("exit", ">/dev/null", 1, ""),
        (
            "exit",
            ">/dev/full",
            2,
            NO_ROOM,
        ),
        ("exit", ">&-", 1, ""),
        ("mistake", ">/dev/full", 2, "benchmarks.late: error: wrong \\udcff\n"),
        ("mistake", "2>/dev/full", 2, ""),
        ("mistake", "2>&-", 2, ""),
        ("mistake", ">&- 2>&-", 2, ""),
    ],
)
def test_streams_that_cannot_be_written_change_no_exit_code(
    what: str, redirection: str, code: int, message: str, folder: Path
) -> None:
    assert run(folder, what, redirection=redirection) == (code, message)


@pytest.mark.parametrize("redirection", [">&-", "<&- >&- 2>&-"])
def test_what_is_printed_to_a_closed_stream_does_not_land_in_a_file(redirection: str, folder: Path) -> None:
    assert run(folder, "first file", redirection=redirection) == (0, "")
    assert (folder / "first").read_text() == "content"


def test_torchruns_report_says_what_was_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch itself reads the file of a rank that failed."""
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    def main() -> None:
        raise UserError("wrong")

    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    with pytest.raises(SystemExit):
        exit_on_user_error(main, program="p")
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    assert failure.message == "p: error: wrong"
