from typing import Any

import pytest

from data_prep.filters.options import FilterOptions
from data_prep.filters.reasons import is_licensed, rule_broken
from data_prep.filters.starcoder import RULES
from data_prep.sources.documents import Document


def _document(text: str) -> Document:
    return Document(text, text.encode(), "here", 0)


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
def test_each_limit_at_its_bound(options: FilterOptions, text: str, reason: str | None) -> None:
    assert rule_broken(_document(text), options) == reason


def test_named_rules_depend_on_the_language() -> None:
    options = FilterOptions(rules=tuple(RULES), language_field="lang")
    text = "word " * 300  # one line of 1500 characters
    assert rule_broken(Document(text, text.encode(), "a.py", 0), options) == "long_lines"
    assert rule_broken(Document(text, text.encode(), "a.md", 0), options) is None
    assert rule_broken(Document(text, text.encode(), "a.jsonl:1", 0, {"lang": "Markdown"}), options) is None
    assert rule_broken(Document(text, text.encode(), "a.py", 0), FilterOptions(rules=("xml",))) is None


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
def test_every_licence_of_a_list_must_be_allowed(found: Any, licensed: bool) -> None:
    assert is_licensed(found, ("mit", "apache-2.0")) is licensed
    options = FilterOptions(license_field="license", licenses=("mit", "apache-2.0"))
    document = Document("x", b"x", "a.jsonl:1", 0, {"license": found})
    assert rule_broken(document, options) == (None if licensed else "license")
