"""Digests of documents: the hash that exact deduplication and the choice of split go by; pure functions."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

DIGEST_BYTES = 16
Digests = npt.NDArray[np.void]


def digest(utf8: bytes) -> bytes:
    """Return the 16-byte XXH3 hash of a document."""
    return xxhash.xxh3_128_digest(utf8)


def first_occurrences(digests_by_part: Sequence[Digests]) -> list[npt.NDArray[np.bool_]]:
    """Return for each part which of its documents is the first with its digest, over all parts in their order.

    Args:
        digests_by_part: for each part, an array (documents,) of 16-byte `np.void` digests.

    Returns:
        For each part, an array (documents,) of bool.
    """
    if not digests_by_part:
        return []
    _, first_indices = np.unique(np.concatenate(digests_by_part), return_index=True)
    is_first = np.zeros(sum(map(len, digests_by_part)), dtype=np.bool_)
    is_first[first_indices] = True
    return np.split(is_first, np.cumsum([len(digests) for digests in digests_by_part])[:-1])


def is_validation(document_digest: bytes, *, val_fraction: float) -> bool:
    """Return whether a document belongs to the validation split; it depends on the document's content alone."""
    return int.from_bytes(document_digest[:8], "big") < val_fraction * 2**64
