import argparse
import hashlib
from typing import Any

import numpy as np
import pytest

from data_prep.filters.limits import (
    DIGEST_BYTES,
    PRESETS,
    FilterOptions,
    add_filter_arguments,
    apply_preset,
    digest,
    filter_options,
    filter_problems,
    first_occurrences,
    is_licensed,
    is_validation,
    reason_to_drop,
)
from data_prep.filters.starcoder import RULES, alphanumeric_fraction, longest_line, mean_line_length
from data_prep.sources.documents import Document


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


def _parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_filter_arguments(parser)
    parsed = parser.parse_args(arguments)
    apply_preset(parsed)
    return parsed


def _options(*arguments: str) -> FilterOptions:
    return filter_options(_parsed(*arguments))


def test_a_preset_gives_what_the_command_line_leaves_open() -> None:
    assert _options() == _options("--filters", "none") == FilterOptions()
    assert _options("--filters", "basic", "--max_line_length", "80") == FilterOptions(
        max_line_length=80, max_mean_line_length=100, min_alphanumeric_fraction=0.25
    )
    assert _options("--filters", "starcoder") == FilterOptions(rules=tuple(RULES))
    assert _options("--filters", "starcoder", "--rules", "xml", "--min_bytes", "9").rules == ("xml",)


def test_named_rules_go_by_their_language() -> None:
    options = _options("--filters", "starcoder", "--language_field", "lang")
    text = "word " * 300  # one line of 1500 characters
    assert reason_to_drop(Document(text, text.encode(), "a.py", 0), options) == "long_lines"
    assert reason_to_drop(Document(text, text.encode(), "a.md", 0), options) is None
    assert reason_to_drop(Document(text, text.encode(), "a.jsonl:1", 0, {"lang": "Markdown"}), options) is None
    assert reason_to_drop(Document(text, text.encode(), "a.py", 0), FilterOptions(rules=("xml",))) is None


@pytest.mark.parametrize(
    ("found", "licensed"),
    [
        ("MIT", True),
        (["MIT", "Apache-2.0"], True),
        ("GPL-3.0", False),
        (["MIT", "GPL-3.0"], False),
        ([], False),
        (None, False),
        (["MIT", None], False),
        ("", False),
        ({"mit": 1}, False),
    ],
)
def test_licences_are_all_of_the_list(found: Any, licensed: bool) -> None:
    assert is_licensed(found, ("mit", "apache-2.0")) is licensed
    options = _options("--license_field", "license", "--licenses", "mit", "Apache-2.0")
    document = Document("x", b"x", "a.jsonl:1", 0, {"license": found})
    assert reason_to_drop(document, options) == (None if licensed else "license")


@pytest.mark.parametrize("arguments", [["--license_field", "license"], ["--licenses", "mit"]])
def test_licences_need_their_field(arguments: list[str]) -> None:
    (problem,) = filter_problems(_parsed(*arguments))
    assert problem.startswith("--license_field and --licenses need each other")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_and_their_limits_are_no_problem(preset: str) -> None:
    assert filter_problems(_parsed("--filters", preset, "--min_bytes", "0", "--max_bytes", "1")) == []


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
