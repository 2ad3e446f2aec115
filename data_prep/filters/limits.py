"""Which documents stay: limits and named rules, all pure functions of one document. All are off but `empty`.

1. Limits are numbers that the command line gives. Those of lines and characters are Codex's (Chen et al. 2021, arXiv
   2107.03374, section 3.1: mean line length above 100, maximum above 1000, few alphanumeric characters), with the 0.25
   of CodeParrot for the last. Lines are those of `str.splitlines`, as in CodeParrot.
2. Named rules are StarCoder's (`rules`), with StarCoder's numbers.
3. Licences and languages are what jsonl records say; documents that hold a benchmark's words: `decontaminate`.

A preset is a set of these. A further limit is a field of `FilterOptions` (its name is the option and the reason), and a
line in `_LIMIT_OPTIONS` and `_LIMITS`.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_prep.filters.decontaminate import contamination
from data_prep.filters.languages import language_of
from data_prep.filters.starcoder import RULES, alphanumeric_fraction, longest_line, mean_line_length
from data_prep.sources.documents import Document

DIGEST_BYTES = 16
Digests = npt.NDArray[np.void]


@dataclass(frozen=True)
class FilterOptions:
    """What the command line gives; None and nothing are off. Bytes are of the UTF-8 text, lengths in characters."""

    min_bytes: int | None = None
    max_bytes: int | None = None
    max_line_length: int | None = None
    max_mean_line_length: float | None = None
    min_alphanumeric_fraction: float | None = None
    rules: tuple[str, ...] = ()
    language_field: str | None = None
    license_field: str | None = None
    licenses: tuple[str, ...] = ()
    decontaminate: tuple[str, ...] = ()


# The type of a limit, its lowest and highest value, and its help.
_LIMIT_OPTIONS: dict[str, tuple[type, int, float, str]] = {
    "min_bytes": (int, 0, math.inf, "drop documents smaller than this"),
    "max_bytes": (int, 1, math.inf, "drop documents larger than this"),
    "max_line_length": (int, 1, math.inf, "drop documents with a longer line, in characters (Codex, CodeParrot: 1000)"),
    "max_mean_line_length": (
        float,
        1,
        math.inf,
        "drop documents whose lines are longer on average (Codex, CodeParrot: 100)",
    ),
    "min_alphanumeric_fraction": (float, 0, 1, "drop documents with fewer letters and digits (CodeParrot: 0.25)"),
}
PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "basic": {"max_line_length": 1000, "max_mean_line_length": 100.0, "min_alphanumeric_fraction": 0.25},
    "starcoder": {"rules": list(RULES)},
}


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the rules, and `--dedup`."""
    add_rule_arguments(parser).add_argument(
        "--dedup",
        choices=["none", "exact", "near"],
        default="none",
        help="of documents with equal text (exact), or also with 0.7 of their runs of 5 words in common (near), "
        "keep the first (default: %(default)s)",
    )


def add_rule_arguments(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Add the preset, one option per limit, the named rules, what records say, and benchmarks."""
    group = parser.add_argument_group("filters", "all off by default; what each drops is counted under its name")
    preset_help = "limits or rules at once: basic are Codex's and CodeParrot's limits, starcoder all of --rules"
    group.add_argument("--filters", choices=list(PRESETS), help=preset_help)
    for name, (type_, _, _, help_) in _LIMIT_OPTIONS.items():
        group.add_argument(f"--{name}", type=type_, metavar="N", help=help_)
    rules_help = f"drop documents that break these rules of StarCoder and StarCoder2: {' '.join(RULES)}"
    group.add_argument("--rules", nargs="+", choices=list(RULES), metavar="RULE", help=rules_help)
    language_help = "jsonl key of the language, for rules and report (default: by the extension of a file)"
    group.add_argument("--language_field", metavar="NAME", help=language_help)
    group.add_argument("--license_field", metavar="NAME", help="jsonl key of the licence, or of a list of them")
    licenses_help = "drop documents without a licence, or with one that is not among these, e.g. mit apache-2.0"
    group.add_argument("--licenses", nargs="+", metavar="NAME", help=licenses_help)
    benchmark_help = "drop documents that share 10 words in a row with a problem; jsonl as HumanEval's or MBPP's"
    group.add_argument("--decontaminate", nargs="+", metavar="FILE", help=benchmark_help)
    return group


def apply_preset(arguments: argparse.Namespace) -> None:
    """Put the preset's limits and rules in place of those that the command line leaves open."""
    for name, value in PRESETS[arguments.filters or "none"].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)


def filter_problems(arguments: argparse.Namespace) -> list[str]:
    """Return what is wrong with the options that `add_rule_arguments` added, one line each."""
    problems = []
    for name, (_, lowest, highest, _) in _LIMIT_OPTIONS.items():
        limit = getattr(arguments, name)
        if limit is not None and not lowest <= limit <= highest:  # nan, too, is in no range
            wanted = f"at least {lowest}" if highest == math.inf else f"{lowest} to {highest}"
            problems.append(f"--{name} must be {wanted}, not {limit}")
    smallest, largest = arguments.min_bytes, arguments.max_bytes
    if smallest is not None and largest is not None and smallest > largest:
        problems.append(f"--min_bytes {smallest} and --max_bytes {largest} leave no document")
    if (arguments.license_field is None) != (arguments.licenses is None):
        problems.append("--license_field and --licenses need each other: which key, and which of its values to keep")
    return problems


def filter_options(arguments: argparse.Namespace) -> FilterOptions:
    """Return the options that `add_filter_arguments` added to a parsed command line."""
    return FilterOptions(
        **{name: getattr(arguments, name) for name in (*_LIMIT_OPTIONS, "language_field", "license_field")},
        rules=tuple(arguments.rules or ()),
        licenses=tuple(name.lower() for name in arguments.licenses or ()),
        decontaminate=tuple(arguments.decontaminate or ()),
    )


# A limit's name, and whether a document breaks it; the cheapest come first.
_LIMITS: dict[str, Callable[[Document, float], bool]] = {
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
    if options.licenses and not is_licensed(document.row.get(str(options.license_field)), options.licenses):
        return "license"
    for name, exceeds in _LIMITS.items():
        limit = getattr(options, name)
        if limit is not None and exceeds(document, limit):
            return name
    if options.rules:
        language = language_of(document.source, document.row, field=options.language_field)
        for name, breaks in RULES.items():
            if name in options.rules and breaks(document.text, language):
                return name
    benchmark = contamination(document.text, options.decontaminate)
    return f"contaminated:{benchmark}" if benchmark is not None else None


def is_licensed(found: Any, licenses: Sequence[str]) -> bool:
    """Return whether a record's licence, or each of its list of licences, is among `licenses`, all in lower case.

    By metadata alone, as in The Stack (Kocetkov et al. 2022, arXiv 2211.15533); without a licence, nothing is allowed.
    """
    names = found if isinstance(found, list) else [found]
    return bool(names) and all(isinstance(name, str) and name.lower() in licenses for name in names)


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
