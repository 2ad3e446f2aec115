"""Words in messages: nouns that agree with their number, names that were meant, and texts that are safe to print."""

import re
from collections.abc import Iterable

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_USER_IN_URL = re.compile(r"(?<=://)[^\s/?#]*@")


def counted(number: int, noun: str, *, plural: str | None = None) -> str:
    """Return the number and the noun in the singular or plural, such as "1 rank" or "1,024 ranks".

    Args:
        number: how many there are.
        noun: in the singular.
        plural: of the noun, if an s is not enough.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the name that a misspelt word was most likely meant to be, ignoring case; None if none is near."""
    import difflib

    by_spelling = {name.lower(): name for name in names}
    found = difflib.get_close_matches(word.lower(), by_spelling, n=1)
    return by_spelling[found[0]] if found else None


def meant(word: str, names: Iterable[str]) -> str:
    """Return the end of a message about a misspelt word: "; did you mean NAME?", or nothing if no name is near."""
    found = nearest(word, names)
    return "" if found is None else f"; did you mean {found!r}?"


def for_terminal(text: str) -> str:
    """Return a text as it may be shown on a terminal or written to a log.

    Control characters, which a terminal would obey, and characters that reverse the direction of text are escaped; line
    ends and tabs stay. Users and passwords in URLs are replaced by ***.
    """
    return escaped(_USER_IN_URL.sub("***@", text))


def escaped(text: str) -> str:
    """Return a text in which what a terminal would obey is escaped, and nothing else is changed."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shortened(text: str, *, most: int) -> str:
    """Return a text of about `most` characters: without its middle if it is longer, which is then said in its place."""
    if len(text) <= most:
        return text
    start, end = text[: most * 3 // 4], text[-(most // 4) :]
    return f"{start} [{len(text) - len(start) - len(end):,} characters left out] {end}"
