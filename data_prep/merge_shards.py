"""Finish a folder that write_shards filled in shares: merge the indexes of all parts, and write report.json and, last,
metadata.json.

    python -m data_prep.write_shards ... --out DIR --part 1/8      and so on, to 8/8, in any order, on any machines
    python -m data_prep.merge_shards DIR

The result is byte for byte what a single run without --part writes, because that run ends with the same step. The
command needs only the folder, neither the corpus nor the tokenizer.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

from collections.abc import Sequence

from common.command_line import command_parser, say
from common.shard_format import METADATA
from data_prep.folder_argument import add_folder_argument, local_shard_folder
from data_prep.shards.folder import locked, read_plan
from data_prep.shards.identity import read_json
from data_prep.shards.merge import merge

_EXAMPLES = """example:
  python -m data_prep.merge_shards /shared/code"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: parts are missing, shares are still being written, or a split has too few tokens for a window.
    """
    parser = command_parser("data_prep.merge_shards", description=__doc__, epilog=_EXAMPLES)
    add_folder_argument(parser, allows_s3=False)
    out = local_shard_folder(
        parser.parse_args(argv),
        reason="shares are merged in a folder that all machines see; upload_shards comes after it",
    )
    if read_json(out / METADATA) is None:
        read_plan(out)  # refuses another folder before a lock file is made in it
    with locked(out):
        if read_json(out / METADATA) is not None:
            say(f"{out} is already finished; nothing to do")
        else:
            merge(out)


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.merge_shards")
