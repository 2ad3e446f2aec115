import hashlib

import numpy as np
import pytest

from data_prep.documents import Document
from data_prep.filters import (
    DIGEST_BYTES,
    FilterOptions,
    alphanumeric_fraction,
    digest,
    first_occurrences,
    is_validation,
    longest_line,
    mean_line_length,
    reason_to_drop,
)


def _document(text: str) -> Document:
    return Document(text, text.encode(), "here", 0)


@pytest.mark.parametrize(
    ("text", "longest", "mean", "alphanumeric"),
    [
        ("", 0, 0.0, 0.0),
        ("abcd", 4, 4.0, 1.0),
        ("ab\nabcd\n", 4, 3.0, 6 / 8),
        ("\n\n\n", 0, 0.0, 0.0),
        ("é=1\r\n(((", 3, 3.0, 2 / 8),
    ],
)
def test_measures_of_a_text(text: str, longest: int, mean: float, alphanumeric: float) -> None:
    assert longest_line(text) == longest
    assert mean_line_length(text) == mean
    assert alphanumeric_fraction(text) == alphanumeric


@pytest.mark.parametrize(
    ("options", "text", "reason"),
    [
        (FilterOptions(), "", "empty"),
        (FilterOptions(), " \n\t\r\n", "empty"),
        (FilterOptions(), "x" * 100_000, None),
        (FilterOptions(min_bytes=3), "é", "min_bytes"),  # two bytes
        (FilterOptions(min_bytes=2), "é", None),
        (FilterOptions(max_bytes=1), "é", "max_bytes"),
        (FilterOptions(max_bytes=2), "é", None),
        (FilterOptions(max_line_length=4), "a\nabcde", "max_line_length"),
        (FilterOptions(max_line_length=5), "a\nabcde", None),
        (FilterOptions(max_mean_line_length=2.9), "a\nabcde", "max_mean_line_length"),
        (FilterOptions(max_mean_line_length=3), "a\nabcde", None),
        (FilterOptions(min_alphanumeric_fraction=0.26), "a===", "min_alphanumeric_fraction"),
        (FilterOptions(min_alphanumeric_fraction=0.25), "a===", None),
        (FilterOptions(min_bytes=9, max_line_length=1), "abc", "min_bytes"),  # one reason each, the first
    ],
)
def test_each_rule_at_its_limit(options: FilterOptions, text: str, reason: str | None) -> None:
    assert reason_to_drop(_document(text), options) == reason


def test_the_first_of_equal_documents_stays_over_all_parts() -> None:
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


def test_the_split_takes_its_fraction_and_grows_with_it() -> None:
    digests = [digest(hashlib.sha256(str(i).encode()).digest()) for i in range(20_000)]
    chosen = {f: {d for d in digests if is_validation(d, val_fraction=f)} for f in (0.0, 0.005, 0.1)}
    assert len(chosen[0.0]) == 0
    assert 60 <= len(chosen[0.005]) <= 140  # 100 expected, +- 4 sigma
    assert 1830 <= len(chosen[0.1]) <= 2170
    assert chosen[0.005] <= chosen[0.1]  # a document of the small split stays in the larger
