"""Which share of a source is wanted: its languages, and how many copies of each document.

A source of weight w has each of its documents w times in the training split: floor(w) times, and once more if a hash of
the text is below the rest. So weight 0.25 keeps a quarter of the documents, the same whatever else is read, and 2.5 is
two epochs and half of a third. Equal documents are kept or left out together, and a smaller share is part of a larger.
The validation split has no document twice.
"""

import math
import re
from collections.abc import Sequence

from common.command_line import raise_if_any
from data_prep.sources.documents import Selection

MIX_SYNTAX = "NAME=SRC[#LANGUAGE,...]:WEIGHT"
_MIX = re.compile(r"(?P<name>[^=]+)=(?P<path>[^#]+)(?:#(?P<languages>.+))?:(?P<weight>[^:]+)")
_MOST_COPIES = 1000


def parse_mix(words: Sequence[str]) -> list[tuple[str, Selection]]:
    """Return the path of each source, and what of it is wanted.

    Raises:
        UserError: a word is not of the syntax, or a weight is no number above 0.
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
        parsed.append((found["path"], Selection(found["name"], weight, languages)))
    raise_if_any(problems, heading="bad arguments")
    return parsed


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def copies_of(document_digest: bytes, *, weight: float) -> int:
    """Return how many copies of a document a source of this weight gives: a function of its content alone.

    Other bytes of the digest choose the split, and the documents whose ids are checked.
    """
    rest, whole = math.modf(weight)
    return int(whole) + (int.from_bytes(document_digest[8:15], "big") < rest * 2**56)
