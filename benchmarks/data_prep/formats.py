"""The cost of shard size, compression and hashes, when shards are written and read by mosaicml-streaming.

Tokens are those of the corpus, as bytes, which compress well, and as ids of a model, which do not.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data_prep.corpus import MB
from data_prep.tokens.packing import TokenArray


@dataclass(frozen=True)
class Format:
    """The settings of streaming's writer."""

    shard_mb: int = 64
    compression: str | None = None
    hashes: tuple[str, ...] = ("xxh64",)

    def __str__(self) -> str:
        return f"{self.shard_mb} MB, {self.compression or 'not compressed'}, {' '.join(self.hashes) or 'no hash'}"


FORMATS = (
    Format(),
    Format(shard_mb=16),
    Format(shard_mb=256),
    Format(hashes=()),
    Format(hashes=("sha1",)),
    Format(compression="zstd:1"),
    Format(compression="zstd"),
    Format(compression="zstd:9"),
)


def measure(format_: Format, windows: TokenArray, out: Path) -> dict[str, Any]:
    """Write and read all windows in one format; return the files, the bytes on disk, and both speeds.

    Writing is measured in MB of tokens per CPU second, reading (in order) in MB per second of wall time.
    """
    from common.mds import streaming

    started = time.process_time()
    with streaming.MDSWriter(
        columns={"tokens": f"ndarray:uint16:{windows.shape[1]}"},
        out=str(out),
        compression=format_.compression,
        hashes=list(format_.hashes),
        size_limit=format_.shard_mb << 20,
    ) as mds:
        for window in windows:
            mds.write({"tokens": window})
    write_s = time.process_time() - started
    stored = [path.stat().st_size for path in out.glob("shard.*")]
    reading = time.perf_counter()
    validate = format_.hashes[0] if format_.hashes else None
    dataset = streaming.StreamingDataset(local=str(out), batch_size=1, shuffle=False, validate_hash=validate)
    n_read = sum(len(sample["tokens"]) for sample in _windows(dataset))
    read_s = time.perf_counter() - reading
    assert n_read == windows.size
    n_mb = windows.nbytes / MB
    return asdict(format_) | {
        "files": len(stored),
        "of_size": sum(stored) / windows.nbytes,
        "write_mb_per_s": n_mb / write_s,
        "read_mb_per_s": n_mb / read_s,
    }


def _windows(dataset: Any) -> Iterator[dict[str, TokenArray]]:
    return (dataset[number] for number in range(len(dataset)))


def windows_of_shards(folder: Path, *, length: int) -> TokenArray:
    """Return all windows (windows, length) that `write_part` wrote into a folder without compression."""
    found = []
    for path in sorted(folder.rglob("*.mds")):
        raw = path.read_bytes()
        start = int(np.frombuffer(raw, dtype=np.uint32, count=1, offset=4)[0])
        found.append(np.frombuffer(raw, dtype=np.uint16, offset=start).reshape(-1, length))
    return np.concatenate(found)
