"""Documents in a random order that the seed and the corpus decide, and nothing else; in little memory.

A corpus does not fit into memory, so there are two steps. Pieces (files, or runs of lines of plain jsonl files) are put
in a random order before they are cut into parts: any piece can come to lie in any part. Within a part, the documents
of all its pieces are in a random order: their tokens wait in a file, of which memory knows the places alone.

So of source trees every order is possible, whereas documents of one compressed jsonl file stay in one part. What is
random is a hash of a number and the seed: numpy's permutations may change with its version.
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
PIECES_OF_PART = 8  # at least, into which plain jsonl is cut


def random_order(n: int, *, seed: int, stream: int) -> npt.NDArray[np.int64]:
    """Return a permutation of range(n) that depends on `n`, `seed` and `stream` alone."""
    keys = (xxhash.xxh3_64_intdigest(struct.pack("<qq", stream, number), seed=seed) for number in range(n))
    return np.argsort(np.fromiter(keys, dtype=np.uint64, count=n), kind="stable")


def shuffled(items: Sequence[T], *, seed: int) -> list[T]:
    """Return the items in a random order."""
    return [items[i] for i in random_order(len(items), seed=seed, stream=-1)]


class DocumentShuffler:
    """Takes the tokens of documents, and gives them back in a random order; the file is gone then."""

    def __init__(self, path: Path, *, seed: int, part_index: int) -> None:
        self._path, self._seed, self._part_index = path, seed, part_index
        self._lengths = array("q")
        self._file = path.open("w+b")

    def add(self, tokens: TokenArray) -> None:
        self._lengths.append(len(tokens))
        self._file.write(tokens.data)

    def documents(self) -> Iterator[TokenArray]:
        """Yield the documents, each once."""
        with self._file:
            n_bytes = np.asarray(self._lengths) * np.dtype(np.uint16).itemsize
            starts = np.cumsum(n_bytes) - n_bytes
            for i in random_order(len(n_bytes), seed=self._seed, stream=self._part_index):
                self._file.seek(starts[i])
                yield np.frombuffer(self._file.read(n_bytes[i]), dtype=np.uint16)
        self._path.unlink()
