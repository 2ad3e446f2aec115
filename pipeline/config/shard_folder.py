"""Shards in S3: a folder of this node that looks like them, and is filled as they are read.

`data.cache` holds one folder for each set of shards that was read through it, named by a hash of where they are and of
their metadata.json; so different shards, also those that took the place of others, never mix. metadata.json, indexes
and the tokenizer are fetched when a run starts, and shards when they are first read (`shard_streams`), each compared
with its hash in the index before it gets its name. What is there from an earlier run is used again.

Every rank calls this by itself, at the same time as the others of its node: a file appears whole or not at all.
"""

import functools
import hashlib
from pathlib import Path

from common.command_line import UserError
from common.files import inside
from common.s3 import MissingObjectError, S3Path, is_remote
from common.shard_format import INDEX, METADATA, TOKENIZER_MODEL, parse_metadata, read_metadata_bytes
from common.tokenizers import BYTES
from pipeline.config.schema import DataConfig


def local_folder(data: DataConfig) -> Path:
    """Return the folder that has `data.shards`: itself, or the node's copy of what is in S3.

    Raises:
        UserError: there is no data.cache, or what is in S3 cannot be fetched, or is no set of finished shards.
    """
    if not is_remote(data.shards):
        if data.cache:
            raise UserError(f"data.cache={data.cache} is for s3://; data.shards={data.shards} is read where it is")
        return Path(data.shards)
    if not data.cache:
        raise UserError(f"data.shards={data.shards} needs data.cache, a folder on each node's own disk")
    return _mirror(data.shards, Path(data.cache))


def remote_split(data: DataConfig, split: str) -> S3Path | None:
    """Return where the shards of a split are fetched from, or None if they are on a disk."""
    return S3Path(data.shards) / split if is_remote(data.shards) else None


@functools.cache
def _mirror(shards: str, cache: Path) -> Path:
    remote = S3Path(shards)
    remote.check_bucket()
    stored = read_metadata_bytes(remote)
    metadata = parse_metadata(stored, path=remote / METADATA)
    folder = cache / hashlib.sha256(f"{remote}\0".encode() + stored).hexdigest()[:16]
    wanted = [f"{split}/{INDEX}" for split in metadata["splits"]]
    wanted += [METADATA] if metadata["tokenizer"]["kind"] == BYTES else [TOKENIZER_MODEL, METADATA]
    for name in wanted:
        path = inside(folder, name, named_in=METADATA)
        if not path.exists():
            _fetch(remote / name, path, cache=cache)
    return folder


def _fetch(file: S3Path, path: Path, *, cache: Path) -> None:
    try:
        file.download(path)
    except MissingObjectError as error:
        raise UserError(f"{file} does not exist; write the shards again") from error
    except OSError as error:
        raise UserError(f"data.cache={cache} cannot be written: {error.strerror}") from error
