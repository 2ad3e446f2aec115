"""The numeric limits on a document: size, line length, fraction of letters and digits.

The limits on lines and characters are Codex's (Chen et al. 2021, arXiv 2107.03374, section 3.1: mean line length above
100, maximum above 1000, few alphanumeric characters). Codex gives no number for the last; 0.25 is CodeParrot's. Lines
are those of `str.splitlines`, as in CodeParrot.

To add a limit, add an entry to `LIMITS` and a field of the same name to `FilterOptions`. The name is also the option on
the command line and the reason in the counts of dropped documents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.command_line import real_number, whole_number
from data_prep.filters.starcoder import alphanumeric_fraction
from data_prep.sources.documents import Document


@dataclass(frozen=True)
class Limit:
    """One limit: the type of its option, with the range, the option's help, and the test of a document."""

    type: Callable[[str], Any]
    help: str
    is_exceeded: Callable[[Document, float], bool]


def longest_line(text: str) -> int:
    """Return the length of the longest line, in characters."""
    return max(map(len, text.splitlines()), default=0)


def mean_line_length(text: str) -> float:
    """Return the mean length of the lines, in characters."""
    lengths = list(map(len, text.splitlines()))
    return sum(lengths) / len(lengths) if lengths else 0.0


_MOST = 10**12  # bytes or characters
# The cheapest test comes first; a document is counted under the first limit that it exceeds.
LIMITS: dict[str, Limit] = {
    "min_bytes": Limit(
        whole_number(at_least=0, at_most=_MOST),
        "drop documents smaller than this",
        lambda document, limit: len(document.utf8) < limit,
    ),
    "max_bytes": Limit(
        whole_number(at_least=1, at_most=_MOST),
        "drop documents larger than this",
        lambda document, limit: len(document.utf8) > limit,
    ),
    "max_line_length": Limit(
        whole_number(at_least=1, at_most=_MOST),
        "drop documents with a longer line, in characters (Codex, CodeParrot: 1000)",
        lambda document, limit: longest_line(document.text) > limit,
    ),
    "max_mean_line_length": Limit(
        real_number(at_least=1, at_most=_MOST),
        "drop documents whose mean line length is greater, in characters (Codex, CodeParrot: 100)",
        lambda document, limit: mean_line_length(document.text) > limit,
    ),
    "min_alphanumeric_fraction": Limit(
        real_number(at_least=0, at_most=1),
        "drop documents with a smaller fraction of letters and digits (CodeParrot: 0.25)",
        lambda document, limit: alphanumeric_fraction(document.text) < limit,
    ),
}


def limit_exceeded(document: Document, limits: dict[str, float]) -> str | None:
    """Return the name of the first limit that `document` exceeds, or None.

    Args:
        document: the document.
        limits: the limits that are set, by name.
    """
    for name, limit in LIMITS.items():
        if name in limits and limit.is_exceeded(document, limits[name]):
            return name
    return None
