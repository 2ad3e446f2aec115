"""Check finished shards: every file's size and hash, every window, every count; show what is in them.

Reads the MDS files by itself rather than through streaming, so that it is a second opinion, and starts at once. Of
shards in S3 it reads every object there, not what training has of them in a cache.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.command_line import UserError, command_parser, exit_on_user_error, raise_if_any
from common.s3 import S3Path, folder_at
from common.tokenizers import Tokenizer
from data_prep.shards.folder import METADATA
from data_prep.shards.reader import (
    DamagedShardError,
    columns_in,
    read_metadata,
    shards_of,
    tokenizer_of,
    verified_bytes,
)
from data_prep.shards.window_text import EOS_MARK, Style, marked_text
from data_prep.tokens.packing import TokenArray, WindowShape

_EXAMPLES = """examples:
  python -m data_prep.check_shards data/code
  python -m data_prep.check_shards data/code --sample 3
  python -m data_prep.check_shards s3://bucket/code"""


@dataclass
class SplitReport:
    """What was found in one split."""

    shards: int = 0
    windows: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the folder holds no finished shards, or something in it is wrong; every problem is listed.
    """
    arguments = _parse(argv)
    if arguments.sample < 0:
        raise UserError(f"--sample must be at least 0, not {arguments.sample}")
    root = folder_at(arguments.folder)
    metadata = read_metadata(root)
    tokenizer, problems = tokenizer_of(root, metadata)
    print(f"{'split':<8}{'documents':>14}{'tokens':>18}{'windows':>14}{'shards':>9}{'MB on disk':>12}  result")
    for split, expected in metadata["splits"].items():
        report = check_split(root / split, metadata, expected_windows=expected["windows"])
        print(
            f"{split:<8}{expected['documents']:>14,}{expected['tokens']:>18,}{report.windows:>14,}{report.shards:>9,}"
            f"{report.bytes / 1e6:>12,.1f}  {f'{len(report.problems)} problems' if report.problems else 'ok'}"
        )
        problems += report.problems
    raise_if_any(problems, heading=f"{root} is damaged")
    if arguments.sample and tokenizer is not None:
        style = _style(arguments.color)
        for split in metadata["splits"]:
            _print_sample(root / split, metadata, tokenizer, n_windows=arguments.sample, style=style)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("data_prep.check_shards", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("folder", metavar="DIR", help="what write_shards was given as --out, s3:// too")
    sample_help = f"show the text of N windows of each split, evenly spread; {EOS_MARK} ends a document"
    parser.add_argument("--sample", type=int, default=0, metavar="N", help=sample_help)
    colour_help = "show each token of the sample in a shade of its own (default: on a terminal, unless NO_COLOR is set)"
    parser.add_argument("--color", choices=["auto", "always", "never"], default="auto", help=colour_help)
    return parser.parse_args(argv)


def check_split(folder: Path | S3Path, metadata: dict[str, Any], *, expected_windows: int) -> SplitReport:
    """Check every shard of one split, and the overlap of consecutive windows of a part, across its shards too."""
    shape = WindowShape(metadata["seq_len"], metadata["lookahead"])
    report = SplitReport()
    try:
        shards = shards_of(folder)
    except DamagedShardError as error:
        report.problems.append(str(error))
        return report
    last_part, tail = "", np.empty(0, dtype=np.uint16)
    for shard in tqdm(shards, desc=f"checking {folder.name}", unit="shard", leave=False):
        path = folder / shard["raw_data"]["basename"]
        report.shards += 1
        try:
            raw, n_bytes = verified_bytes(folder, shard)
            document_ids, windows = columns_in(raw, shape, metadata, n_windows=shard["samples"], path=path)
        except DamagedShardError as error:
            report.problems.append(str(error))
            last_part = ""
            continue
        report.windows += len(windows)
        report.bytes += n_bytes
        if windows.max() >= metadata["vocab_size"]:
            report.problems.append(f"{path} holds id {windows.max()}, beyond vocab_size {metadata['vocab_size']}")
        if document_ids is not None and not _count_documents(document_ids, windows, metadata):
            report.problems.append(f"{path}: the document ids do not count the documents of each window from 0")
        part = shard["raw_data"]["basename"].partition("/")[0]
        heads = windows[:, : shape.lookahead]
        tails = windows[:, shape.seq_len :]
        if not np.array_equal(heads[1:], tails[:-1]) or (part == last_part and not np.array_equal(heads[0], tail)):
            report.problems.append(f"{path}: windows do not overlap by {shape.lookahead} tokens")
        last_part, tail = part, tails[-1]
    if not report.problems and report.windows != expected_windows:
        report.problems.append(f"{folder} holds {report.windows} windows; {METADATA} says {expected_windows}")
    return report


def _count_documents(document_ids: TokenArray, windows: TokenArray, metadata: dict[str, Any]) -> bool:
    """Return whether the ids count from 0, by one after each EOS if documents end in one, else by at most one."""
    steps = np.diff(document_ids.astype(np.int32), axis=1)
    if metadata["document_ends"] in ("eos", "both"):
        is_right = steps == (windows[:, :-1] == metadata["tokenizer"]["eos_id"])
    else:
        is_right = (steps == 0) | (steps == 1)
    return bool(is_right.all()) and not document_ids[:, 0].any()


def _style(color: str) -> Style:
    """Return how to show tokens; NO_COLOR is the convention of no-color.org."""
    is_wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") if color == "auto" else color == "always"
    return "colour" if is_wanted else "plain"


def _print_sample(
    folder: Path | S3Path, metadata: dict[str, Any], tokenizer: Tokenizer, *, n_windows: int, style: Style
) -> None:
    total = metadata["splits"][folder.name]["windows"]
    wanted = np.unique(np.linspace(0, total - 1, num=min(n_windows, total)).astype(int))
    for number, window in _windows_at(folder, metadata, wanted.tolist()):
        text = marked_text(window, tokenizer, sentinels=(metadata.get("fim") or {}).get("sentinels"), style=style)
        print(f"\n--- {folder.name}, window {number + 1:,} of {total:,} ---\n{text}")


def _windows_at(
    folder: Path | S3Path, metadata: dict[str, Any], numbers: list[int]
) -> Iterator[tuple[int, TokenArray]]:
    shape = WindowShape(metadata["seq_len"], metadata["lookahead"])
    first = 0
    for shard in shards_of(folder):
        inside = [number for number in numbers if first <= number < first + shard["samples"]]
        if inside:
            raw, _ = verified_bytes(folder, shard)
            _, windows = columns_in(raw, shape, metadata, n_windows=shard["samples"], path=folder)
            yield from ((number, windows[number - first]) for number in inside)
        first += shard["samples"]


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.check_shards")
