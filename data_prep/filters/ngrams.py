"""Words and their n-grams as 64-bit hashes that are the same in every process; pure functions.

A word is a run of letters, digits and underscores, as in BigCode's deduplication. Some scripts have no spaces, so that
such a run may be a whole paragraph; there, a unit of the text is one character.
"""

import re

import numpy as np
import numpy.typing as npt
import xxhash

Hashes = npt.NDArray[np.uint64]
_WORD = re.compile(r"\w+")
# The scripts that are written without spaces: those whose line breaks Unicode (UAX #14) looks up in a dictionary (SA:
# Thai, Lao, Burmese, Khmer and others), and Chinese characters, kana, bopomofo and Yi.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf\U00011700-\U0001174f"
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\ua4cf\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_UNIT = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, with well-mixed bits: 2^64 divided by the golden ratio


def word_hashes(words: list[str]) -> Hashes:
    """Return the XXH3 hashes of the words, (words,) uint64."""
    known = {word: xxhash.xxh3_64_intdigest(word) for word in set(words)}
    return np.array([known[word] for word in words], dtype=np.uint64)


def words_of(text: str) -> list[str]:
    """Return the words of a text, in order."""
    return _WORD.findall(text)


def units_of(text: str) -> list[str]:
    """Return the words of a text, in order; where a script has no spaces, its characters."""
    return _UNIT.findall(text)


def ngram_hashes(hashes: Hashes, *, n: int) -> Hashes:
    """Return the hashes of all runs of `n` words, (words - n + 1,) uint64; empty if there are fewer than `n` words."""
    count = max(0, len(hashes) - n + 1)
    result = np.zeros(count, dtype=np.uint64)
    for i in range(n if count else 0):  # a polynomial modulo 2^64, so that order matters
        result = result * _FACTOR + hashes[i : i + count]
    return result
