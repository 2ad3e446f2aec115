"""A random order of documents that depends only on the seed and the corpus, computed in little memory.

A corpus does not fit into memory, so there are two steps. First, pieces (files, or runs of lines of plain jsonl) are
put in a random order before they are grouped into parts, so any piece can be in any part. Then the documents of each
part are put in a random order: their tokens are written to a file, and only their lengths stay in memory.

So every order of a source tree's files is possible, but the documents of one compressed jsonl file stay in one part.
The order comes from hashes of numbers and the seed, because numpy's permutations may change with its version.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from data_prep.tokens.packing import TokenArray

T = TypeVar("T")
PIECES_OF_PART = 8  # plain jsonl is cut into at least this many pieces per part


def random_order(n: int, *, seed: int, stream: int) -> npt.NDArray[np.int64]:
    """Return a permutation of range(n), (n,) int64, that depends only on `n`, `seed` and `stream`."""
    keys = (xxhash.xxh3_64_intdigest(struct.pack("<qq", stream, number), seed=seed) for number in range(n))
    return np.argsort(np.fromiter(keys, dtype=np.uint64, count=n), kind="stable")


def shuffled(items: Sequence[T], *, seed: int) -> list[T]:
    """Return the items in a random order."""
    return [items[i] for i in random_order(len(items), seed=seed, stream=-1)]


class DocumentShuffler:
    """Stores the tokens of documents in a file, and returns them in a random order."""

    def __init__(self, path: Path, *, seed: int, part_index: int) -> None:
        self._path, self._seed, self._part_index = path, seed, part_index
        self._lengths = array("q")
        self._file = path.open("w+b")

    def add(self, tokens: TokenArray) -> None:
        """Append the tokens (n,) of one document."""
        self._lengths.append(len(tokens))
        self._file.write(tokens.data)

    def documents(self) -> Iterator[TokenArray]:
        """Yield the tokens of each document once, and then remove the file."""
        with self._file:
            n_bytes = np.asarray(self._lengths) * np.dtype(np.uint16).itemsize
            starts = np.cumsum(n_bytes) - n_bytes
            for i in random_order(len(n_bytes), seed=self._seed, stream=self._part_index):
                self._file.seek(starts[i])
                yield np.frombuffer(self._file.read(n_bytes[i]), dtype=np.uint16)
        self._path.unlink()
