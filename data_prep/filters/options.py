"""The filters' options on the command line: limits, named rules, licences, benchmarks, presets and deduplication.

A preset is a set of limits or rules. `FilterOptions` holds what the command line gave.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from common.command_line import path_text
from data_prep.filters.limits import LIMITS
from data_prep.filters.starcoder import RULES

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "basic": {"max_line_length": 1000, "max_mean_line_length": 100.0, "min_alphanumeric_fraction": 0.25},
    "starcoder": {"rules": list(RULES)},
}


@dataclass(frozen=True)
class FilterOptions:
    """The filters to apply; None or an empty tuple turns one off."""

    min_bytes: int | None = None
    """Smallest size of a document, in bytes of UTF-8."""
    max_bytes: int | None = None
    """Largest size of a document, in bytes of UTF-8."""
    max_line_length: int | None = None
    """Greatest length of a line, in characters."""
    max_mean_line_length: float | None = None
    """Greatest mean length of a document's lines, in characters."""
    min_alphanumeric_fraction: float | None = None
    """Smallest fraction of characters that are letters or digits."""
    rules: tuple[str, ...] = ()
    """Names of StarCoder's rules, keys of `RULES`."""
    language_field: str | None = None
    """The key of a record that names its language."""
    license_field: str | None = None
    """The key of a record that names its licence, or a list of licences."""
    licenses: tuple[str, ...] = ()
    """The licences to keep, in lower case."""
    decontaminate: tuple[str, ...] = ()
    """Paths of benchmarks whose text must not occur."""

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: limit for name in LIMITS if (limit := getattr(self, name)) is not None}


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the rules, and `--dedup`."""
    add_rule_arguments(parser).add_argument(
        "--dedup",
        choices=["none", "exact", "near"],
        default="none",
        help="keep the first of documents with equal text (exact), or also of documents that have 0.7 of their runs of "
        "5 words in common (near) (default: %(default)s)",
    )


def add_rule_arguments(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Add the preset, one option for each limit, the named rules, licences and languages, and benchmarks."""
    group = parser.add_argument_group(
        "filters", "all are off by default; dropped documents are counted under the name of the filter"
    )
    preset_help = "a preset: basic sets the limits of Codex and CodeParrot, starcoder sets all of --rules"
    group.add_argument("--filters", choices=list(PRESETS), help=preset_help)
    for name, limit in LIMITS.items():
        group.add_argument(f"--{name}", type=limit.type, metavar="N", help=limit.help)
    rules_help = f"drop documents that break these rules of StarCoder and StarCoder2: {' '.join(RULES)}"
    group.add_argument("--rules", nargs="+", choices=list(RULES), metavar="RULE", help=rules_help)
    language_help = "key of a record's language, for rules and report (default: by the extension of the file)"
    group.add_argument("--language_field", metavar="NAME", help=language_help)
    group.add_argument("--license_field", metavar="NAME", help="key of a record's licence, or of a list of licences")
    licenses_help = "drop documents without a licence, and those with a licence not listed here, e.g. mit apache-2.0"
    group.add_argument("--licenses", nargs="+", metavar="NAME", help=licenses_help)
    benchmark_help = (
        "drop documents that share 10 consecutive words with a problem in these files (HumanEval's or MBPP's format)"
    )
    group.add_argument("--decontaminate", nargs="+", type=path_text, metavar="FILE", help=benchmark_help)
    return group


def apply_preset(arguments: argparse.Namespace) -> None:
    """Set the preset's limits and rules where the command line gives none of its own."""
    for name, value in PRESETS[arguments.filters or "none"].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)


def filter_problems(arguments: argparse.Namespace) -> list[str]:
    """Return the problems with the options that `add_rule_arguments` added, one line each."""
    problems = []
    smallest, largest = arguments.min_bytes, arguments.max_bytes
    if smallest is not None and largest is not None and smallest > largest:
        problems.append(f"--min_bytes {smallest} and --max_bytes {largest} leave no document")
    if (arguments.license_field is None) != (arguments.licenses is None):
        problems.append("--license_field and --licenses need each other: give the key, and the licences to keep")
    return problems


def filter_options(arguments: argparse.Namespace) -> FilterOptions:
    """Return the filters of a parsed command line with the options of `add_filter_arguments`."""
    return FilterOptions(
        **{name: getattr(arguments, name) for name in (*LIMITS, "language_field", "license_field")},
        rules=tuple(arguments.rules or ()),
        licenses=tuple(name.lower() for name in arguments.licenses or ()),
        decontaminate=tuple(arguments.decontaminate or ()),
    )
