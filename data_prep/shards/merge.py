"""The last step of writing shards, once all parts are there: from the results of the parts to a finished folder.

1. The results are summed, and checked: each split needs at least one window.
2. report.json is written, then the merged index.json of each split, then tokenizer.model.
3. metadata.json is written, which makes the folder a finished one, and the work folder is removed.

The step needs only the folder. The facts that it needs about the corpus and the tokenizer are in the plan
(`plan_facts`).
"""

import importlib.metadata
import platform
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.command_line import UserError
from common.files import write_json
from common.shard_format import INDEX, METADATA, TOKENIZER_MODEL, DamagedShardError, read_index
from common.tokenizers import Tokenizer
from data_prep.shards.folder import read_plan, shares_with
from data_prep.shards.mds_writer import index_of
from data_prep.shards.parts import (
    WORK_FOLDER,
    Part,
    PartResult,
    SplitCounts,
    add_source_counts,
    finished_parts,
    mark_path,
)
from data_prep.shards.tally import REPORT, add_counts, add_example, build_report, first_dropped, report_table
from data_prep.sources.languages import UNKNOWN
from data_prep.sources.listing import ListedSource

_LATE_IN_METADATA = ("sources", "arguments", "versions")
_NOT_IN_METADATA = ("listing", "names", "skipped", *_LATE_IN_METADATA)
_MOST_NAMED = 5


