"""Near duplicates among MinHash signatures: which rows of a large array are near to an earlier row that stays.

This is locality-sensitive hashing with little memory: the signatures, and the arrays computed from them, lie in mapped
files, and the system keeps in memory as much of them as fits.

1. The values of each band become a 64-bit key for each row. Keys are stored band by band.
2. A stable sort of a band's keys brings rows with the same key together, in their order. So each row gets, for each
   band, a link to the row before it with the same key, or -1.
3. Rows are judged in order. A row's links lead to its candidates. A dropped row passes its own links on, so that links
   lead only to rows that stay. A candidate counts if all values of one band are equal, because different bands may have
   the same key, and if the fraction of equal values, which estimates the Jaccard similarity, reaches the threshold.

Besides the mapped files, only the keys of one band, their order, and the arrays that compare them are in memory.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROWS_AT_ONCE = 1 << 14
_NONE = -1
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
Signatures = npt.NDArray[np.uint32]


def near_rows(
    signatures: Signatures, *, threshold: float, bands: int, band_size: int, folder: Path
) -> npt.NDArray[np.bool_]:
    """Return which rows are near to an earlier row that is itself not near to one, (rows,).

    Args:
        signatures: (rows, permutations), in the order of the documents; may be mapped.
        threshold: smallest fraction of equal values at which rows are near.
        bands: number of bands.
        band_size: values in a band; bands are cut from the first `bands` * `band_size` values of a row.
        folder: two files are made in it, of 8 and 4 bytes for each row and band.
    """
    is_near = np.zeros(len(signatures), dtype=np.bool_)
    if not len(signatures):
        return is_near
    links = _links(signatures, bands=bands, band_size=band_size, folder=folder)
    n_banded = bands * band_size
    for start in range(0, len(signatures), ROWS_AT_ONCE):
        linked = (links[start : start + ROWS_AT_ONCE] != _NONE).any(axis=1)
        for row in (start + np.flatnonzero(linked)).tolist():
            own = links[row]
            has_link = own != _NONE
            before = own[has_link]
            own[has_link] = np.where(is_near[before], links[before, has_link], before)
            for candidate in _candidates(row, links):
                is_equal = signatures[candidate] == signatures[row]
                shares_band = is_equal[:n_banded].reshape(bands, band_size).all(axis=1).any()
                if shares_band and is_equal.mean() >= threshold:
                    is_near[row] = True
                    break
    return is_near


def _candidates(row: int, links: npt.NDArray[np.int32]) -> Iterator[int]:
    """Yield each row that the links of `row` lead to, once."""
    seen: set[int] = set()
    for band in np.flatnonzero(links[row] != _NONE).tolist():
        candidate = int(links[row, band])
        while candidate != _NONE:
            if candidate not in seen:
                seen.add(candidate)
                yield candidate
            candidate = int(links[candidate, band])


def _links(signatures: Signatures, *, bands: int, band_size: int, folder: Path) -> npt.NDArray[np.int32]:
    """Return for each row and band the index of the row before it with the same key, or -1; (rows, bands), mapped."""
    n_rows = len(signatures)
    assert n_rows < 2**31
    keys = np.memmap(folder / "keys", dtype=np.uint64, mode="w+", shape=(bands, n_rows))
    for start in range(0, n_rows, ROWS_AT_ONCE):
        rows = signatures[start : start + ROWS_AT_ONCE, : bands * band_size].astype(np.uint64)
        keys[:, start : start + len(rows)] = _keys(rows.reshape(len(rows), bands, band_size)).T
    links = np.memmap(folder / "links", dtype=np.int32, mode="w+", shape=(n_rows, bands))
    for band in range(bands):
        order = np.argsort(keys[band], kind="stable")
        in_order = keys[band][order]
        links[order[0], band] = _NONE
        links[order[1:], band] = np.where(in_order[1:] == in_order[:-1], order[:-1], _NONE)
    return links


def _keys(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return one key for each run of values on the last axis."""
    keys = np.zeros(values.shape[:-1], dtype=np.uint64)
    for place in range(values.shape[-1]):
        keys = (keys ^ values[..., place]) * _FACTOR
        keys ^= keys >> np.uint64(32)
    return keys
