"""Copy finished shards to S3, or to storage with the same protocol, where pipeline.train can read them.

1. Each file of shards is compared with its hash in index.json before it is sent. Several are sent at once.
2. uploading.json is sent first. It identifies the shards by the hashes of their indexes, which hold the hashes of all
   files. After a kill, the same command continues the copy; a copy of other shards is refused.
3. metadata.json is sent last: a prefix that has it is complete.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

from collections.abc import Sequence

from common.command_line import UserError, command_parser, output_text
from common.s3 import SCHEME, S3Path, folder_at
from data_prep.folder_argument import add_folder_argument, local_shard_folder
from data_prep.shards.upload import upload

_EXAMPLES = """example:
  python -m data_prep.upload_shards data/code s3://bucket/code"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the shards are unfinished or damaged, or the storage refuses them or holds something else.
    """
    parser = command_parser("data_prep.upload_shards", description=__doc__, epilog=_EXAMPLES)
    add_folder_argument(parser, allows_s3=False)
    parser.add_argument("remote", type=output_text, metavar=f"{SCHEME}BUCKET/PREFIX", help="where to copy the shards")
    arguments = parser.parse_args(argv)
    folder = local_shard_folder(arguments, reason="shards are uploaded from a folder of this machine; give that")
    remote = folder_at(arguments.remote)
    if not isinstance(remote, S3Path):
        raise UserError(f"{arguments.remote!r} is not {SCHEME}BUCKET/PREFIX")
    upload(folder, remote)


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.upload_shards")
