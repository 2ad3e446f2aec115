"""Which documents stay: named, pure rules, and exact deduplication. All are off until asked for, but `empty`.

The long-line and alphanumeric rules are those of Codex (Chen et al. 2021, arXiv 2107.03374, section 3.1: mean line
length above 100, maximum above 1000, few alphanumeric characters), with the 0.25 of CodeParrot's and StarCoder's
(Li et al. 2023, arXiv 2305.06161) recipes for the last. Lines are those of `str.splitlines`, as in CodeParrot.

A further rule is a field of `FilterOptions` (its name is the option and the reason) and a line in `_RULES`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import xxhash

from data_prep.documents import Document

DIGEST_BYTES = 16
Digests = npt.NDArray[np.void]


@dataclass(frozen=True)
class FilterOptions:
    """The limits that the command line gives; None is off. Bytes are of the UTF-8 text, lengths in characters."""

    min_bytes: int | None = None
    max_bytes: int | None = None
    max_line_length: int | None = None
    max_mean_line_length: float | None = None
    min_alphanumeric_fraction: float | None = None


_HELP = {
    "min_bytes": (int, "drop documents smaller than this"),
    "max_bytes": (int, "drop documents larger than this"),
    "max_line_length": (int, "drop documents with a longer line, in characters (Codex, CodeParrot: 1000)"),
    "max_mean_line_length": (float, "drop documents whose lines are longer on average (Codex, CodeParrot: 100)"),
    "min_alphanumeric_fraction": (float, "drop documents with fewer letters and digits (CodeParrot: 0.25)"),
}


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one option per rule, and `--dedup`."""
    group = parser.add_argument_group("filters", "all off by default; what each drops is counted under its name")
    for name, (type_, help_) in _HELP.items():
        group.add_argument(f"--{name}", type=type_, metavar="N", help=help_)
    group.add_argument(
        "--dedup",
        choices=["none", "exact"],
        default="none",
        help="exact: of documents with equal text keep the first (default: %(default)s)",
    )


def filter_options(arguments: argparse.Namespace) -> FilterOptions:
    """Return the options that `add_filter_arguments` added to a parsed command line."""
    return FilterOptions(**{field.name: getattr(arguments, field.name) for field in fields(FilterOptions)})


def longest_line(text: str) -> int:
    """Return the number of characters of the longest line."""
    return max(map(len, text.splitlines()), default=0)


def mean_line_length(text: str) -> float:
    """Return the mean number of characters of a line."""
    lengths = list(map(len, text.splitlines()))
    return sum(lengths) / len(lengths) if lengths else 0.0


def alphanumeric_fraction(text: str) -> float:
    """Return the fraction of characters that are letters or digits."""
    return sum(map(str.isalnum, text)) / len(text) if text else 0.0


# A rule's name, and whether a document breaks the limit; the cheapest come first.
_RULES: dict[str, Callable[[Document, float], bool]] = {
    "min_bytes": lambda document, limit: len(document.utf8) < limit,
    "max_bytes": lambda document, limit: len(document.utf8) > limit,
    "max_line_length": lambda document, limit: longest_line(document.text) > limit,
    "max_mean_line_length": lambda document, limit: mean_line_length(document.text) > limit,
    "min_alphanumeric_fraction": lambda document, limit: alphanumeric_fraction(document.text) < limit,
}


def reason_to_drop(document: Document, options: FilterOptions) -> str | None:
    """Return the name of the first rule that `document` breaks, or None if it stays."""
    if not document.text or document.text.isspace():
        return "empty"
    for name, breaks in _RULES.items():
        limit = getattr(options, name)
        if limit is not None and breaks(document, limit):
            return name
    return None


def digest(utf8: bytes) -> bytes:
    """Return the 16-byte XXH3 hash of a document, which deduplication and the choice of split go by."""
    return xxhash.xxh3_128_digest(utf8)


def first_occurrences(digests_by_part: Sequence[Digests]) -> list[npt.NDArray[np.bool_]]:
    """Return for each part which of its documents is the first of its digest, over all parts in their order.

    Args:
        digests_by_part: per part, an array (documents,) of 16-byte `np.void` digests.
    """
    if not digests_by_part:
        return []
    _, first_indices = np.unique(np.concatenate(digests_by_part), return_index=True)
    is_first = np.zeros(sum(map(len, digests_by_part)), dtype=np.bool_)
    is_first[first_indices] = True
    return np.split(is_first, np.cumsum([len(digests) for digests in digests_by_part])[:-1])


def is_validation(document_digest: bytes, *, val_fraction: float) -> bool:
    """Return whether a document belongs to the validation split: a function of its content alone."""
    return int.from_bytes(document_digest[:8], "big") < val_fraction * 2**64
