"""Commands of this project that wait at a chosen call, so that a test always interferes at the same moment.

    python -m tests.helpers.held ARGUMENTS      with the variables of a `Hold` in the environment

A test that only polls the progress of a process may itself be delayed, and find the process finished.
"""

import functools
import importlib
import itertools
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE_S = 300.0  # for events that take seconds on an idle machine


@dataclass(frozen=True, kw_only=True)
class Hold:
    """The call at which a command waits, in every one of its processes that reaches it."""

    command: str
    """The module whose `main` runs."""
    at: str
    """The function or method that waits before it does anything, as module:name."""
    after: int
    """Number of calls in a process before the call that waits."""
    file: Path
    """Exists while a process waits; all processes continue once it is removed."""

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that `python -m tests.helpers.held` reads."""
        return {"HELD_COMMAND": self.command, "HELD_AT": self.at, "HELD_AFTER": str(self.after),
                "HELD_FILE": str(self.file)}  # fmt: skip

    def reached(self, process: subprocess.Popen[Any]) -> None:
        """Wait until a process has reached the call."""
        wait_until(self.file.exists, process)

    def release(self) -> None:
        """Let the command continue."""
        self.file.unlink()


def wait_until(condition: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until a condition is true; fail if the process ends before, or after `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process is None or process.poll() is None, "the process ended before"
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s"
        time.sleep(0.01)


def _held_at(function: Callable[..., Any], *, after: int, file: Path) -> Callable[..., Any]:
    calls, is_released = itertools.count(), False

    @functools.wraps(function)
    def waiting(*arguments: Any, **options: Any) -> Any:
        nonlocal is_released
        if next(calls) >= after and not is_released:
            file.touch()
            while file.exists():
                time.sleep(0.01)
            is_released = True
        return function(*arguments, **options)

    return waiting


def _install() -> None:
    module, _, name = os.environ["HELD_AT"].partition(":")
    *outer, last = name.split(".")
    owner = functools.reduce(getattr, outer, importlib.import_module(module))
    waiting = _held_at(
        getattr(owner, last), after=int(os.environ["HELD_AFTER"]), file=Path(os.environ["HELD_FILE"])
    )  # fmt: skip
    setattr(owner, last, waiting)


if __name__ in ("__main__", "__mp_main__"):  # worker processes import this module as __mp_main__
    _install()
if __name__ == "__main__":
    from common.endings import exit_on_user_error

    exit_on_user_error(importlib.import_module(os.environ["HELD_COMMAND"]).main, program=os.environ["HELD_COMMAND"])
