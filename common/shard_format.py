"""The format of a shard folder, which data_prep writes and training reads: file names, version, and checks.

    DIR/metadata.json                what the shards hold; written last, so a folder that has it is finished
    DIR/tokenizer.model              the SentencePiece model, unless the tokens are bytes
    DIR/<split>/index.json           one entry for each shard: its number of windows, and of each of its files the
                                     name, the size and a hash
    DIR/<split>/<part>/shard.*.mds   the windows themselves (MDS, the format of mosaicml-streaming)

A folder may lie on a disk or in S3. `read_metadata` and `read_index` check what they read; `file_fault` and
`content_fault` compare a shard's file with its entry in the index.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from common.command_line import UserError
from common.files import name_inside
from common.s3 import S3Path

FORMAT_VERSION = 1
METADATA = "metadata.json"
INDEX = "index.json"
TOKENIZER_MODEL = "tokenizer.model"

_FILES_OF_A_SHARD = ("raw_data", "zip_data", "raw_meta", "zip_meta")  # the keys of an entry that describe a file
_LARGEST_FILE = (1 << 32) - 1  # bytes: offsets in an MDS file are uint32


class DamagedShardError(UserError):
    """An index is missing or damaged, or a shard's file is not what the index says; the message names the file."""


def read_metadata(folder: Path | S3Path) -> dict[str, Any]:
    """Return the metadata.json of a finished shard folder.

    Raises:
        UserError: it is missing, damaged, or of another version, or the name of a split leads out of the folder.
    """
    return parse_metadata(read_finished_file(folder, METADATA), path=folder / METADATA)


def read_finished_file(folder: Path | S3Path, name: str) -> bytes:
    """Return the content of a file at the root of a shard folder, which every finished folder has.

    Raises:
        UserError: it is missing, or cannot be read.
    """
    unfinished = (
        "does not exist: the folder was not written by data_prep.write_shards, or is not finished (run the same command"
        " again)"
    )
    return _read(folder / name, if_missing=unfinished, error_type=UserError)


def _read(path: Path | S3Path, *, if_missing: str, error_type: type[UserError]) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise error_type(f"{path} {if_missing}") from error
    except OSError as error:
        raise error_type(f"{path} cannot be read ({error.strerror})") from error


def parse_metadata(stored: bytes, *, path: Path | S3Path) -> dict[str, Any]:
    """Return the content of a metadata.json, checked; `path` is its name in error messages.

    Raises:
        UserError: it is damaged, or of another version, or the name of a split leads out of the folder.
    """
    try:
        metadata = json.loads(stored)
        version = metadata["format_version"]
        if version == FORMAT_VERSION:
            _check_metadata(metadata, path=path)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not metadata of shards ({error!r}); write the shards again") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format_version={version!r}, but this code reads {FORMAT_VERSION}")
    return dict(metadata)


def _check_metadata(metadata: dict[str, Any], *, path: Path | S3Path) -> None:
    """Check the values that readers use; raise UserError, ValueError, KeyError, TypeError or AttributeError."""
    for key in ("seq_len", "lookahead", "vocab_size"):
        _check_number(metadata[key], name=key, least=1)
    for key in ("kind", "sha256"):
        _check_text(metadata["tokenizer"][key], name=f"tokenizer.{key}")
    for split, counts in metadata["splits"].items():
        name_inside(split, named_in=path)
        for key in ("documents", "tokens", "windows"):
            _check_number(counts[key], name=f"splits.{split}.{key}", least=0)


def read_index(folder: Path | S3Path, *, strict: bool = False) -> list[dict[str, Any]]:
    """Return the entries of a split's index.json, one for each shard, as MDS defines them.

    Args:
        folder: the split's folder.
        strict: also refuse what write_shards never writes: an empty shard, and a file without an xxh64 hash.

    Raises:
        DamagedShardError: the index is missing or damaged.
        UserError: the name of a file leads out of the folder.
    """
    path = folder / INDEX
    stored = _read(path, if_missing="is missing; write the shards again", error_type=DamagedShardError)
    try:
        entries: list[dict[str, Any]] = json.loads(stored)["shards"]
        for entry in entries:
            _check_entry(entry, path=path, strict=strict)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedShardError(f"{path} is not an index of shards ({error!r}); write the shards again") from error
    return entries


def _check_entry(entry: dict[str, Any], *, path: Path | S3Path, strict: bool) -> None:
    """Check one shard's entry; raise UserError, ValueError, KeyError, TypeError or AttributeError."""
    least = 1 if strict else 0
    _check_number(entry["samples"], name="samples", least=least, most=_LARGEST_FILE)
    files = [entry["raw_data"], *(entry[key] for key in _FILES_OF_A_SHARD[1:] if entry.get(key) is not None)]
    for file in files:
        name_inside(file["basename"], named_in=path)
        _check_number(file["bytes"], name=f"bytes of {file['basename']}", least=least, most=_LARGEST_FILE)
        for algorithm, expected in file["hashes"].items():
            _check_text(expected, name=f"{algorithm} of {file['basename']}")
        if strict and "xxh64" not in file["hashes"]:
            raise ValueError(f"{file['basename']} has no xxh64 hash")


def _check_number(value: Any, *, name: str, least: int, most: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}")


def _check_text(value: Any, *, name: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}")


def file_fault(path: Path, *, n_bytes: int, hashes: Mapping[str, str], name: object = None) -> str | None:
    """Compare a file on disk with its entry in the index; return what is wrong, in one line, or None.

    Args:
        path: the file.
        n_bytes: its size according to the index.
        hashes: its hexadecimal hashes according to the index, by algorithm. One known algorithm is compared; if there
            is none, the size has to do.
        name: what the message calls the file, if not `path`.
    """
    name, algorithm = name or path, hash_algorithm(hashes)
    try:
        found_bytes, found_hash = path.stat().st_size, None
        if found_bytes == n_bytes and algorithm is not None:
            with path.open("rb") as file:
                found_hash = hashlib.file_digest(file, _constructor(algorithm)).hexdigest()
    except FileNotFoundError:
        return f"{name} is missing, its index says {n_bytes} bytes"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return _difference(name, found_bytes, found_hash, n_bytes=n_bytes, hashes=hashes)


def content_fault(content: bytes, *, name: object, n_bytes: int, hashes: Mapping[str, str]) -> str | None:
    """Compare the content of a shard's file, which the message calls `name`, as `file_fault` does."""
    algorithm = hash_algorithm(hashes)
    found_hash = _constructor(algorithm)(content).hexdigest() if algorithm is not None else None
    return _difference(name, len(content), found_hash, n_bytes=n_bytes, hashes=hashes)


def hash_algorithm(hashes: Mapping[str, str]) -> str | None:
    """Return the algorithm, of those that an index has hashes of, which is compared; None if none is known here."""
    known = xxhash.algorithms_available | hashlib.algorithms_guaranteed
    return next((name for name in sorted(hashes) if name in known and not name.startswith("shake_")), None)


def _difference(
    name: object, found_bytes: int, found_hash: str | None, *, n_bytes: int, hashes: Mapping[str, str]
) -> str | None:
    if found_bytes != n_bytes:
        return f"{name} has {found_bytes} bytes, its index says {n_bytes}"
    algorithm = hash_algorithm(hashes)
    if algorithm is not None and found_hash != hashes[algorithm]:
        return f"{name} has the {algorithm} hash {found_hash}, its index says {hashes[algorithm]}"
    return None


def _constructor(algorithm: str) -> Callable[..., Any]:
    return getattr(xxhash if algorithm in xxhash.algorithms_available else hashlib, algorithm)
