"""Counts of kept documents, and of those that each rule dropped; report.json beside the shards, and its table.

    {"kept": {"documents", "bytes", "tokens"}, "rules": {RULE: {"documents", "bytes"}},
     "languages": {LANGUAGE: {"kept": ..., "rules": ...}}, "samples": {RULE: [{"source", "text" or "detail"}, ...]}}

Bytes are those of the text in UTF-8, or those of the file if it could not be read as text. Tokens are those of both
splits, BOS and EOS included. "samples" holds the first documents, in the order of the sources, that each rule dropped,
with the start of their text. A record that could not be read has "detail" instead: where reading failed, and why.

1. Workers count each document of a part (`add_counts`) and keep the first dropped ones (`add_example`).
2. `build_report` sums the parts.
3. `report_table` shows a report as text, after shards are written and by data_prep.report.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from common.command_line import UserError
from common.s3 import S3Path
from common.shard_format import read_finished_file
from common.small_files import parse_json

REPORT = "report.json"
KEPT = "kept"
UNITS = ("documents", "bytes", "tokens")
EXAMPLES_PER_RULE = 3
EXAMPLE_CHARACTERS = 200
T = TypeVar("T")


def _checked_example(example: dict[str, str]) -> dict[str, str]:
    if "source" not in example or not example.keys() <= {"source", "text", "detail"}:
        raise ValueError("it has other keys than source, and text or detail")
    return example


# Types of values that are also read from files; the annotations are checked when a file is read.
Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
Amounts = Annotated[list[Count], Field(min_length=len(UNITS), max_length=len(UNITS))]
Tally = dict[str, dict[str, Amounts]]  # language: outcome, `KEPT` or a rule: an amount of each of `UNITS`
Example = Annotated[dict[str, str], AfterValidator(_checked_example)]
DroppedExamples = dict[str, list[Example]]  # rule: the first documents that it dropped


def add_counts(
    tally: Tally, *, language: str, outcome: str, n_bytes: int, n_tokens: int = 0, documents: int = 1
) -> None:
    """Add documents of one language and one outcome: `KEPT`, or the rule that drops them, which leaves no tokens."""
    cell = tally.setdefault(language, {}).setdefault(outcome, [0] * len(UNITS))
    for unit, amount in enumerate((documents, n_bytes, n_tokens)):
        cell[unit] += amount


def add_example(examples: DroppedExamples, *, rule: str, source: str, **shown: str) -> None:
    """Add a dropped document, with its `text` or `detail`, to the examples of its rule, unless there are enough."""
    of_rule = examples.setdefault(rule, [])
    if len(of_rule) < EXAMPLES_PER_RULE:
        start = {name: _printable(text[:EXAMPLE_CHARACTERS]) for name, text in shown.items()}
        of_rule.append({"source": _printable(source), **start})


def _printable(text: str) -> str:
    """Return text with escapes for lone surrogates, which stand for bytes that are not UTF-8."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def build_report(counted: Sequence[tuple[Tally, DroppedExamples]]) -> dict[str, Any]:
    """Return the report on all parts, given the tally and the examples of each part, in order."""
    total: Tally = {}
    overall: Tally = {}
    examples: DroppedExamples = {}
    for tally, of_part in counted:
        for language, outcomes in tally.items():
            for outcome, (documents, n_bytes, n_tokens) in outcomes.items():
                amounts = {"n_bytes": n_bytes, "n_tokens": n_tokens, "documents": documents}
                add_counts(total, language=language, outcome=outcome, **amounts)
                add_counts(overall, language="", outcome=outcome, **amounts)
        for rule, of_rule in of_part.items():
            for example in of_rule:
                add_example(examples, rule=rule, **example)
    return _section(overall.get("", {})) | {
        "languages": {language: _section(outcomes) for language, outcomes in sorted(total.items())},
        "samples": dict(sorted(examples.items())),
    }


def _section(outcomes: dict[str, list[int]]) -> dict[str, Any]:
    """Return the "kept" and "rules" of one language, or of all."""
    kept = dict(zip(UNITS, outcomes.get(KEPT, [0] * len(UNITS)), strict=True))
    rules = {name: cell for name, cell in sorted(outcomes.items()) if name != KEPT}
    return {KEPT: kept, "rules": {name: {"documents": cell[0], "bytes": cell[1]} for name, cell in rules.items()}}


def read_report(folder: Path | S3Path, read: Callable[[dict[str, Any]], T]) -> T:
    """Return what `read` computes from the report of a shard folder.

    Raises:
        UserError: the report is missing, or does not have what `read` looks for.
    """
    stored = read_finished_file(folder, REPORT)
    try:
        return read(parse_json(stored, name="it"))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = str(error) if isinstance(error, UserError) else repr(error)
        raise UserError(
            f"{folder / REPORT} is not a report of write_shards: {reason}; write the shards again"
        ) from error


def report_table(report: dict[str, Any]) -> str:
    """Return a report as text: one line for each language and one for each rule, the largest first."""
    rules, languages, kept = report["rules"], report["languages"], report[KEPT]
    dropped = _sum_of_rules(rules)
    lines = [
        f"  {'language':<26}{'kept':>10}{'MB':>10}{'tokens':>14}{'/byte':>7}{'dropped':>10}{'MB':>10}{'of bytes':>10}"
    ]
    for name in sorted(languages, key=lambda name: (-languages[name][KEPT]["bytes"], name)):
        lines.append(_language_line(name, languages[name][KEPT], _sum_of_rules(languages[name]["rules"])))
    lines.append(_language_line("all", kept, dropped))
    n_bytes = kept["bytes"] + dropped["bytes"]
    if rules:
        lines.append(f"  {'dropped by':<26}{'documents':>10}{'MB':>10}{'of bytes':>10}  first")
    for rule, cell in sorted(rules.items(), key=lambda item: (-item[1]["bytes"], item[0])):
        fraction = cell["bytes"] / max(1, n_bytes)
        first = first_dropped(report, rule)
        lines.append(f"  {rule:<26}{cell['documents']:>10,}{cell['bytes'] / 1e6:>10.2f}{fraction:>10.2%}  {first}")
    return "\n".join(lines)


def first_dropped(report: Mapping[str, Any], rule: str) -> str:
    """Return the source of the first document that a rule dropped, and, if it could not be read, where and why."""
    first = report["samples"][rule][0]
    return f"{first['source']}, {first['detail']}" if first.get("detail") else str(first["source"])


def tokens_per_byte(counts: Mapping[str, int]) -> float:
    """Return the number of tokens per byte of text; 0 if there is no text."""
    return counts["tokens"] / max(1, counts["bytes"])


def _language_line(name: str, kept: dict[str, int], dropped: dict[str, int]) -> str:
    fraction = dropped["bytes"] / max(1, kept["bytes"] + dropped["bytes"])
    return (
        f"  {name:<26}{kept['documents']:>10,}{kept['bytes'] / 1e6:>10.2f}"
        f"{kept['tokens']:>14,}{tokens_per_byte(kept):>7.3f}"
        f"{dropped['documents']:>10,}{dropped['bytes'] / 1e6:>10.2f}{fraction:>10.2%}"
    )


def _sum_of_rules(rules: dict[str, dict[str, int]]) -> dict[str, int]:
    return {unit: sum(cell[unit] for cell in rules.values()) for unit in ("documents", "bytes")}
