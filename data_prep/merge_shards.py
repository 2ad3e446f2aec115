"""Finish a folder that write_shards filled in shares: when all parts are there, merge their indexes, and write
report.json and, last, metadata.json.

    python -m data_prep.write_shards ... --out DIR --part 1/8      and so on, to 8/8, in any order, on any machines
    python -m data_prep.merge_shards DIR

What comes out is byte for byte what one run without --part writes; that run ends with this step, too. It needs the
folder alone, neither the corpus nor the tokenizer.
"""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.command_line import UserError, command_parser, exit_on_user_error
from common.files import write_json
from common.s3 import is_remote
from common.tokenizers import Tokenizer
from data_prep.filters.languages import UNKNOWN
from data_prep.report import REPORT, add_sample, build, count, first_dropped, table
from data_prep.shards.folder import METADATA, abandon, finish, locked, read_json, read_plan, shares_with
from data_prep.shards.part_writer import Part, PartResult, SplitCounts, add_share, finished_parts
from data_prep.sources.listing import ListedSource

_EXAMPLES = """example:
  python -m data_prep.merge_shards /shared/code"""
_LATE_IN_METADATA = ("sources", "arguments", "versions")
_NOT_IN_METADATA = ("listing", "names", "skipped", *_LATE_IN_METADATA)
_MOST_NAMED = 5


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: parts are missing, shares are still being written, or nothing could be trained on what there is.
    """
    parser = command_parser("data_prep.merge_shards", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("folder", metavar="DIR", help="what write_shards was given as --out")
    folder: str = parser.parse_args(argv).folder
    if is_remote(folder):
        raise UserError(f"{folder}: shares are merged in a folder that all machines see; upload_shards comes after it")
    out = Path(folder)
    if read_json(out / METADATA) is None:
        read_plan(out)  # or a folder of something else would get a lock file
    with locked(out):
        if read_json(out / METADATA) is not None:
            print(f"{out} is already finished; nothing to do")
        else:
            merge(out)


def facts_of(sources: Sequence[ListedSource], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what `merge` will need besides the identity, for the plan."""
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
    """Finish a folder, which this process holds, and print what is in it.

    Raises:
        UserError: parts are missing; or the shards would have no windows, and are removed.
    """
    plan = read_plan(out)
    parts = [Part(index, ()) for index in range(len(plan["listing"]))]
    finished = finished_parts(parts, out)
    missing = [part.index for part in parts if part.index not in finished]
    if missing:
        raise UserError(_missing_text(out, missing, n_parts=len(parts)))
    results = [finished[part.index] for part in parts]
    total = _sum_of(results, plan)
    report = build([(result.tally, result.samples) for result in (total, *results)])
    _check_splits(total, report, plan, out=out)
    write_json(out / REPORT, report)
    finish(out, _metadata(plan, total), parts=parts)
    shares = _share_lines(total) if plan["arguments"]["mix"] else []
    print("\n".join([f"{out} is finished", _summary(total), *shares, table(report)]))


def _missing_text(out: Path, missing: Sequence[int], *, n_parts: int) -> str:
    named = " ".join(f"part-{index:05}" for index in missing[:_MOST_NAMED]) + (" ..." if missing[_MOST_NAMED:] else "")
    shares = shares_with(out, missing)
    again = f"run the same command with --part {shares}" if shares else "run the same command"
    return f"{len(missing)} of {n_parts} parts are missing in {out} ({named}); {again}, and then this one"


def _sum_of(results: Sequence[PartResult], plan: Mapping[str, Any]) -> PartResult:
    total = PartResult(splits={name: SplitCounts() for name in results[0].splits})
    dropped: Counter[str] = Counter()
    for name in plan["names"]:
        add_share(total.shares, name, documents=0, bytes=0, tokens=0)
    for reason, source, detail in plan["skipped"]:
        dropped[reason] += 1
        count(total.tally, language=UNKNOWN, outcome=reason, n_bytes=0)
        add_sample(total.samples, rule=reason, source=source, detail=detail)
    for result in results:
        for name, counts in result.splits.items():
            total.splits[name].add(counts)
        dropped.update(result.dropped)
        for name, share in result.shares.items():
            add_share(total.shares, name, **share)
        total.input_bytes += result.input_bytes
    total.dropped = dict(sorted(dropped.items()))
    return total


def _check_splits(total: PartResult, report: Mapping[str, Any], plan: Mapping[str, Any], *, out: Path) -> None:
    """Refuse shards that nothing can be trained or evaluated on, and remove them."""
    arguments = plan["arguments"]
    n_documents = sum(counts.documents for counts in total.splits.values())
    problem = ""
    if n_documents == 0:
        named = " ".join(arguments["input"] or arguments["mix"])
        problem = f"no documents in {named}; dropped: {_dropped_text(report) or 'none'}"
    for name, counts in total.splits.items():
        if n_documents and counts.windows == 0:
            problem = (
                f"split {name!r} would have no window of {arguments['seq_len']} + {arguments['lookahead']} tokens "
                f"(it has {counts.documents} documents, {counts.tokens} tokens, in {len(plan['listing'])} parts): "
                f"change --val_fraction ({arguments['val_fraction']}), lower --seq_len, or add input"
            )
            break
    if problem:
        abandon(out)
        raise UserError(problem)


def _metadata(plan: Mapping[str, Any], total: PartResult) -> dict[str, Any]:
    return {
        **{name: value for name, value in plan.items() if name not in _NOT_IN_METADATA},
        "splits": {name: asdict(counts) for name, counts in total.splits.items()},
        "dropped": total.dropped,
        "shares": total.shares,
        **{name: plan[name] for name in _LATE_IN_METADATA},
    }


def _dropped_text(report: Mapping[str, Any]) -> str:
    rules = report["rules"].items()
    return ", ".join(f"{cell['documents']:,} {rule} (first: {first_dropped(report, rule)})" for rule, cell in rules)


def _summary(total: PartResult) -> str:
    return "\n".join(
        f"  {name:<8}{counts.documents:>12,} documents {counts.tokens:>16,} tokens {counts.windows:>12,} windows"
        f"   {counts.bytes / max(1, counts.tokens):.2f} bytes/token, {counts.tail_tokens:,} tokens left over"
        for name, counts in total.splits.items()
    )


def _share_lines(total: PartResult) -> list[str]:
    """Return what each source came to, also one that gave nothing, a line each."""
    n_tokens = sum(share["tokens"] for share in total.shares.values())
    heading = f"  {'source':<26}{'kept':>10}{'MB':>10}{'tokens':>14}{'of tokens':>11}"
    return [heading] + [
        f"  {name:<26}{share['documents']:>10,}{share['bytes'] / 1e6:>10.2f}{share['tokens']:>14,}"
        f"{share['tokens'] / max(1, n_tokens):>11.2%}"
        for name, share in total.shares.items()
    ]


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.merge_shards")
