"""The contract of every command: a user's mistake is one clear line and exit code 2, never a traceback.

A `UserError` says what is wrong, which value was given, and what to do. Any other exception is a bug, and keeps its
traceback. An option that takes a number declares the range beside it, with `whole_number` or `real_number` as its type;
the parser refuses all numbers that are out of range together. Messages are made safe for a terminal where they are
printed (`wording.for_terminal`), since they hold names that others chose.
"""

import argparse
import contextlib
import itertools
import operator
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NoReturn, TextIO

from common.wording import for_terminal, meant, shortened

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
USER_ERROR_EXIT_CODE = 2
_MOST_CHARACTERS = 20_000  # of a message
_MOST_NAME_BYTES, _MOST_PATH_BYTES = 255, 4096  # Linux's NAME_MAX and PATH_MAX, which counts the NUL at the end
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MOST_PROBLEMS = 100  # that one message lists


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


@dataclass(frozen=True)
class _BadNumber:
    """Stands among the parsed arguments for a number that is refused, until all of them are reported together."""

    text: str
    wanted: str

    def __str__(self) -> str:
        is_plain = re.fullmatch(r"[!-~]{1,40}", self.text)
        given = self.text if is_plain else repr(self.text if len(self.text) <= 40 else f"{self.text[:37]}...")
        return f"must be {self.wanted}, not {given}"


def whole_number(*, at_least: int, at_most: int) -> Callable[[str], int | _BadNumber]:
    """Return the `type` of an option that takes a whole number; 1e5 is 100,000."""

    def parsed(text: str) -> int | _BadNumber:
        with contextlib.suppress(InvalidOperation):
            number = Decimal(text)  # compared before it becomes an int, as 1e999999999 has too many digits
            if number.is_finite() and at_least <= number <= at_most and number == int(number):
                return int(number)
        return _BadNumber(text, f"a whole number from {at_least:,} to {at_most:,}")

    return parsed


def real_number(
    *, at_least: float | None = None, above: float | None = None, at_most: float | None = None,
    below: float | None = None,
) -> Callable[[str], float | _BadNumber]:  # fmt: skip
    """Return the `type` of an option that takes a number; give one lower bound and one upper bound."""
    bounds = [
        (words, compare, bound)
        for words, compare, bound in (
            ("at least", operator.ge, at_least),
            ("above", operator.gt, above),
            ("at most", operator.le, at_most),
            ("below", operator.lt, below),
        )
        if bound is not None
    ]

    def parsed(text: str) -> float | _BadNumber:
        with contextlib.suppress(ValueError):
            number = float(text)
            if all(compare(number, bound) for _, compare, bound in bounds):  # false for nan
                return number
        return _BadNumber(text, f"a number {' and '.join(f'{words} {bound:,}' for words, _, bound in bounds)}")

    return parsed


def expanded(text: str) -> str | None:
    """Return a path with ~ and $NAME replaced, which a shell does not do behind an = or in single quotes.

    None if it holds NUL, a user that does not exist, or a variable that is not set.
    """
    path = os.path.expandvars(os.path.expanduser(text))
    return None if "\0" in path or path.startswith("~") or re.search(r"\$(\w|\{)", path) else path


