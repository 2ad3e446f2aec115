"""The contract of every command: a user's mistake is one clear line and exit code 2, never a traceback.

A `UserError` says what is wrong, which value was given, and what to do. Any other exception is a bug, and keeps its
traceback.
"""

import argparse
import contextlib
import errno
import os
import signal
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
USER_ERROR_EXIT_CODE = 2
_INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT  # the code that shells report for a process killed by this signal
_UNREAD_EXIT_CODE = 128 + signal.SIGPIPE


class UserError(ValueError):
    """A mistake of the user; the message says what is wrong, which value was given, and what to do."""


def command_parser(program: str, *, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser that every command starts from, with the same form of errors, `--help` and `--version`.

    Args:
        program: the module, as in `python -m program`; usage and error messages begin with it.
        description: text that `--help` shows first, with its line breaks.
        epilog: examples that `--help` shows last, with their line breaks.
    """
    parser = _CommandParser(
        prog=f"python -m {program}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version of this project and exit")
    return parser


def version() -> str:
    """Return the version of this project from pyproject.toml."""
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["version"]


class _CommandParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print usage and the error under the same prefix as a `UserError`, and exit."""
        self.print_usage(sys.stderr)
        self.exit(USER_ERROR_EXIT_CODE, f"{self.prog.removeprefix('python -m ')}: error: {message}\n")


class _ShowVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"{parser.prog.removeprefix('python -m ')} {version()}")
        parser.exit()


def exit_on_user_error(main: Callable[[], None], *, program: str) -> None:
    """Run `main`, and turn what a user may cause into one line on stderr and an exit code.

    - A `UserError` becomes `program: error: message` and exit code 2. If many ranks meet the same mistake, only the
      first one on each node prints it.
    - Ctrl-C ends with exit code 130.
    - A closed pipe, as after `| head`, ends with exit code 141.
    - A full disk under stdout or stderr is a user's mistake: exit code 2.
    """
    try:
        main()
        _flush()  # otherwise the interpreter does it at exit, where exceptions cannot be caught
    except UserError as error:
        with contextlib.suppress(OSError):
            _flush()
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED_EXIT_CODE)
    except OSError as error:
        broken = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _fails_as(error, stream)]
        if not broken:
            raise
        for stream in broken:  # discard what is still in their buffers
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if error.errno == errno.EPIPE:
            print(f"{program}: stopped: its output is no longer read", file=sys.stderr)
            sys.exit(_UNREAD_EXIT_CODE)
        print(f"{program}: error: cannot print: {error.strerror}; make room for its output", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)


def _flush() -> None:
    if sys.stdout is not None:  # None if the process was started with stdout closed
        sys.stdout.flush()


def _fails_as(error: OSError, stream: TextIO) -> bool:
    """Return True if writing to a stream fails in the same way as `error`, which may come from another file."""
    if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT):
        return False
    try:
        os.write(stream.fileno(), b"\n")
    except OSError as its_own:
        return its_own.errno == error.errno
    return False


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line; the name of its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def below_one(arguments: argparse.Namespace, *names: str) -> list[str]:
    """Return a problem for each of these options that was given a value below 1."""
    given = [(name, getattr(arguments, name)) for name in names]
    return [f"--{name} must be at least 1, not {value}" for name, value in given if value is not None and value < 1]


def raise_if_any(problems: Sequence[str], *, heading: str) -> None:
    """Raise one `UserError` that lists every problem, so that a user can fix all of them at once."""
    if len(problems) == 1:
        raise UserError(f"{heading}: {problems[0]}")
    if problems:
        raise UserError(f"{heading}:" + "".join(f"\n  - {problem}" for problem in problems))
