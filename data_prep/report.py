"""What was kept and what each rule dropped: report.json beside the shards, and a table of it.

    {"kept": {"documents", "bytes", "tokens"}, "rules": {RULE: {"documents", "bytes"}},
     "languages": {LANGUAGE: {"kept": ..., "rules": ...}}, "samples": {RULE: [{"source", "text" or "detail"}, ...]}}

Bytes are of the text in UTF-8; of what could not be read as text, of the file. Tokens are those of both splits, with
what marks the ends of documents. Samples are the first documents, in the order of the sources, that a rule dropped, and
the start of their text; of what could not be read, the detail: at which byte, and why.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from common.command_line import UserError, command_parser, exit_on_user_error
from common.s3 import S3Path, folder_at

REPORT = "report.json"
T = TypeVar("T")
SAMPLES = 3
SAMPLE_CHARACTERS = 200
KEPT = "kept"
UNITS = ("documents", "bytes", "tokens")
Tally = dict[str, dict[str, list[int]]]  # language: "kept" or rule: a number of each of UNITS
Samples = dict[str, list[dict[str, str]]]
_EXAMPLES = """example:
  python -m data_prep.report data/code"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the folder holds no report.
    """
    parser = command_parser("data_prep.report", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("folder", metavar="DIR", help="what write_shards was given as --out, s3:// too")
    folder = folder_at(parser.parse_args(argv).folder)
    print("\n".join(read_report(folder, lambda report: [table(report), *_sample_lines(report)])))


def read_report(folder: Path | S3Path, read: Callable[[dict[str, Any]], T]) -> T:
    """Return what `read` takes from the report of a folder.

    Raises:
        UserError: there is none, or not what `read` looks for.
    """
    path = folder / REPORT
    try:
        stored = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: not a folder of write_shards, or not finished (run it again)") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return read(json.loads(stored))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no report of write_shards ({error!r}); write the shards again") from error


def count(tally: Tally, *, language: str, outcome: str, n_bytes: int, n_tokens: int = 0, documents: int = 1) -> None:
    """Add documents of one language with one outcome, `KEPT` or the rule that drops them, which leaves no tokens."""
    cell = tally.setdefault(language, {}).setdefault(outcome, [0] * len(UNITS))
    for unit, amount in enumerate((documents, n_bytes, n_tokens)):
        cell[unit] += amount


def add_sample(samples: Samples, *, rule: str, source: str, **shown: str) -> None:
    """Keep what was dropped, with its `text` or `detail`, as a sample of its rule, unless there are enough."""
    of_rule = samples.setdefault(rule, [])
    if len(of_rule) < SAMPLES:
        start = {name: _printable(text[:SAMPLE_CHARACTERS]) for name, text in shown.items()}
        of_rule.append({"source": _printable(source), **start})


def _printable(text: str) -> str:
    """Return text with lone surrogates, which stand for bytes that are no UTF-8, as escapes."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def build(counted: Sequence[tuple[Tally, Samples]]) -> dict[str, Any]:
    """Return the report of what was counted in parts, in their order."""
    total: Tally = {}
    overall: Tally = {}
    samples: Samples = {}
    for tally, of_part in counted:
        for language, outcomes in tally.items():
            for outcome, (documents, n_bytes, n_tokens) in outcomes.items():
                for into, name in ((total, language), (overall, "")):
                    count(into, language=name, outcome=outcome, n_bytes=n_bytes, n_tokens=n_tokens, documents=documents)
        for rule, of_rule in of_part.items():
            for sample in of_rule:
                add_sample(samples, rule=rule, **sample)
    return _row(overall.get("", {})) | {
        "languages": {language: _row(outcomes) for language, outcomes in sorted(total.items())},
        "samples": dict(sorted(samples.items())),
    }


def _row(outcomes: dict[str, list[int]]) -> dict[str, Any]:
    kept = dict(zip(UNITS, outcomes.get(KEPT, [0] * len(UNITS)), strict=True))
    rules = {name: cell for name, cell in sorted(outcomes.items()) if name != KEPT}
    return {KEPT: kept, "rules": {name: {"documents": cell[0], "bytes": cell[1]} for name, cell in rules.items()}}


def table(report: dict[str, Any]) -> str:
    """Return a report as text: a line per language and a line per rule, the largest first."""
    rules, languages = report["rules"], report["languages"]
    kept = report[KEPT]
    dropped = _sum(rules)
    lines = [
        f"  {'language':<26}{'kept':>10}{'MB':>10}{'tokens':>14}{'/byte':>7}{'dropped':>10}{'MB':>10}{'of bytes':>10}"
    ]
    for name in sorted(languages, key=lambda name: (-languages[name][KEPT]["bytes"], name)):
        lines.append(_line(name, languages[name][KEPT], _sum(languages[name]["rules"])))
    lines.append(_line("all", kept, dropped))
    n_bytes = kept["bytes"] + dropped["bytes"]
    if rules:
        lines.append(f"  {'dropped by':<26}{'documents':>10}{'MB':>10}{'of bytes':>10}  first")
    for rule, cell in sorted(rules.items(), key=lambda item: (-item[1]["bytes"], item[0])):
        share = cell["bytes"] / max(1, n_bytes)
        first = first_dropped(report, rule)
        lines.append(f"  {rule:<26}{cell['documents']:>10,}{cell['bytes'] / 1e6:>10.2f}{share:>10.2%}  {first}")
    return "\n".join(lines)


def first_dropped(report: Mapping[str, Any], rule: str) -> str:
    """Return the first that a rule dropped; of what could not be read, at which byte and why."""
    first = report["samples"][rule][0]
    return f"{first['source']}, {first['detail']}" if first.get("detail") else str(first["source"])


def _line(name: str, kept: dict[str, int], dropped: dict[str, int]) -> str:
    share = dropped["bytes"] / max(1, kept["bytes"] + dropped["bytes"])
    return (
        f"  {name:<26}{kept['documents']:>10,}{kept['bytes'] / 1e6:>10.2f}"
        f"{kept['tokens']:>14,}{tokens_per_byte(kept):>7.3f}"
        f"{dropped['documents']:>10,}{dropped['bytes'] / 1e6:>10.2f}{share:>10.2%}"
    )


def tokens_per_byte(counts: Mapping[str, int]) -> float:
    """Return how many tokens a byte of text takes; 0 where there is no text."""
    return counts["tokens"] / max(1, counts["bytes"])


def _sum(rules: dict[str, dict[str, int]]) -> dict[str, int]:
    return {unit: sum(cell[unit] for cell in rules.values()) for unit in ("documents", "bytes")}


def _sample_lines(report: dict[str, Any]) -> list[str]:
    return [
        f"\n{rule}: {sample['source']}\n"
        + (sample["detail"] if "detail" in sample else json.dumps(sample["text"], ensure_ascii=False))
        for rule, of_rule in report["samples"].items()
        for sample in of_rule
    ]


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.report")
