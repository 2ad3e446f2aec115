"""Nouns that agree with their number."""

import pytest

from common.wording import counted


@pytest.mark.parametrize(("number", "text"), [(0, "0 ranks"), (1, "1 rank"), (2, "2 ranks"), (1024, "1,024 ranks")])
def test_a_noun_agrees_with_its_number(number: int, text: str) -> None:
    assert counted(number, "rank") == text
    assert counted(2, "batch", plural="batches") == "2 batches"
