"""Write an HTML page about one run, or about several runs side by side.

    python -m pipeline.report runs/demo
    python -m pipeline.report runs/demo-n1 runs/demo-n4 --output n1-against-n4.html

The page is one file that opens without a network. For each run it shows the state, the cost, the curves of losses,
speed and memory, and where the run was resumed, rolled back or skipped steps. For several runs it also compares their
results and lists where their configs differ. It names whatever is missing from a run's folder, and whatever in it this
version does not know.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.command_line import UserError, a_path, command_parser, output_path, raise_if_any, say
from common.files import refuse_to_replace, write_text

PROGRAM = "pipeline.report"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report about the runs on the command line.

    Raises:
        UserError: no run has anything to show, or the page cannot be written.
    """
    arguments = _parser().parse_args(argv)
    refuse_to_replace(arguments.output, head=b"<!doctype html>\n", kind="a report")
    from pipeline.monitoring.reporting.page import page
    from pipeline.monitoring.reporting.run_folder import read_run_folder

    runs = [read_run_folder(path) for path in dict.fromkeys(arguments.runs)]
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    if all(run.is_empty for run in runs):
        raise_if_any(problems, heading="there is nothing to show")
        raise UserError("there is nothing to show")
    for problem in problems:
        say(f"{PROGRAM}: warning: {problem}", file=sys.stderr)
    try:
        write_text(arguments.output, page(runs))
    except OSError as error:
        raise UserError(f"--output {arguments.output} cannot be written: {error.strerror}") from error
    say(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:,.0f} kB")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(PROGRAM, description=__doc__)
    parser.add_argument("runs", nargs="+", type=a_path, metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--output", type=output_path, default=Path("report.html"), help="where to write the page (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    exit_on_user_error(main, program=PROGRAM)
