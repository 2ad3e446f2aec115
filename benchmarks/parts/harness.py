"""The skeleton of a benchmark command: shared options, their checks, tables, and the JSON of all figures.

A command builds its parser with `benchmark_parser`, adds its own options, and hands it to `run_benchmark` with a
function that measures, prints tables, and returns the figures.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.command_line import command_parser, raise_if_any, whole_number
from common.files import write_json

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DEFAULT = "(default: %(default)s)"
COUNT = whole_number(at_least=1, at_most=1_000_000)  # type of options that count ranks, layers, tokens of a sequence
COUNT_OR_NONE = whole_number(at_least=0, at_most=1_000_000)


def benchmark_parser(
    program: str,
    *,
    description: str | None,
    epilog: str | None = None,
    ranks: int | None = None,
    warm_up: int | None = None,
    repeats: int | None = None,
    rounds: str = "rounds",
    plot: bool = False,
) -> argparse.ArgumentParser:
    """Return a parser with `--json` and those of the shared options that have a default here.

    Args:
        program: the module, as in `python -m program`.
        description: shown by `--help` with its line breaks, as is `epilog`.
        epilog: shown after the options.
        ranks: default of `--ranks`.
        warm_up: default of `--warm_up`.
        repeats: default of `--repeats`.
        rounds: what is repeated, in the plural.
        plot: whether the command can draw its figures (`--plot`).
    """
    parser = command_parser(program, description=description, epilog=epilog)
    add = parser.add_argument_group("measurement").add_argument
    if ranks is not None:
        add("--ranks", type=COUNT, default=ranks, metavar="N", help=f"processes that train together {DEFAULT}")
    if warm_up is not None:
        add("--warm_up", type=COUNT_OR_NONE, default=warm_up, metavar="N", help=f"{rounds} to discard first {DEFAULT}")
    if repeats is not None:
        add("--repeats", type=COUNT, default=repeats, metavar="N", help=f"{rounds} to measure {DEFAULT}")
    add("--json", type=Path, metavar="FILE", help="also write every figure to this file")
    if plot:
        add("--plot", type=Path, metavar="FILE", help="also draw the curves to this file (PNG)")
    return parser


def run_benchmark(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], Any],
    argv: Sequence[str] | None = None,
    *,
    check: Callable[[argparse.Namespace], list[str]] | None = None,
) -> None:
    """Parse and check the command line, measure, and write the figures to the file of `--json`.

    Args:
        parser: from `benchmark_parser`.
        measure: measures, prints tables, and returns the figures as JSON can hold them.
        argv: the command line, without the program; `sys.argv` if None.
        check: returns problems with the command's own options, one line each.

    Raises:
        UserError: an option has a bad value, or the folder of an output file does not exist.
    """
    arguments = parser.parse_args(argv)
    problems = [] if check is None else check(arguments)
    raise_if_any(problems + _shared_problems(arguments), heading="bad arguments")
    figures = measure(arguments)
    if arguments.json is not None:
        write_json(arguments.json, figures)


def _shared_problems(arguments: argparse.Namespace) -> list[str]:
    problems = []
    for name in ("json", "plot"):
        path: Path | None = getattr(arguments, name, None)
        if path is not None and not path.parent.is_dir():
            problems.append(f"--{name} {path}: there is no folder {path.parent}")
    return problems


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows, of which the first is the heading, as an aligned Markdown table."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


class LiveTable:
    """A Markdown table that is printed row by row, for rows that take long to measure."""

    def __init__(self, *heading: str) -> None:
        """Print the heading."""
        self.add(*heading)
        print("|" + "---|" * len(heading), flush=True)

    def add(self, *cells: str) -> None:
        """Print one row."""
        print(f"| {' | '.join(cells)} |", flush=True)
