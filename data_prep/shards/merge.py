"""The last step of writing shards, once all parts are there: from the results of the parts to a finished folder.

1. The marks and indexes of the parts are read and checked, and summed: each split needs at least one window.
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

from common.command_line import UserError, say
from common.files import write_json, written_whole
from common.shard_format import INDEX, METADATA, TOKENIZER_MODEL, read_index
from common.tokenizers import Tokenizer
from common.wording import counted
from data_prep.shards.folder import read_plan, shares_with, tokenizer_model
from data_prep.shards.identity import refuse_link
from data_prep.shards.mds_writer import DOCUMENT_IDS, TOKENS, entry_fault, index_of, settings_of
from data_prep.shards.parts import (
    SPLITS,
    WORK_FOLDER,
    Part,
    PartResult,
    Split,
    SplitCounts,
    add_source_counts,
    mark_path,
    read_marks,
)
from data_prep.shards.tally import REPORT, add_counts, add_example, build_report, first_dropped, report_table
from data_prep.sources.languages import UNKNOWN
from data_prep.sources.listing import ListedSource
from data_prep.tokens.packing import WindowShape

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

    Everything is read and checked before anything is written: the folder may have been damaged, or come from others.

    Raises:
        UserError: parts are missing or damaged, or a split would have no window. The folder stays as it is.
    """
    plan = read_plan(out)
    parts = [Part(index, ()) for index in range(len(plan["listing"]))]
    marks = read_marks(parts, out)
    missing = [part.index for part in parts if part.index not in marks.results]
    if missing:
        raise UserError(_missing_parts_message(out, missing, damaged=marks.damaged, n_parts=len(parts)))
    results = [marks.results[part.index] for part in parts]
    splits = SPLITS if plan["arguments"]["val_fraction"] > 0 else SPLITS[:1]
    shape = WindowShape(plan["seq_len"], plan["lookahead"])
    for part, result in zip(parts, results, strict=True):
        if fault := _fault_of_counts(result, splits, shape):
            raise UserError(f"{mark_path(part, out)} is damaged: {fault}; {_write_again(part, out)}")
    indexes = {split: _merged_index(out, split, results, plan) for split in splits}
    total = _sum_of(results, plan)
    report = build_report([(result.tally, result.examples) for result in (total, *results)])
    if problem := _split_problem(results, total, report, plan):
        raise UserError(f"{problem}; all finished parts stay in {out}, so that other arguments need another --out")
    model = tokenizer_model(out, plan)
    write_json(out / REPORT, report)
    for split, index in indexes.items():
        write_json(out / split / INDEX, index)
    if model is not None:
        with written_whole(out / TOKENIZER_MODEL) as partial:
            partial.write_bytes(model)
    write_json(out / METADATA, _metadata(plan, total))
    shutil.rmtree(out / WORK_FOLDER)
    sources = _source_lines(total) if plan["arguments"]["mix"] else []
    say("\n".join([f"{out} is finished", _split_lines(total), *sources, report_table(report)]))


def _fault_of_counts(result: PartResult, splits: Sequence[Split], shape: WindowShape) -> str | None:
    """Return why the counts of a part cannot be right, or None."""
    if result.splits.keys() != set(splits):
        return f"it has other splits than {' '.join(splits)}"
    for name, counts in result.splits.items():
        n_windows = shape.count(counts.tokens)
        tail_tokens = counts.tokens - n_windows * shape.seq_len - shape.lookahead * (n_windows > 0)
        if (counts.windows, counts.tail_tokens) != (n_windows, tail_tokens):
            return (
                f"{name} has {counted(counts.tokens, 'token')}, which do not give {counted(counts.windows, 'window')}"
            )
        if counts.documents > min(counts.tokens, counts.bytes):
            return (
                f"{name} has {counted(counts.documents, 'document')} of {counts.tokens} tokens and {counts.bytes} bytes"
            )
    return None


def _missing_parts_message(out: Path, missing: Sequence[int], *, damaged: Mapping[int, str], n_parts: int) -> str:
    named = " ".join(f"part-{index:05}" for index in missing[:_MOST_NAMED]) + (" ..." if missing[_MOST_NAMED:] else "")
    shares = shares_with(out, missing)
    again = f"run the same command with --part {shares}" if shares else "run the same command"
    because = f": {next(iter(damaged.values()))}" if damaged else ""
    missing_parts = f"{len(missing)} of {counted(n_parts, 'part')} {'is' if len(missing) == 1 else 'are'} missing"
    return f"{missing_parts} in {out} ({named}){because}; {again}, and then this one"


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
                f"(it has {counted(counts.documents, 'document')}, {counted(counts.tokens, 'token')}, of which "
                f"{most} in one of {counted(len(results), 'part')}): {_advice(name, counts.tokens, plan)}"
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


def _merged_index(out: Path, split: Split, results: Sequence[PartResult], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the index of a split: the shards of all parts in order, with file names relative to the split's folder.

    Raises:
        UserError: the index of a part is not one that write_shards wrote for it.
    """
    columns = [DOCUMENT_IDS, TOKENS] if plan["document_ids"] else [TOKENS]
    settings = settings_of(
        window_length=plan["seq_len"] + plan["lookahead"],
        compression=plan["arguments"]["compression"],
        columns=columns,
    )
    refuse_link(out / split)
    shards = []
    for index, result in enumerate(results):
        part = Part(index, ())
        folder = out / split / part.name
        entries, fault = _entries_of_part(folder, settings, n_windows=result.splits[split].windows)
        if fault is not None:
            raise UserError(f"{fault}; {_write_again(part, out)}")
        for entry in entries:
            for key in ("raw_data", "zip_data"):
                if entry.get(key):
                    entry[key]["basename"] = f"{part.name}/{entry[key]['basename']}"
            shards.append(entry)
    return index_of(shards)


def _write_again(part: Part, out: Path) -> str:
    return f"delete {mark_path(part, out)}, and run the same write_shards command again"


def _entries_of_part(
    folder: Path, settings: Mapping[str, Any], *, n_windows: int
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the entries of one part's shards in one split, and what is wrong with them, or None."""
    path = folder / INDEX
    refuse_link(folder)
    refuse_link(path)
    try:
        entries = read_index(folder, strict=True)
    except UserError as error:
        return [], str(error).removesuffix("; write the shards again")
    for number, entry in enumerate(entries):
        if fault := entry_fault(entry, folder, number=number, settings=settings):
            return [], f"{path} is damaged: {fault}"
    found = sum(entry["samples"] for entry in entries)
    if found != n_windows:
        return [], f"{path} has {counted(found, 'window')}, but the mark of its part says {n_windows}"
    return entries, None


def _dropped_text(report: Mapping[str, Any]) -> str:
    rules = report["rules"].items()
    return ", ".join(f"{cell['documents']:,} {rule} (first: {first_dropped(report, rule)})" for rule, cell in rules)


def _split_lines(total: PartResult) -> str:
    return "\n".join(
        f"  {name:<8}{counted(counts.documents, 'document'):>22} {counted(counts.tokens, 'token'):>23}"
        f" {counted(counts.windows, 'window'):>20}"
        f"   {counts.bytes / max(1, counts.tokens):.2f} bytes/token, {counted(counts.tail_tokens, 'token')} left over"
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
