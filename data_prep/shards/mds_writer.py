"""A writer of MDS shards that takes many windows at a time; its files equal those of streaming's MDSWriter.

MDSWriter takes one window at a time, and importing it takes seconds because it imports torch.

An MDS file consists of: uint32 n, uint32 offsets[n + 1], a JSON header, and n windows. A window has one
uint16[seq_len + lookahead] for each column, in alphabetical order of the columns, so all windows have the same size.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard

from common.shard_format import INDEX
from data_prep.tokens.packing import TokenArray

DOCUMENT_IDS, TOKENS = "document_ids", "tokens"  # the columns; document_ids is optional
_MDS_VERSION = 2
_SHARD_BYTES = 1 << 26  # largest size of a file, unless a single window is larger
_ZIP_SUFFIX = ".zstd"
_ZSTD_LEVEL = 3  # the level that streaming uses for "zstd"


def index_of(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of an index.json with these entries."""
    return {"version": _MDS_VERSION, "shards": shards}


def settings_of(*, window_length: int, compression: str | None, columns: Sequence[str] = (TOKENS,)) -> dict[str, Any]:
    """Return the keys of a shard's entry in an index that are the same for all shards of a folder."""
    return {
        "version": _MDS_VERSION,
        "format": "mds",
        "compression": compression,
        "hashes": ["xxh64"],
        "size_limit": _SHARD_BYTES,
        "column_names": sorted(columns),
        "column_encodings": [f"ndarray:uint16:{window_length}"] * len(columns),
        "column_sizes": [2 * window_length] * len(columns),
    }


def entry_fault(entry: dict[str, Any], folder: Path, *, number: int, settings: Mapping[str, Any]) -> str | None:
    """Return why a shard's entry in an index is not one that `MDSWriter` wrote, or its file is not there; or None.

    Args:
        entry: the entry, which has the form that MDS defines.
        folder: the folder of the index.
        number: the shard's place in the index.
        settings: those of the folder (`settings_of`).
    """
    if entry.keys() != {"samples", "raw_data", "zip_data", *settings}:
        return f"shard {number} has other entries than {', '.join(sorted(settings))}"
    if differing := [name for name, value in settings.items() if entry[name] != value]:
        return f"shard {number} has {differing[0]} {entry[differing[0]]!r}"
    name = _shard_name(number)
    stored = entry["raw_data"] if settings["compression"] is None else entry["zip_data"]
    named = [entry[key]["basename"] for key in ("raw_data", "zip_data") if entry[key] is not None]
    if named != ([name] if settings["compression"] is None else [name, f"{name}{_ZIP_SUFFIX}"]):
        return f"shard {number} names the files {' '.join(named)}"
    path = folder / stored["basename"]
    if path.is_symlink() or not path.is_file() or path.stat().st_size != stored["bytes"]:
        return f"{path.name} is not a file of {stored['bytes']} bytes"
    return None


def _shard_name(number: int) -> str:
    return f"shard.{number:05}.mds"


class MDSWriter:
    """Writes windows into shards in a new folder, and at the end their index.json.

    Args:
        folder: made by the writer; must not exist.
        window_length: tokens of a window, seq_len + lookahead.
        compression: "zstd", "zstd:LEVEL", or None.
        columns: names of the columns.
    """

    def __init__(
        self, folder: Path, *, window_length: int, compression: str | None, columns: Sequence[str] = (TOKENS,)
    ) -> None:
        self._folder = folder
        self._window_bytes = 2 * window_length * len(columns)
        self._config = settings_of(window_length=window_length, compression=compression, columns=columns)
        self._header = json.dumps(self._config, sort_keys=True).encode()
        self._windows_per_shard = max(1, (_SHARD_BYTES - 8 - len(self._header)) // (4 + self._window_bytes))
        self._pending: list[TokenArray] = []
        self._n_pending = 0
        self._shards: list[dict[str, Any]] = []
        folder.mkdir(parents=True)

    def add(self, windows: TokenArray) -> None:
        """Append windows (n_windows, n_columns * window_length); those that do not fill a shard stay in memory."""
        while len(windows):
            taken = windows[: self._windows_per_shard - self._n_pending]
            windows = windows[len(taken) :]
            self._pending.append(taken)
            self._n_pending += len(taken)
            if self._n_pending == self._windows_per_shard:
                self._write_shard()

    def finish(self) -> None:
        """Write the last shard and the index."""
        if self._n_pending:
            self._write_shard()
        index = json.dumps(index_of(self._shards), sort_keys=True)
        (self._folder / INDEX).write_text(index, encoding="utf-8")

    def _write_shard(self) -> None:
        n_windows, name = self._n_pending, _shard_name(len(self._shards))
        start = 4 * (n_windows + 2) + len(self._header)  # of the windows
        raw = np.empty(start + n_windows * self._window_bytes, dtype=np.uint8)
        raw[:4].view(np.uint32)[0] = n_windows
        raw[4 : 4 * (n_windows + 2)].view(np.uint32)[:] = start + self._window_bytes * np.arange(n_windows + 1)
        raw[4 * (n_windows + 2) : start] = np.frombuffer(self._header, dtype=np.uint8)
        np.concatenate(self._pending, out=raw[start:].view(np.uint16).reshape(n_windows, -1))
        stored, zip_entry = raw.data, None
        raw_entry = _file_entry(raw.data, name)
        if (compression := self._config["compression"]) is not None:
            level = int(compression.partition(":")[2] or _ZSTD_LEVEL)
            stored = memoryview(zstandard.ZstdCompressor(level=level).compress(raw.data))
            name = f"{name}{_ZIP_SUFFIX}"
            zip_entry = _file_entry(stored, name)
        (self._folder / name).write_bytes(stored)
        self._shards.append({"samples": n_windows, "raw_data": raw_entry, "zip_data": zip_entry} | self._config)
        self._pending, self._n_pending = [], 0


def _file_entry(data: memoryview, name: str) -> dict[str, Any]:
    return {"basename": name, "bytes": len(data), "hashes": {"xxh64": xxhash.xxh64_hexdigest(data)}}
