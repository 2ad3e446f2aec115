"""Near rows against datasketch's own index, which is queried with one row after the other."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from data_prep.dedup import near_index
from data_prep.dedup.near_index import Signatures, near_rows
from data_prep.dedup.survey import PERMUTATIONS, THRESHOLD, bands_and_size, signer
from tests.conftest import REPOSITORY


def by_datasketch(signatures: Signatures) -> npt.NDArray[np.bool_]:
    """Return which rows are near to an earlier row that stays, (rows,), by datasketch's index."""
    from datasketch import MinHash, MinHashLSH

    index, is_near = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS), []
    for row, signature in enumerate(signatures):
        sketch = MinHash(hashvalues=signature, scheme="affine32")
        is_near.append(any(np.mean(signatures[i] == signature) >= THRESHOLD for i in index.query(sketch)))
        if not is_near[-1]:
            index.insert(row, sketch)
    return np.array(is_near)


def ours(signatures: Signatures, folder: Path) -> npt.NDArray[np.bool_]:
    bands, band_size = bands_and_size()
    return near_rows(signatures, threshold=THRESHOLD, bands=bands, band_size=band_size, folder=folder)


def families(n_families: int, of: int, *, seed: int) -> Signatures:
    """Rows that differ from their family's first in a fraction around the threshold, and chains of small changes."""
    generator = np.random.default_rng(seed)
    rows = []
    for family in range(n_families):
        row = generator.integers(0, 2**32, size=PERMUTATIONS, dtype=np.uint32)
        first = row
        for _ in range(of):
            rows.append(row)
            row = (row if family % 2 else first).copy()
            changed = generator.random(PERMUTATIONS) < generator.uniform(0.1, 0.45)
            row[changed] = generator.integers(0, 2**32, size=int(changed.sum()), dtype=np.uint32)
    return np.array(rows)[generator.permutation(len(rows))]


@pytest.mark.parametrize("rows_at_once", [7, 1 << 14])
def test_decisions_are_those_of_datasketch(rows_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_index, "ROWS_AT_ONCE", rows_at_once)
    signatures = families(60, 10, seed=rows_at_once)
    expected = by_datasketch(signatures)
    assert 100 < expected.sum() < 500
    assert (ours(signatures, tmp_path) == expected).all()


def test_keys_that_collide_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signatures = families(12, 10, seed=3)
    monkeypatch.setattr(near_index, "_keys", lambda values: np.zeros(values.shape[:-1], dtype=np.uint64))
    assert (ours(signatures, tmp_path) == by_datasketch(signatures)).all()


def test_real_documents(tmp_path: Path) -> None:
    signature_of = signer()
    texts = [path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "tests").rglob("*.py"))]
    halves = [text[: len(text) * part // 10] for text in texts for part in (10, 9, 6)]
    signatures = np.array([signature_of(text) for text in halves])
    signatures = signatures[signatures.any(axis=1)]
    expected = by_datasketch(signatures)
    assert len(texts) // 2 < expected.sum() < 2 * len(texts)
    assert (ours(signatures, tmp_path) == expected).all()


def test_no_rows(tmp_path: Path) -> None:
    assert len(ours(np.empty((0, PERMUTATIONS), dtype=np.uint32), tmp_path)) == 0
