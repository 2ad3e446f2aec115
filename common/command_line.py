"""The contract of every command: a user's mistake is one clear line and exit code 2, never a traceback.

A `UserError` says what is wrong, which value was given, and what to do. Any other exception is a
defect of ours and keeps its traceback.
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
_INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT  # as shells have it
_UNREAD_EXIT_CODE = 128 + signal.SIGPIPE  # so is this


class UserError(ValueError):
    """A mistake of the person at the keyboard. The message is for them: what, which value, what to do."""


def command_parser(program: str, *, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser that every command starts from: the same name, the same errors, `--help` and `--version`.

    Args:
        program: the module, as in `python -m program`; it opens usage and error messages.
        description: shown by `--help` with its line breaks, as is `epilog`, which holds examples.
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
    """Return the version of this project, as pyproject.toml has it."""
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
    """Run `main`; a `UserError` becomes `program: error: message` on stderr and exit code 2, Ctrl-C a line and 130.

    Where nobody reads what is printed any more, as after `| head`, it is a line and 141; where there is no room for it,
    a user's mistake.

    Of many ranks that meet the same mistake, one per node says so.
    """
    try:
        main()
        _flush()  # or the interpreter does, and its exceptions cannot be caught
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
        for stream in broken:  # what is still in their buffers goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if error.errno == errno.EPIPE:
            print(f"{program}: stopped: nobody reads what it prints any more", file=sys.stderr)
            sys.exit(_UNREAD_EXIT_CODE)
        print(f"{program}: error: cannot print: {error.strerror}; make room for its output", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)


def _flush() -> None:
    if sys.stdout is not None:  # as it is where it was closed before
        sys.stdout.flush()


def _fails_as(error: OSError, stream: TextIO) -> bool:
    """Return whether what was raised is what a stream raises when a line end is printed to it."""
    if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT):
        return False
    try:
        os.write(stream.fileno(), b"\n")
    except OSError as its_own:
        return its_own.errno == error.errno
    return False


def below_one(arguments: argparse.Namespace, *names: str) -> list[str]:
    """Return a problem for each of these options that was given, and is less than 1."""
    given = [(name, getattr(arguments, name)) for name in names]
    return [f"--{name} must be at least 1, not {value}" for name, value in given if value is not None and value < 1]


def raise_if_any(problems: Sequence[str], *, heading: str) -> None:
    """Raise one `UserError` that lists every problem, so that a user mends them all at once."""
    if len(problems) == 1:
        raise UserError(f"{heading}: {problems[0]}")
    if problems:
        raise UserError(f"{heading}:" + "".join(f"\n  - {problem}" for problem in problems))
