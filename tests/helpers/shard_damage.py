"""Kinds of damage to shards, and the message of check_shards for each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

SHARD = "train/part-00000/shard.00000.mds"


def flip_a_byte(root: Path) -> None:
    data = bytearray((root / SHARD).read_bytes())
    data[len(data) // 2] ^= 1
    (root / SHARD).write_bytes(data)


def _rewrite(root: Path, change: Callable[[np.ndarray[Any, Any]], None]) -> None:
    """Change the windows of a shard and its hash, so that comparing hashes does not find the damage."""
    index = json.loads((root / "train" / "index.json").read_text())
    info = index["shards"][0]["raw_data"]
    data = bytearray((root / SHARD).read_bytes())
    metadata = json.loads((root / "metadata.json").read_text())
    length = metadata["seq_len"] + metadata["lookahead"]
    n_windows = index["shards"][0]["samples"]
    change(np.frombuffer(data, dtype=np.uint16, offset=len(data) - 2 * length * n_windows).reshape(n_windows, length))
    (root / SHARD).write_bytes(data)
    info["hashes"]["xxh64"] = xxhash.xxh64_hexdigest(bytes(data))
    (root / "train" / "index.json").write_text(json.dumps(index))


def _replace(root: Path, *, start: bytes, n_bytes: int | None = None, n_windows: int | None = None) -> None:
    """Replace the start of the shard, and perhaps its length, and adapt its index."""
    data = (start + (root / SHARD).read_bytes()[len(start) :])[:n_bytes]
    (root / SHARD).write_bytes(data)
    index = root / "train/index.json"
    change_json(index, "shards", 0, "raw_data", "bytes", value=len(data))
    change_json(index, "shards", 0, "raw_data", "hashes", "xxh64", value=xxhash.xxh64_hexdigest(data))
    if n_windows is not None:
        change_json(index, "shards", 0, "samples", value=n_windows)


def change_json(path: Path, *keys: str | int, value: object) -> None:
    whole = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(whole))


def _break_overlap(windows: np.ndarray[Any, Any]) -> None:
    windows[3, 0] ^= 1


def _beyond_vocabulary(windows: np.ndarray[Any, Any]) -> None:
    windows[0, 5] = 258  # neither in the overlap of the first window nor in the vocabulary


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (flip_a_byte, rf"{SHARD} has the xxh64 hash \w+, its index says \w+"),
    "cut short": (lambda root: (root / SHARD).write_bytes(b"short"), rf"{SHARD} has 5 bytes, its index says \d+"),
    "shard missing": (lambda root: (root / SHARD).unlink(), rf"{SHARD} cannot be read: No such file"),
    "index missing": (lambda root: (root / "val/index.json").unlink(), r"val/index\.json is missing"),
    "index damaged": (lambda root: (root / "val/index.json").write_text("{"), r"val/index\.json is not an index"),
    "no overlap": (lambda root: _rewrite(root, _break_overlap), rf"{SHARD}: windows do not overlap by 32 tokens"),
    "beyond": (lambda root: _rewrite(root, _beyond_vocabulary), rf"{SHARD} holds id 258, beyond vocab_size 258"),
    "other seq_len": (
        lambda root: change_json(root / "metadata.json", "seq_len", value=31),
        rf"{SHARD} does not hold \d+ windows of 63 tokens",
    ),
    "other count": (
        lambda root: change_json(root / "metadata.json", "splits", "val", "windows", value=1),
        r"val holds \d+ windows; metadata\.json says 1",
    ),
    "shard not in index": (
        lambda root: change_json(root / "train/index.json", "shards", value=[]),
        r"train holds 0 windows; metadata\.json says \d+",
    ),
    "metadata missing": (
        lambda root: (root / "metadata.json").unlink(),
        r"metadata\.json does not exist: .*not finished",
    ),
    "metadata damaged": (
        lambda root: (root / "metadata.json").write_text("x"),
        r"metadata\.json is not metadata of shards",
    ),
    "other version": (
        lambda root: change_json(root / "metadata.json", "format_version", value=99),
        r"has format_version=99, but this code reads 1",
    ),
    "metadata of something else": (
        lambda root: (root / "metadata.json").write_text("[1]"),
        r"metadata\.json is not metadata of shards",
    ),
    "metadata incomplete": (
        lambda root: change_json(root / "metadata.json", "splits", "val", value={}),
        r"metadata\.json is not metadata of shards: KeyError\('documents'\)",
    ),
    "absurd seq_len": (
        lambda root: change_json(root / "metadata.json", "seq_len", value="32"),
        r"metadata\.json is not metadata of shards: .*seq_len is '32\'",
    ),
    "no seq_len": (
        lambda root: change_json(root / "metadata.json", "seq_len", value=0),
        r"metadata\.json is not metadata of shards: .*seq_len is 0",
    ),
    "absurd number of windows": (
        lambda root: change_json(root / "train/index.json", "shards", 0, "samples", value=10**9),
        r"train/index\.json is not an index .*1000000000 windows do not fit into the \d+ bytes",
    ),
    "cut short, and hashed so": (
        lambda root: _replace(root, start=b"\x09\0\0\0", n_bytes=10, n_windows=9),
        r"train/index\.json is not an index .*9 windows do not fit into the 10 bytes",
    ),
    "other count in the file": (
        lambda root: _replace(root, start=b"\x09\0\0\0"),
        rf"{SHARD} does not hold \d+ windows of 64 tokens",
    ),
    "absurd size": (
        lambda root: change_json(root / "train/index.json", "shards", 0, "raw_data", "bytes", value=10**15),
        r"train/index\.json is not an index .*bytes of part-00000/shard\.00000\.mds is 1000000000000000",
    ),
    "no hash": (
        lambda root: change_json(root / "train/index.json", "shards", 0, "raw_data", "hashes", value={}),
        r"train/index\.json is not an index .*part-00000/shard\.00000\.mds has no xxh64 hash",
    ),
}
