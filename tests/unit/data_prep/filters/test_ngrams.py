# ruff: noqa: RUF001
"""The units of a text, against the words of the standard library's expressions, and characters counted by hand."""

import re

import pytest

from data_prep.filters.ngrams import units_of
from tests.helpers.shard_writing import STDLIB

SPACED = {
    "code": (STDLIB / "argparse.py").read_text() + (STDLIB / "locale.py").read_text(),
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Hebrew": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "Arabic": "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق.",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "Vietnamese": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "Amharic": "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።",
    "Georgian": "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    "numbers": "x_1 = 0x7f + ½ ² ١٢٣ caf\u00e9 cafe\u0301",
}


@pytest.mark.parametrize("language", SPACED)
def test_units_of_text_with_spaces_are_its_words(language: str) -> None:
    text = SPACED[language]
    assert units_of(text) == re.findall(r"\w+", text)


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("学Python的5个方法。", ["学", "Python", "的", "5", "个", "方", "法"]),
        ("カタカナとひらがな、漢字々", list("カタカナとひらがな漢字々")),
        ("ภาษาไทย ดี", list("ภาษาไทยดี")),  # vowel signs are no letters for \w
        ("ភាសាខ្មែរ", list("ភាសាខ្មែរ")),
        ("ພາສາລາວ", list("ພາສາລາວ")),
        ("မြန်မာ", list("မြန်မာ")),
        ("\U00020000\U0002a6df a", ["\U00020000", "\U0002a6df", "a"]),
        ("", []),
    ],
)
def test_units_of_text_without_spaces_are_its_characters(text: str, units: list[str]) -> None:
    assert units_of(text) == units
