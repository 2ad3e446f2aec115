"""Commands of this project that wait at a chosen call, so that what a test does to them comes at one moment always.

    python -m tests.helpers.held ARGUMENTS      with a `Hold`'s variables in the environment

A test that looks again and again whether a process has come somewhere may itself be kept waiting, and find it done.
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

PATIENCE_S = 300.0  # for what happens within seconds on a machine that has nothing else to do


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Where a command waits, in whichever of its processes comes there.

    command: the module whose `main` runs.  at: module:name of a function, or of a method.
    after: how many calls of it a process makes before the one that waits; nothing of that one is done.
    file: is there while one waits; all go on once it is removed.
    """

    command: str
    at: str
    after: int
    file: Path

    @property
    def variables(self) -> dict[str, str]:
        """What `python -m tests.helpers.held` is told by."""
        return {"HELD_COMMAND": self.command, "HELD_AT": self.at, "HELD_AFTER": str(self.after),
                "HELD_FILE": str(self.file)}  # fmt: skip

    def reached(self, process: subprocess.Popen[Any]) -> None:
        """Wait until the call is reached."""
        wait_until(self.file.exists, process)

    def release(self) -> None:
        """Let the command go on."""
        self.file.unlink()


def wait_until(condition: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait for something that happens soon, before the process ends that does it."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process is None or process.poll() is None, "it ended before"
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s"
        time.sleep(0.01)


def _waits(function: Callable[..., Any], *, after: int, file: Path) -> Callable[..., Any]:
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


def _put_in_place() -> None:
    module, _, name = os.environ["HELD_AT"].partition(":")
    *outer, last = name.split(".")
    owner = functools.reduce(getattr, outer, importlib.import_module(module))
    waiting = _waits(
        getattr(owner, last), after=int(os.environ["HELD_AFTER"]), file=Path(os.environ["HELD_FILE"])
    )  # fmt: skip
    setattr(owner, last, waiting)


if __name__ in ("__main__", "__mp_main__"):  # the second in worker processes, which import what was run
    _put_in_place()
if __name__ == "__main__":
    from common.command_line import exit_on_user_error

    exit_on_user_error(importlib.import_module(os.environ["HELD_COMMAND"]).main, program=os.environ["HELD_COMMAND"])
