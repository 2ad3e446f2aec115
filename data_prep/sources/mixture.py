"""Mixtures: the languages of a source that are wanted, and the number of copies of each document.

The training split has each document of a source of weight w floor(w) times, and once more if a hash of its text is
below the fractional part of w. So weight 0.25 keeps a quarter of the documents, the same ones whatever else is read,
and weight 2.5 gives two epochs and half of a third. Equal documents are treated alike, and the documents of a smaller
weight are a subset of those of a larger one. The validation split has every document of a file once, also if several
sources name the file: the first of them that keeps the document gives it.
"""

import argparse
import math
import re
from collections.abc import Sequence

from common.command_line import path_text, raise_if_any
from data_prep.sources.documents import Selection

MIX_SYNTAX = "NAME=SRC[#LANGUAGE,...]:WEIGHT"
_MIX = re.compile(r"(?P<name>[^=]+)=(?P<path>[^#]+)(?:#(?P<languages>.+))?:(?P<weight>[^:]+)")
_MOST_COPIES = 1000


def parse_mix(words: Sequence[str]) -> list[tuple[str, Selection]]:
    """Return the path of each source, and its selection.

    Args:
        words: the values of `--mix`.

    Raises:
        UserError: a word does not follow `MIX_SYNTAX`, or a weight is not a number above 0.
    """
    parsed: list[tuple[str, Selection]] = []
    problems: list[str] = []
    for word in words:
        found = _MIX.fullmatch(word)
        if found is None:
            problems.append(f"--mix {word!r} is not {MIX_SYNTAX}, e.g. python=stack.jsonl#python:2")
            continue
        weight = _number(found["weight"])
        if weight is None or not 0 < weight <= _MOST_COPIES:
            problems.append(f"--mix {word!r}: the weight must be above 0 and at most {_MOST_COPIES}")
            continue
        languages = tuple(name.strip().lower() for name in (found["languages"] or "").split(",") if name.strip())
        try:
            parsed.append((path_text(found["path"]), Selection(found["name"], weight, languages)))
        except argparse.ArgumentTypeError as error:
            problems.append(f"--mix {word!r}: {error}")
    raise_if_any(problems, heading="bad arguments")
    return parsed


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def copies_of(document_digest: bytes, *, weight: float) -> int:
    """Return how many copies of a document a source of this weight gives; it depends on the document's content alone.

    The choice of the split, and of documents whose token ids are checked, uses other bytes of the digest.
    """
    rest, whole = math.modf(weight)
    return int(whole) + (int.from_bytes(document_digest[8:15], "big") < rest * 2**56)