def path_text(text: str) -> str:
    """Return a path `expanded`, or as it is if it exists; the `type` of options that take paths among other names.

    Raises:
        ArgumentTypeError: it cannot be expanded.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty; give a path")
    is_there = "\0" not in text and os.path.lexists(text)
    path = text if is_there else expanded(text)
    if path is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} holds NUL, a user that does not exist, or a variable that is not set; give another path"
        )
    if not is_there:
        _refuse_control_characters(path)
    longest = max(len(os.fsencode(name)) for name in path.split("/"))
    if longest > _MOST_NAME_BYTES or len(os.fsencode(path)) >= _MOST_PATH_BYTES:
        raise argparse.ArgumentTypeError(
            f"{shortened(path, most=80)!r} is too long: a name has at most {_MOST_NAME_BYTES} bytes, and a path"
            f" {_MOST_PATH_BYTES - 1}"
        )
    return path


def a_path(text: str) -> Path:
    """Return `path_text` as a path; the `type` of an option that takes one."""
    return Path(path_text(text))


def output_text(text: str) -> str:
    """Return `path_text`, in which no name may hold control characters; the `type` of options that name an output.

    Raises:
        ArgumentTypeError: nothing should be written under this name.
    """
    path = path_text(text)
    _refuse_control_characters(path)
    return path


def output_path(text: str) -> Path:
    """Return `output_text` as a path."""
    return Path(output_text(text))


def _refuse_control_characters(path: str) -> None:
    if _CONTROL.search(path):
        raise argparse.ArgumentTypeError(f"{path!r} holds control characters; give another name")


class _CommandParser(argparse.ArgumentParser):
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse the command line.

        Raises:
            UserError: lists every number that is out of its option's range.
        """
        words = sys.argv[1:] if args is None else args
        if unknown := self._unknown_options(words):
            # argparse alone would first name a required option that is missing because it is misspelt
            meant = [near for word in unknown if (near := self._nearest(word))]
            advice = f"; did you mean {', '.join(meant)}?" if meant else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{advice}")
        parsed = super().parse_args(args, namespace)
        problems = [f"--{name} {bad}" for name, value in vars(parsed).items() for bad in _bad_numbers(value)]
        raise_if_any(problems, heading="bad arguments")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print usage and the error under the same prefix as a `UserError`, and exit."""
        self.print_usage(sys.stderr)
        self.exit(USER_ERROR_EXIT_CODE, as_printed(f"{self.prog.removeprefix('python -m ')}: error: {message}") + "\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Add the nearest choice to argparse's message about a value that is none of an option's choices."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += meant(str(value), map(str, action.choices or ()))
            raise

    def _unknown_options(self, words: Sequence[str]) -> list[str]:
        """Return the words that argparse takes for options which this command does not have."""
        if {"-h", "--help", "--version"}.intersection(words):
            return []
        before = itertools.takewhile(lambda word: word != "--", words)
        options = [word for word in before if re.match(r"--\w", word) and " " not in word]
        names = list(self._option_string_actions)
        return [word for word in options if not any(name.startswith(word.partition("=")[0]) for name in names)]

    def _nearest(self, word: str) -> str | None:
        """Return what a misspelt option was meant to be, if that is clear: an option, or a field without dashes."""
        import difflib

        name, _, value = word.partition("=")
        if "." in name and any("=" in str(action.metavar) for action in self._actions if not action.option_strings):
            return f"{name.lstrip('-')}={value or 'VALUE'}"
        # dashes inside of a name are the usual mistake: --seq-len
        by_spelling = {option.strip("-").replace("-", "_"): option for option in self._option_string_actions}
        found = difflib.get_close_matches(name.strip("-").replace("-", "_"), by_spelling, n=1)
        return by_spelling[found[0]] if found else None


def _bad_numbers(value: Any) -> Iterator[_BadNumber]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, _BadNumber):
            yield item


class _ShowVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"{parser.prog.removeprefix('python -m ')} {version()}")
        parser.exit()


def as_printed(message: str) -> str:
    """Return a message as it is printed: safe for a terminal, and of bounded length."""
    return for_terminal(shortened(message, most=_MOST_CHARACTERS))


def say(text: str, *, file: TextIO | None = None) -> None:
    """Print a text on stdout, or on another stream, safe for a terminal: it may hold names that others chose."""
    print(for_terminal(text), file=file, flush=True)


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line; the name of its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def raise_if_any(problems: Sequence[str], *, heading: str) -> None:
    """Raise one `UserError` that lists every problem, so that a user can fix all of them at once."""
    if len(problems) == 1:
        raise UserError(f"{heading}: {problems[0]}")
    if problems:
        more = [f"and {len(problems) - _MOST_PROBLEMS:,} more"] if len(problems) > _MOST_PROBLEMS else []
        raise UserError(f"{heading}:" + "".join(f"\n  - {problem}" for problem in [*problems[:_MOST_PROBLEMS], *more]))
