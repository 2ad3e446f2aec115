"""One page about a run, or about several side by side, to look at and to send.

    python -m pipeline.report runs/demo
    python -m pipeline.report runs/demo-n1 runs/demo-n4 --output n1-against-n4.html

The page holds its plots and opens without a network. It says where each run stands, what it cost, how losses, speed and
memory went, where it was resumed, went back or skipped steps; of several, what they have in common and where their
configs differ. What a folder lacks, or has in a way that this version does not know, the page names.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.command_line import UserError, command_parser, exit_on_user_error, raise_if_any
from common.files import write_text

PROGRAM = "pipeline.report"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report of the runs on the command line.

    Raises:
        UserError: there is nothing to show of any run, or the page cannot be written.
    """
    arguments = _parser().parse_args(argv)
    from pipeline.monitoring.reporting.page import page
    from pipeline.monitoring.reporting.run_folder import read_run_folder

    runs = [read_run_folder(path) for path in dict.fromkeys(arguments.runs)]
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    if all(run.is_empty for run in runs):
        raise_if_any(problems, heading="there is nothing to show")
        raise UserError("there is nothing to show")
    for problem in problems:
        print(f"{PROGRAM}: warning: {problem}", file=sys.stderr)
    try:
        write_text(arguments.output, page(runs))
    except OSError as error:
        raise UserError(f"--output {arguments.output} cannot be written ({error.strerror})") from error
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:,.0f} kB")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(PROGRAM, description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page (default: %(default)s)")
    return parser


if __name__ == "__main__":
    exit_on_user_error(main, program=PROGRAM)
