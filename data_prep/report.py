"""Show the report on finished shards: what was kept of each language, and what each rule dropped.

Prints the table that write_shards prints at its end, and after it the first documents that each rule dropped.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import json
from collections.abc import Sequence
from typing import Any

from common.command_line import command_parser, say
from data_prep.folder_argument import add_folder_argument, shard_folder
from data_prep.shards.tally import read_report, report_table

_EXAMPLES = """example:
  python -m data_prep.report data/code"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the folder has no report.
    """
    parser = command_parser("data_prep.report", description=__doc__, epilog=_EXAMPLES)
    add_folder_argument(parser)
    folder = shard_folder(parser.parse_args(argv))
    say("\n".join(read_report(folder, lambda report: [report_table(report), *_example_lines(report)])))


def _example_lines(report: dict[str, Any]) -> list[str]:
    return [
        f"\n{rule}: {example['source']}\n"
        + (example["detail"] if "detail" in example else json.dumps(example["text"], ensure_ascii=False))
        for rule, examples in report["samples"].items()
        for example in examples
    ]


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.report")
