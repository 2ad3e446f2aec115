"""The DIR argument of commands that work on shards which are written already."""

import argparse
from pathlib import Path

from common.command_line import UserError, path_text
from common.s3 import S3Path, folder_at, is_remote


def add_folder_argument(parser: argparse.ArgumentParser, *, allows_s3: bool = True) -> None:
    """Add the positional argument DIR."""
    kind = "folder or s3://bucket/prefix" if allows_s3 else "folder"
    parser.add_argument("folder", type=path_text, metavar="DIR", help=f"{kind} that write_shards got as --out")


def shard_folder(arguments: argparse.Namespace) -> Path | S3Path:
    """Return the folder that DIR names.

    Raises:
        UserError: DIR names another storage than S3, or a bucket that cannot be reached.
    """
    return folder_at(arguments.folder)


def local_shard_folder(arguments: argparse.Namespace, *, reason: str) -> Path:
    """Return the folder that DIR names, which must not be in S3.

    Raises:
        UserError: DIR is not a folder of this machine's file systems; the message gives the `reason`.
    """
    if is_remote(arguments.folder):
        raise UserError(f"{arguments.folder}: {reason}")
    return Path(arguments.folder)
