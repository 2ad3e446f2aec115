"""Interactive mode through a real terminal and a real pipe."""

import fcntl
import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from pipeline.inference.decoding.interactive import write
from tests.conftest import REPOSITORY
from tests.helpers.exports import exported
from tests.helpers.scripted import scripted_model

PROMPT = ">>> "
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Interactive mode of a model that ends after "a" and counts forever after a digit."""
    folder = exported(tmp_path_factory.mktemp("scripted") / "export", scripted_model("01234567890aé😀b"))
    return [sys.executable, "-m", "pipeline.generate", "--ckpt_dir", str(folder), "--device", "cpu", "--interactive"]


def _take_terminal() -> None:
    """Make standard input the controlling terminal, and restore Ctrl-C, which is ignored if tests run with `&`."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A process in its own terminal, and the text it has shown there."""

    def __init__(self, command: list[str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "dumb"},
            start_new_session=True, preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(slave)
        self._poll = (
            select.poll()
        )  # select.select does not accept descriptors above 1,023, which a long test run reaches
        self._poll.register(self._master, select.POLLIN)
        self._shown = b""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def until(self, text: str, *, timeout_s: float = 300) -> str:
        """Wait for a text; return what was shown since the last one, up to its end."""
        deadline = time.monotonic() + timeout_s
        while text.encode() not in self._shown:
            ready = self._poll.poll(1000 * max(0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {self._shown[-2000:]!r}"
            self._shown = (self._shown + os.read(self._master, 65536)).replace(b"\r\n", b"\n")
        before, _, self._shown = self._shown.partition(text.encode())
        return before.decode() + text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(command: list[str]) -> Iterator[Terminal]:
    terminal = Terminal([*command, "--max_seq_len", "100000"])
    yield terminal
    terminal.close()


def test_a_terminal(terminal: Terminal) -> None:
    assert "Each line is a prompt of its own" in terminal.until(PROMPT)

    terminal.type("a\n")
    assert terminal.until(PROMPT).startswith("a\né😀b\n[8 tokens, 3.50 tokens per forward, ")
    terminal.type(f"{UP}\n")  # history
    assert "é😀b\n[8 tokens, " in terminal.until(PROMPT)
    terminal.type("\n")
    assert terminal.until(PROMPT) == f"\n{PROMPT}"

    terminal.type("5\n")
    terminal.until("6789" + "0123456789" * 5)  # it streams; filling the caches would take minutes
    terminal.type(CTRL_C)
    assert "tokens/s]" not in terminal.until(PROMPT)
    terminal.type("half a line")
    terminal.until("half a line")
    # if readline is busy with a key, Python handles Ctrl-C only at the next key
    terminal.type(f"{CTRL_C}\na\n")
    assert "[1 token," not in terminal.until("é😀b\n[8 tokens, ")  # and nothing is left of the stopped completion
    terminal.until(PROMPT)

    terminal.type("x" * 3 + "\n")
    assert terminal.until(PROMPT).startswith("xxx\n\n[1 token, 1.00 tokens per forward, ")
    terminal.type(CTRL_D)
    assert terminal.process.wait(timeout=300) == 0


def test_a_pipe(command: list[str]) -> None:
    lines = [b"a", b"caf\xe9", b"x" * 30, b"", "😀".encode()]
    done = subprocess.run(
        [*command, "--max_seq_len", "24"], cwd=REPOSITORY, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        input=b"\n".join(lines), capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    shown = [answer.splitlines() for answer in done.stdout.decode().split(PROMPT)]
    assert shown[0] == []
    assert shown[1][0] == "é😀b"
    assert shown[1][1].startswith("[8 tokens, ")
    assert shown[2] == [r"error: bad prompts: prompt 'caf\udce9' is not text (UTF-8)"]
    assert "has 31 tokens, which leaves no room in --max_seq_len 24" in shown[3][0]
    assert shown[4] == []
    assert shown[5][0] == "b"
    assert shown[6:] == [[""]]


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "a\\x1b[2Jb\n"), (False, "a\x1b[2Jb\n")])
def test_completions_do_not_command_the_terminal_and_pipes_get_them_unchanged(
    is_terminal: bool, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    write("a\x1b[2Jb\n")
    assert stream.getvalue() == shown
