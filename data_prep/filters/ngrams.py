"""Words and their n-grams as 64-bit hashes that are the same in every process; pure functions.

A word is a run of letters, digits and underscores, as in BigCode's deduplication.
"""

import re

import numpy as np
import numpy.typing as npt
import xxhash

Hashes = npt.NDArray[np.uint64]
_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, with well-mixed bits: 2^64 divided by the golden ratio


def word_hashes(words: list[str]) -> Hashes:
    """Return the XXH3 hashes of the words, (words,) uint64."""
    known = {word: xxhash.xxh3_64_intdigest(word) for word in set(words)}
    return np.array([known[word] for word in words], dtype=np.uint64)


def words_of(text: str) -> list[str]:
    """Return the words of a text, in order."""
    return _WORD.findall(text)


def ngram_hashes(hashes: Hashes, *, n: int) -> Hashes:
    """Return the hashes of all runs of `n` words, (words - n + 1,) uint64; empty if there are fewer than `n` words."""
    count = max(0, len(hashes) - n + 1)
    result = np.zeros(count, dtype=np.uint64)
    for i in range(n if count else 0):  # a polynomial modulo 2^64, so that order matters
        result = result * _FACTOR + hashes[i : i + count]
    return result
