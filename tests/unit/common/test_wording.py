"""Nouns that agree with their number, and texts that are safe to print."""

import pytest

from common.wording import counted, for_terminal, meant, nearest, shortened


@pytest.mark.parametrize(("number", "text"), [(0, "0 ranks"), (1, "1 rank"), (2, "2 ranks"), (1024, "1,024 ranks")])
def test_a_noun_agrees_with_its_number(number: int, text: str) -> None:
    assert counted(number, "rank") == text
    assert counted(2, "batch", plural="batches") == "2 batches"


def test_the_name_that_was_meant_is_near() -> None:
    names = ["content", "Language", "stars"]
    assert [nearest(word, names) for word in ("contents", "languge", "text", "")] == ["content", "Language", None, None]
    assert meant("STAR", names) == "; did you mean 'stars'?"
    assert meant("text", names) == meant("x", []) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc é 数 \N{GRINNING FACE}", "a\tb\nc é 数 \N{GRINNING FACE}"),
        ("\x1b]0;owned\x07 \x1b[31mred", r"\x1b]0;owned\x07 \x1b[31mred"),
        ("over\rwritten \x08\x7f \x9b2J \0", r"over\rwritten \x08\x7f \x9b2J \x00"),
        ("gpj.\u202eexe \u2066x\u2069 \u2028", r"gpj.\u202eexe \u2066x\u2069 \u2028"),
        ("caf\udce9", r"caf\udce9"),
        ("https://me:secret@host:9000/b?x=@y", "https://***@host:9000/b?x=@y"),
        ("'http://token@host' and s3://bucket/a@b", "'http://***@host' and s3://bucket/a@b"),
        ("http://me:p@ss:word@host/", "http://***@host/"),
        ("hf:org/set:config@train, me@host.org", "hf:org/set:config@train, me@host.org"),
    ],
)
def test_a_text_for_a_terminal(text: str, shown: str) -> None:
    assert for_terminal(text) == shown
    for_terminal(text).encode()  # also where stdout is strict


def test_every_character_that_is_not_shown_as_itself_is_escaped() -> None:
    for character in map(chr, range(0x250)):
        shown = for_terminal(character)
        assert shown == character if character.isprintable() or character in "\t\n\xa0\xad" else shown.isprintable()


def test_a_long_text_loses_its_middle() -> None:
    assert shortened("x" * 100, most=100) == "x" * 100
    assert shortened("a" * 10**6 + "z" * 10**6, most=100) == "a" * 75 + " [1,999,900 characters left out] " + "z" * 25
