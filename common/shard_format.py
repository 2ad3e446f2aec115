"""The format of a shard folder, which data_prep writes and training reads: file names, version, and checks.

    DIR/metadata.json                what the shards hold; written last, so a folder that has it is finished
    DIR/tokenizer.model              the SentencePiece model, unless the tokens are bytes
    DIR/<split>/index.json           one entry for each shard: its number of windows, and of each of its files the
                                     name, the size and a hash
    DIR/<split>/<part>/shard.*.mds   the windows themselves (MDS, the format of mosaicml-streaming)

A folder may lie on a disk or in S3. `read_metadata` and `read_index` check what they read, so that readers may rely on
every value that they use. `file_fault` and `content_fault` compare a shard's file with its entry in the index: first
its size, so that no file takes more memory than its index says.
"""

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from common.command_line import UserError
from common.files import name_inside
from common.s3 import S3Path
from common.small_files import BadFileError, open_regular_file, parse_json, read_small_file
from common.wording import shortened

FORMAT_VERSION = 1
METADATA = "metadata.json"
INDEX = "index.json"
TOKENIZER_MODEL = "tokenizer.model"

COMPRESSIONS = ("zstd", "gz", "bz2")  # of shards that other tools have written; data_prep writes zstd

_MOST_INDEX_BYTES = 128 << 20  # some 400,000 shards
_MOST_FILE_BYTES = 64 << 20  # of other files at the root: metadata and tokenizer
_LARGEST_FILE = (1 << 32) - 1  # bytes: offsets in an MDS file are uint32
_LONGEST_WINDOW = 1 << 29  # tokens of uint16 that fit into such a file
_MDS_VERSION = 2
_KEYS_OF_A_SHARD = {
    "version", "format", "compression", "hashes", "size_limit", "column_names", "column_encodings", "column_sizes",
    "samples", "raw_data", "zip_data",
}  # fmt: skip
_KEYS_OF_A_FILE = {"basename", "bytes", "hashes"}
_DOCUMENT_ENDS = ("eos", "bos", "both", "none")
_WRONG = (ValueError, KeyError, TypeError, AttributeError)  # what unexpected values raise while they are checked


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
    return _read(folder / name, if_missing=unfinished, error_type=UserError, most_bytes=_MOST_FILE_BYTES)


