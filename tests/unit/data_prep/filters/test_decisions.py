"""The copies of each document, compared with counts made by hand."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_prep.filters.decisions import ChangedInputError, decisions
from data_prep.filters.digests import digest, is_validation
from data_prep.filters.options import FilterOptions
from data_prep.sources.documents import Document, ReadOptions, Selection
from data_prep.sources.listing import list_source

TEXTS = [f"document {i}" for i in range(2000)]


def _write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def _copies(path: Path, weight: float, **options: Any) -> Counter[str]:
    """Return how many copies of each text stay."""
    pieces = list_source(str(path), selection=Selection("it", weight)).pieces
    decided = decisions(pieces, ReadOptions(), FilterOptions(), **options)
    return Counter(record.text for record, reason, _ in decided if reason is None and isinstance(record, Document))


@pytest.mark.parametrize("weight", [0.001, 0.25, 0.9, 1.0, 2.0, 2.5])
def test_a_weight_is_the_number_of_copies(weight: float, tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", TEXTS)
    copies = _copies(path, weight)
    assert {copies[text] for text in TEXTS} <= {int(weight), int(weight) + 1}
    n_more = sum(copies[text] > int(weight) for text in TEXTS)
    share = weight % 1
    deviation = (len(TEXTS) * share * (1 - share)) ** 0.5
    assert abs(n_more - share * len(TEXTS)) <= 5 * deviation
    again = _copies(_write(tmp_path / "b.jsonl", TEXTS[::-1]), weight)
    assert again == copies  # in any order, from any file


def test_a_smaller_weight_keeps_a_subset_and_validation_is_never_repeated(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", TEXTS)
    assert _copies(path, 0.2) <= _copies(path, 0.6) <= _copies(path, 1.6)
    copies = _copies(path, 3.0, val_fraction=0.3)
    validation = [text for text in TEXTS if is_validation(digest(text.encode()), val_fraction=0.3)]
    assert 500 < len(validation) < 700
    assert {copies[text] for text in validation} == {1}
    assert {copies[text] for text in TEXTS if text not in set(validation)} == {3}


def test_the_decisions_of_a_survey_hold_for_every_reading(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", TEXTS[:4])
    reasons = [["", "duplicate", "", "duplicate"]]
    assert _copies(path, 2.0, reasons=reasons) == {TEXTS[0]: 2, TEXTS[2]: 2}
    for changed in (reasons[0][:-1], [*reasons[0], ""]):
        with pytest.raises(ChangedInputError, match=r"a\.jsonl changed while it was read: .* had [35] records"):
            _copies(path, 2.0, reasons=[changed])
