import hashlib

import numpy as np

from data_prep.filters.digests import DIGEST_BYTES, digest, first_occurrences, is_validation


def test_the_first_of_equal_documents_in_all_parts_stays() -> None:
    parts = [["a", "b", "a"], [], ["b", "c"], ["c", "a", "d"]]
    seen: set[str] = set()
    expected = []
    for part in parts:
        expected.append([not (text in seen or seen.add(text)) for text in part])  # type: ignore[func-returns-value]
    arrays = [
        np.frombuffer(b"".join(digest(text.encode()) for text in part), dtype=np.dtype((np.void, DIGEST_BYTES)))
        for part in parts
    ]
    assert [keep.tolist() for keep in first_occurrences(arrays)] == expected
    assert first_occurrences([]) == []


def test_a_digest_is_a_function_of_every_byte() -> None:
    texts = [str(i).encode() for i in range(2000)]
    assert len({digest(text) for text in texts}) == len(texts)
    assert all(len(digest(text)) == DIGEST_BYTES for text in texts)


def test_the_validation_split_takes_its_fraction_and_a_larger_one_contains_it() -> None:
    digests = [digest(hashlib.sha256(str(i).encode()).digest()) for i in range(20_000)]
    chosen = {f: {d for d in digests if is_validation(d, val_fraction=f)} for f in (0.0, 0.005, 0.1)}
    assert len(chosen[0.0]) == 0
    assert 60 <= len(chosen[0.005]) <= 140  # 100 expected, +- 4 sigma
    assert 1830 <= len(chosen[0.1]) <= 2170
    assert chosen[0.005] <= chosen[0.1]  # a document of the smaller split is in the larger too