def plan_facts(sources: Sequence[ListedSource], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the entries of the plan that `merge` needs besides the identity.

    They are the names of the sources, the input that was skipped before reading, and the versions for metadata.json.
    """
    packages = ("numpy", "xxhash", "zstandard")
    return {
        "names": [source.selection.name for source in sources],
        "skipped": [
            [skipped.reason, skipped.source, skipped.detail] for source in sources for skipped in source.skipped
        ],
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages}
        | tokenizer.versions,
    }


def merge(out: Path) -> None:
    """Finish a folder that this process has locked, and print a summary.

    Raises:
        UserError: parts are missing, or a split would have no window. The folder stays as it is.
    """
    plan = read_plan(out)
    parts = [Part(index, ()) for index in range(len(plan["listing"]))]
    finished = finished_parts(parts, out)
    missing = [part.index for part in parts if part.index not in finished]
    if missing:
        raise UserError(_missing_parts_message(out, missing, n_parts=len(parts)))
    results = [finished[part.index] for part in parts]
    total = _sum_of(results, plan)
    report = build_report([(result.tally, result.examples) for result in (total, *results)])
    if problem := _split_problem(results, total, report, plan):
        raise UserError(f"{problem}; all finished parts stay in {out}, so that other arguments need another --out")
    write_json(out / REPORT, report)
    _finish(out, _metadata(plan, total), parts=parts)
    sources = _source_lines(total) if plan["arguments"]["mix"] else []
    print("\n".join([f"{out} is finished", _split_lines(total), *sources, report_table(report)]))


def _missing_parts_message(out: Path, missing: Sequence[int], *, n_parts: int) -> str:
    named = " ".join(f"part-{index:05}" for index in missing[:_MOST_NAMED]) + (" ..." if missing[_MOST_NAMED:] else "")
    shares = shares_with(out, missing)
    again = f"run the same command with --part {shares}" if shares else "run the same command"
    return f"{len(missing)} of {n_parts} parts are missing in {out} ({named}); {again}, and then this one"


def _sum_of(results: Sequence[PartResult], plan: Mapping[str, Any]) -> PartResult:
    """Return the sum of the parts' results; its tally and examples cover only the input that was skipped unread."""
    total = PartResult(splits={name: SplitCounts() for name in results[0].splits})
    dropped: Counter[str] = Counter()
    for name in plan["names"]:
        add_source_counts(total.sources, name, documents=0, bytes=0, tokens=0)
    for reason, source, detail in plan["skipped"]:
        dropped[reason] += 1
        add_counts(total.tally, language=UNKNOWN, outcome=reason, n_bytes=0)
        add_example(total.examples, rule=reason, source=source, detail=detail)
    for result in results:
        for name, counts in result.splits.items():
            total.splits[name].add(counts)
        dropped.update(result.dropped)
        for name, source_counts in result.sources.items():
            add_source_counts(total.sources, name, **source_counts)
        total.input_bytes += result.input_bytes
    total.dropped = dict(sorted(dropped.items()))
    return total


def _split_problem(
    results: Sequence[PartResult], total: PartResult, report: Mapping[str, Any], plan: Mapping[str, Any]
) -> str | None:
    """Return why a split cannot be used for training or evaluation; None if every split has a window."""
    arguments = plan["arguments"]
    if not any(counts.documents for counts in total.splits.values()):
        named = " ".join(arguments["input"] or arguments["mix"])
        return f"no documents in {named}; dropped: {_dropped_text(report) or 'none'}"
    for name, counts in total.splits.items():
        if counts.windows == 0:
            most = max(result.splits[name].tokens for result in results)
            return (
                f"split {name!r} would have no window of {arguments['seq_len']} + {arguments['lookahead']} tokens "
                f"(it has {counts.documents} documents, {counts.tokens} tokens, of which {most} are in one of the "
                f"{len(results)} parts): {_advice(name, counts.tokens, plan)}"
            )
    return None


def _advice(split: str, n_tokens: int, plan: Mapping[str, Any]) -> str:
    """Return what gives a split without a window one, given the number of its tokens in all parts together."""
    arguments, fraction = plan["arguments"], plan["arguments"]["val_fraction"]
    changes = ["lower --seq_len", "add input"]
    if split == "val":
        changes = [f"raise --val_fraction ({fraction}), or set it to 0 for no val split", *changes]
    if n_tokens >= arguments["seq_len"] + arguments["lookahead"]:
        changes = ["raise --part_bytes, so that the split's documents share fewer parts", *changes]
    return f"{', '.join(changes[:-1])}, or {changes[-1]}"


def _metadata(plan: Mapping[str, Any], total: PartResult) -> dict[str, Any]:
    return {
        **{name: value for name, value in plan.items() if name not in _NOT_IN_METADATA},
        "splits": {name: asdict(counts) for name, counts in total.splits.items()},
        "dropped": total.dropped,
        "shares": total.sources,
        **{name: plan[name] for name in _LATE_IN_METADATA},
    }


def _finish(out: Path, metadata: dict[str, Any], *, parts: Sequence[Part]) -> None:
    for split in metadata["splits"]:
        write_json(out / split / INDEX, _merged_index(out / split, parts))
    if (out / WORK_FOLDER / TOKENIZER_MODEL).exists():
        shutil.copyfile(out / WORK_FOLDER / TOKENIZER_MODEL, out / TOKENIZER_MODEL)
    write_json(out / METADATA, metadata)
    shutil.rmtree(out / WORK_FOLDER)


def _merged_index(folder: Path, parts: Sequence[Part]) -> dict[str, Any]:
    """Return the index of a split: the shards of all parts in order, with file names relative to the split's folder."""
    shards = []
    for part in parts:
        try:
            entries = read_index(folder / part.name, strict=True)
        except DamagedShardError as error:
            raise UserError(
                f"{folder / part.name / INDEX} is missing or damaged; delete {mark_path(part, folder.parent)}, and run"
                " the same write_shards command again"
            ) from error
        for entry in entries:
            for key in ("raw_data", "zip_data"):
                if entry.get(key):
                    entry[key]["basename"] = f"{part.name}/{entry[key]['basename']}"
            shards.append(entry)
    return index_of(shards)


def _dropped_text(report: Mapping[str, Any]) -> str:
    rules = report["rules"].items()
    return ", ".join(f"{cell['documents']:,} {rule} (first: {first_dropped(report, rule)})" for rule, cell in rules)


def _split_lines(total: PartResult) -> str:
    return "\n".join(
        f"  {name:<8}{counts.documents:>12,} documents {counts.tokens:>16,} tokens {counts.windows:>12,} windows"
        f"   {counts.bytes / max(1, counts.tokens):.2f} bytes/token, {counts.tail_tokens:,} tokens left over"
        for name, counts in total.splits.items()
    )


def _source_lines(total: PartResult) -> list[str]:
    """Return one line for each source with the documents, bytes and tokens kept from it, which may be none."""
    n_tokens = sum(counts["tokens"] for counts in total.sources.values())
    heading = f"  {'source':<26}{'kept':>10}{'MB':>10}{'tokens':>14}{'of tokens':>11}"
    return [heading] + [
        f"  {name:<26}{counts['documents']:>10,}{counts['bytes'] / 1e6:>10.2f}{counts['tokens']:>14,}"
        f"{counts['tokens'] / max(1, n_tokens):>11.2%}"
        for name, counts in total.sources.items()
    ]
