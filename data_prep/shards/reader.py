"""Finished shards read without streaming: metadata.json, the indexes, and each file, its size and hash compared.

They are in a folder of this machine or in S3, whose objects are read from there, once each, and not kept.

An MDS file is: uint32 n, uint32 offsets[n + 1], a JSON header, then the samples, here of uint16[seq_len + lookahead],
twice where windows have document ids, which come first.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard

from common.command_line import UserError
from common.files import name_inside
from common.s3 import S3Path
from common.tokenizers import BYTES, Tokenizer, load_tokenizer
from data_prep.shards.folder import FORMAT_VERSION, INDEX, METADATA, TOKENIZER_MODEL
from data_prep.tokens.packing import TokenArray, WindowShape

_LARGEST_FILE = 1 << 32  # an MDS file's offsets are uint32


class DamagedShardError(Exception):
    """A file of the shards is not what its index says; the message names it and says how."""


def read_metadata(root: Path | S3Path) -> dict[str, Any]:
    """Return metadata.json of finished shards.

    Raises:
        UserError: it is missing, damaged, or of another version; or a split's name leads out of the folder.
    """
    path = root / METADATA
    try:
        stored = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: not a folder of write_shards, or not finished (run it again)") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        metadata = json.loads(stored)
        version = metadata.get("format_version")
    except (ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{path} is not JSON of shards ({error}); write the shards again") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format_version {version}, this program {FORMAT_VERSION}")
    try:
        sizes = [metadata[key] for key in ("seq_len", "lookahead", "vocab_size")]
        counts = []
        for split, of_split in metadata["splits"].items():
            name_inside(split, named_in=path)
            counts += [of_split[key] for key in ("documents", "tokens", "windows")]
        tokenizer = [metadata["tokenizer"][key] for key in ("kind", "sha256")]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not describe shards ({error!r}); write the shards again") from error
    are_numbers = all(isinstance(number, int) and number >= 0 for number in sizes + counts)
    if not are_numbers or 0 in sizes or not all(map(_is_text, tokenizer)):
        raise UserError(f"{path} does not describe shards ({sizes}, {counts}, {tokenizer}); write the shards again")
    return dict(metadata)


def tokenizer_of(root: Path | S3Path, metadata: dict[str, Any]) -> tuple[Tokenizer | None, list[str]]:
    """Return the tokenizer of the shards, or what is wrong with it."""
    expected = metadata["tokenizer"]
    path = root / TOKENIZER_MODEL
    if expected["kind"] == BYTES:
        return load_tokenizer(BYTES), []
    try:
        model = path.read_bytes()
    except FileNotFoundError:
        return None, [f"{path} is missing"]
    if hashlib.sha256(model).hexdigest() != expected["sha256"]:
        return None, [f"{path} is not the tokenizer of these shards: its sha256 is not the one in {METADATA}"]
    with tempfile.NamedTemporaryFile(suffix=TOKENIZER_MODEL) as file:
        file.write(model)
        file.flush()
        return load_tokenizer(file.name), []


def shards_of(folder: Path | S3Path) -> list[dict[str, Any]]:
    """Return the entries of a split's index.json, each checked.

    Raises:
        DamagedShardError: it is missing, or no index of shards.
    """
    path = folder / INDEX
    try:
        stored = path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedShardError(f"{path} is missing") from error
    except OSError as error:
        raise DamagedShardError(f"{path} cannot be read: {error.strerror}") from error
    try:
        shards: list[dict[str, Any]] = json.loads(stored)["shards"]
        for shard in shards:
            _check_entry(folder, shard)
    except UserError as error:
        raise DamagedShardError(str(error)) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedShardError(f"{path} is not an index of shards ({error!r})") from error
    return shards


def verified_bytes(folder: Path | S3Path, shard: dict[str, Any]) -> tuple[bytes, int]:
    """Return the uncompressed bytes of a shard whose sizes and hashes are right, and its bytes on disk."""
    raw_info, zip_info = shard["raw_data"], shard["zip_data"]
    info = zip_info or raw_info
    path = folder / info["basename"]
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise DamagedShardError(f"{path} cannot be read: {error.strerror}") from error
    verify(stored, info, path)
    if not zip_info:
        return stored, len(stored)
    try:  # a stream, since what is decompressed at once takes the room that the compressed file asks for
        raw = zstandard.ZstdDecompressor().stream_reader(stored).read(raw_info["bytes"] + 1)
    except zstandard.ZstdError as error:
        raise DamagedShardError(f"{path} cannot be decompressed ({error})") from error
    verify(raw, raw_info, path)
    return raw, len(stored)


def columns_in(
    raw: bytes, shape: WindowShape, metadata: dict[str, Any], *, n_windows: int, path: Path | S3Path
) -> tuple[TokenArray | None, TokenArray]:
    """Return the columns of an MDS file, document ids, if any, and windows, both (windows, seq_len + lookahead)."""
    n_columns = 2 if metadata.get("document_ids") else 1
    wrong = DamagedShardError(f"{path} does not hold {n_windows} windows of {shape.length} tokens")
    table = raw[4 : 4 * (n_windows + 2)]
    if int.from_bytes(raw[:4], "little") != n_windows or len(table) != 4 * (n_windows + 1):
        raise wrong
    offsets = np.frombuffer(table, dtype=np.uint32).astype(np.int64)
    if (np.diff(offsets) != 2 * n_columns * shape.length).any() or offsets[-1] != len(raw):
        raise wrong
    samples = np.frombuffer(raw, dtype=np.uint16, offset=int(offsets[0])).reshape(n_windows, n_columns, shape.length)
    return samples[:, 0] if n_columns == 2 else None, samples[:, -1]


def _check_entry(folder: Path | S3Path, shard: dict[str, Any]) -> None:
    """Check one entry of index.json, whose values may be anything.

    Raises:
        UserError: a file is outside of the folder.
        KeyError, TypeError, ValueError: a value is missing, or is none that MDS can have.
    """
    infos = [shard[key] for key in ("raw_data", "zip_data") if shard[key] is not None]
    for info in infos:
        name_inside(info["basename"], named_in=folder / INDEX)
        if not _is_text(info["hashes"]["xxh64"]):
            raise TypeError(f"xxh64 {info['hashes']['xxh64']!r}")
    for number in (shard["samples"], *(info["bytes"] for info in infos)):
        if not isinstance(number, int) or not 0 < number < _LARGEST_FILE:
            raise ValueError(f"{number!r} samples or bytes in a shard")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def verify(data: bytes, info: dict[str, Any], path: Path | S3Path) -> None:
    """Compare the bytes of a file with its entry in index.json.

    Raises:
        DamagedShardError: size or hash differ.
    """
    if len(data) != info["bytes"]:
        raise DamagedShardError(f"{path} has {len(data)} bytes, its index says {info['bytes']}")
    if xxhash.xxh64_hexdigest(data) != info["hashes"]["xxh64"]:
        raise DamagedShardError(f"{path}: its xxh64 hash is not the one in its index")