def _read(path: Path | S3Path, *, if_missing: str, error_type: type[UserError], most_bytes: int) -> bytes:
    try:
        if isinstance(path, S3Path):
            return path.read_bytes(most_bytes=most_bytes)
        return read_small_file(path, most_bytes=most_bytes)
    except FileNotFoundError as error:
        raise error_type(f"{path} {if_missing}") from error
    except BadFileError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        raise error_type(f"{path} {if_missing}" if missing else str(error)) from error
    except OSError as error:
        raise error_type(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def _explained(path: Path | S3Path, *, kind: str, error_type: type[UserError]) -> Iterator[None]:
    """Turn what unexpected values raise into one error that names the file."""
    try:
        yield
    except BadFileError as error:
        raise error_type(f"{path} is not {kind} of shards: {error}; write the shards again") from error
    except UserError:  # a name that leads out of the folder
        raise
    except _WRONG as error:
        why = shortened(repr(error), most=300)
        raise error_type(f"{path} is not {kind} of shards: {why}; write the shards again") from error


def parse_metadata(stored: bytes, *, path: Path | S3Path) -> dict[str, Any]:
    """Return the content of a metadata.json, checked; `path` is its name in error messages.

    Raises:
        UserError: it is damaged, or of another version, or the name of a split leads out of the folder.
    """
    with _explained(path, kind="metadata", error_type=UserError):
        metadata = parse_json(stored, name="it")
        version = metadata["format_version"]
        if version == FORMAT_VERSION:
            _check_metadata(metadata, path=path)
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format_version={version!r}, but this code reads {FORMAT_VERSION}")
    return dict(metadata)


def _check_metadata(metadata: dict[str, Any], *, path: Path | S3Path) -> None:
    """Check the values that readers use; raise UserError or one of `_WRONG`."""
    for key, most in (("seq_len", _LONGEST_WINDOW), ("lookahead", _LONGEST_WINDOW), ("vocab_size", 1 << 16)):
        _check_number(metadata[key], name=key, least=1, most=most)
    for key in ("kind", "sha256"):
        _check_text(metadata["tokenizer"][key], name=f"tokenizer.{key}")
    for key, least in (("bos_id", -1), ("eos_id", 0)):  # a tokenizer may be without BOS; numpy crashes for an EOS of -1
        _check_number(metadata["tokenizer"][key], name=f"tokenizer.{key}", least=least, most=metadata["vocab_size"] - 1)
    if not metadata["splits"]:
        raise ValueError("it has no splits")
    for split, counts in metadata["splits"].items():
        name_inside(split, named_in=path)
        for key in ("documents", "tokens", "windows", "bytes"):
            _check_number(counts[key], name=f"splits.{split}.{key}", least=0)
    if metadata.get("document_ends", "eos") not in _DOCUMENT_ENDS:
        raise ValueError(f"document_ends is {metadata['document_ends']!r}")
    for name, sentinel in ((metadata.get("fim") or {}).get("sentinels") or {}).items():
        _check_number(sentinel, name=f"fim.sentinels.{name}", least=0, most=metadata["vocab_size"] - 1)


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
    missing = "is missing; write the shards again"
    stored = _read(path, if_missing=missing, error_type=DamagedShardError, most_bytes=_MOST_INDEX_BYTES)
    with _explained(path, kind="an index", error_type=DamagedShardError):
        index = parse_json(stored, name="it")
        _check_number(index["version"], name="version", least=_MDS_VERSION, most=_MDS_VERSION)
        entries: list[dict[str, Any]] = index["shards"]
        for entry in entries:
            _check_entry(entry, path=path, strict=strict)
            _check_columns(entry)
    return entries


def _check_entry(entry: dict[str, Any], *, path: Path | S3Path, strict: bool) -> None:
    """Check one shard's entry; raise UserError or one of `_WRONG`."""
    least = 1 if strict else 0
    _check_number(entry["samples"], name="samples", least=least, most=_LARGEST_FILE)
    for file in (entry["raw_data"], *([] if entry["zip_data"] is None else [entry["zip_data"]])):
        name_inside(file["basename"], named_in=path)
        _check_number(file["bytes"], name=f"bytes of {file['basename']}", least=least, most=_LARGEST_FILE)
        for algorithm, expected in file["hashes"].items():
            _check_text(expected, name=f"{algorithm} of {file['basename']}")
        if strict and "xxh64" not in file["hashes"]:
            raise ValueError(f"{file['basename']} has no xxh64 hash")
        _check_keys(file, _KEYS_OF_A_FILE)
    _check_number(entry["version"], name="version", least=_MDS_VERSION, most=_MDS_VERSION)
    if entry["format"] != "mds":
        raise ValueError(f"format is {entry['format']!r}")
    if entry["zip_data"] is not None and entry["compression"].partition(":")[0] not in COMPRESSIONS:
        raise ValueError(f"compression is {entry['compression']!r}, not one of {', '.join(COMPRESSIONS)}")
    if entry["size_limit"] is not None:
        _check_number(entry["size_limit"], name="size_limit", least=0)
    _check_keys(entry, _KEYS_OF_A_SHARD)  # streaming accepts no others


def _check_columns(entry: dict[str, Any]) -> None:
    """Check that each column is an array of uint16, and that the windows fit into the file."""
    columns = zip(entry["column_names"], entry["column_encodings"], entry["column_sizes"], strict=True)
    sizes = {}
    for name, encoding, size in columns:
        found = re.fullmatch(r"ndarray:uint16:([1-9]\d{0,8})", encoding)
        if found is None or size != 2 * int(found[1]):
            raise ValueError(f"column {name!r} has the encoding {encoding!r} and the size {size!r}")
        sizes[name] = size
    if "tokens" not in sizes or len(sizes) < len(entry["column_names"]):
        raise ValueError(f"the columns are {entry['column_names']!r}")
    n_windows, n_bytes = entry["samples"], entry["raw_data"]["bytes"]
    if n_windows and n_bytes < 4 * (n_windows + 2) + n_windows * sum(sizes.values()):
        raise ValueError(f"{n_windows} windows do not fit into the {n_bytes} bytes of {entry['raw_data']['basename']}")


def _check_keys(found: dict[str, Any], expected: set[str]) -> None:
    for name in found.keys() ^ expected:
        raise KeyError(name)


def _check_number(value: Any, *, name: str, least: int, most: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.100}")


def _check_text(value: Any, *, name: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r:.100}")


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
        with open_regular_file(path, name=name) as file:
            found_bytes, found_hash = os.fstat(file.fileno()).st_size, None
            if found_bytes == n_bytes and algorithm is not None:
                found_hash = hashlib.file_digest(file, _constructor(algorithm)).hexdigest()
    except BadFileError as error:
        is_missing = isinstance(error.__cause__, FileNotFoundError)
        return f"{name} is missing, its index says {n_bytes} bytes" if is_missing else str(error)
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return _difference(name, found_bytes, found_hash, n_bytes=n_bytes, hashes=hashes)


def read_shard_file(path: Path | S3Path, *, n_bytes: int, hashes: Mapping[str, str]) -> bytes:
    """Return the content of a shard's file, given its entry in the index; a file of another size is not read.

    Raises:
        DamagedShardError: it cannot be read, or is not what its index says.
    """
    content, fault = b"", None
    try:
        found_bytes = path.size() if isinstance(path, S3Path) else path.stat().st_size
        if found_bytes == n_bytes:
            content = path.read_bytes() if isinstance(path, S3Path) else read_small_file(path, most_bytes=n_bytes)
            fault = content_fault(content, name=path, n_bytes=n_bytes, hashes=hashes)
        else:
            fault = _difference(path, found_bytes, None, n_bytes=n_bytes, hashes=hashes)
    except BadFileError as error:
        fault = str(error)
    except OSError as error:
        fault = f"{path} cannot be read: {error.strerror}"
    if fault is not None:
        raise DamagedShardError(fault)
    return content


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
