"""Reading the windows of finished shards without streaming; each file's size and hash are verified.

The shards lie on a disk or in S3. From S3 each object is read once, and not kept. `mds_writer` describes an MDS file.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from common.command_line import UserError
from common.s3 import S3Path
from common.shard_format import (
    METADATA,
    TOKENIZER_MODEL,
    DamagedShardError,
    content_fault,
    read_finished_file,
    read_shard_file,
)
from common.tokenizers import BYTES, Tokenizer, load_tokenizer
from data_prep.tokens.packing import TokenArray, WindowShape


@dataclass(frozen=True)
class ShardContent:
    """The windows of one shard."""

    path: Path | S3Path
    """The file, without the ending of a compressed one."""
    part: str
    """Name of the part that the shard belongs to."""
    tokens: TokenArray
    """(n_windows, seq_len + lookahead)."""
    document_ids: TokenArray | None
    """(n_windows, seq_len + lookahead): each token's document within its window; None if they were not written."""
    stored_bytes: int
    """Size of the file as it is stored, compressed or not."""


def load_shard_tokenizer(root: Path | S3Path, metadata: dict[str, Any]) -> tuple[Tokenizer | None, list[str]]:
    """Return the tokenizer of the shards, or None and what is wrong with it."""
    expected = metadata["tokenizer"]
    path = root / TOKENIZER_MODEL
    if expected["kind"] == BYTES:
        return load_tokenizer(BYTES), []
    try:
        model = read_finished_file(root, TOKENIZER_MODEL)
    except UserError as error:
        return None, [str(error)]
    if hashlib.sha256(model).hexdigest() != expected["sha256"]:
        return None, [f"{path} is not the tokenizer of these shards: its sha256 is not the one in {METADATA}"]
    with tempfile.NamedTemporaryFile(suffix=TOKENIZER_MODEL) as file:
        file.write(model)
        file.flush()
        return load_tokenizer(file.name), []


def window_shape(metadata: dict[str, Any]) -> WindowShape:
    """Return the shape of the windows of these shards."""
    return WindowShape(metadata["seq_len"], metadata["lookahead"])


def part_of(entry: dict[str, Any]) -> str:
    """Return the name of the part that a shard belongs to, given the shard's entry in the index of its split."""
    return str(entry["raw_data"]["basename"].partition("/")[0])


def read_shard(folder: Path | S3Path, entry: dict[str, Any], metadata: dict[str, Any]) -> ShardContent:
    """Return the windows of a shard, given the folder of its split, its entry in the index, and metadata.json.

    Raises:
        DamagedShardError: the file is not what its entry or the metadata say.
    """
    path = folder / entry["raw_data"]["basename"]
    raw, stored_bytes = _verified_bytes(folder, entry)
    document_ids, tokens = _columns_in(raw, metadata, n_windows=entry["samples"], path=path)
    return ShardContent(path, part_of(entry), tokens, document_ids, stored_bytes)


def _verified_bytes(folder: Path | S3Path, entry: dict[str, Any]) -> tuple[bytes, int]:
    """Return the uncompressed bytes of a shard, and the size of its file."""
    raw_entry, zip_entry = entry["raw_data"], entry.get("zip_data")
    file_entry = zip_entry or raw_entry
    path = folder / file_entry["basename"]
    stored = read_shard_file(path, n_bytes=file_entry["bytes"], hashes=file_entry["hashes"])
    if not zip_entry:
        return stored, len(stored)
    try:  # as a stream: decompressing at once allocates as much memory as the file's header asks for
        raw = zstandard.ZstdDecompressor().stream_reader(stored).read(raw_entry["bytes"] + 1)
    except zstandard.ZstdError as error:
        raise DamagedShardError(f"{path} cannot be decompressed: {error}") from error
    if fault := content_fault(raw, name=path, n_bytes=raw_entry["bytes"], hashes=raw_entry["hashes"]):
        raise DamagedShardError(fault)
    return raw, len(stored)


def _columns_in(
    raw: bytes, metadata: dict[str, Any], *, n_windows: int, path: Path | S3Path
) -> tuple[TokenArray | None, TokenArray]:
    """Return the document ids, if any, and the tokens in an MDS file, both (n_windows, seq_len + lookahead)."""
    length = window_shape(metadata).length
    n_columns = 2 if metadata.get("document_ids") else 1
    wrong = DamagedShardError(f"{path} does not hold {n_windows} windows of {length} tokens")
    table = raw[4 : 4 * (n_windows + 2)]
    if int.from_bytes(raw[:4], "little") != n_windows or len(table) != 4 * (n_windows + 1):
        raise wrong
    offsets = np.frombuffer(table, dtype=np.uint32).astype(np.int64)
    if (np.diff(offsets) != 2 * n_columns * length).any() or offsets[-1] != len(raw):
        raise wrong
    windows = np.frombuffer(raw, dtype=np.uint16, offset=int(offsets[0])).reshape(n_windows, n_columns, length)
    return windows[:, 0] if n_columns == 2 else None, windows[:, -1]


def windows_at(
    folder: Path | S3Path, entries: list[dict[str, Any]], metadata: dict[str, Any], *, indices: list[int]
) -> Iterator[tuple[int, TokenArray]]:
    """Yield the windows (seq_len + lookahead,) of a split at these indices, which are sorted, with each its index."""
    first = 0
    for entry in entries:
        inside = [index for index in indices if first <= index < first + entry["samples"]]
        if inside:
            tokens = read_shard(folder, entry, metadata).tokens
            yield from ((index, tokens[index - first]) for index in inside)
        first += entry["samples"]
