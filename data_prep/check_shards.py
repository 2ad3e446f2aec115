"""Check finished shards: the size and hash of every file, every window, every count; show text from them.

The command reads the MDS files itself rather than through streaming. So it is an independent check, and starts fast.
Of shards in S3 it reads every object there, not the copies in the cache of a training run.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.command_line import command_parser, raise_if_any, say, whole_number
from common.s3 import S3Path
from common.shard_format import METADATA, DamagedShardError, read_index, read_metadata
from common.tokenizers import Tokenizer
from common.wording import counted
from data_prep.folder_argument import add_folder_argument, shard_folder
from data_prep.shards.reader import ShardContent, load_shard_tokenizer, read_shard, window_shape, windows_at
from data_prep.shards.window_text import EOS_MARK, Style, marked_text
from data_prep.tokens.packing import TokenArray

_EXAMPLES = """examples:
  python -m data_prep.check_shards data/code
  python -m data_prep.check_shards data/code --sample 3
  python -m data_prep.check_shards s3://bucket/code"""


@dataclass
class SplitReport:
    """Findings in one split."""

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
    root = shard_folder(arguments)
    metadata = read_metadata(root)
    tokenizer, problems = load_shard_tokenizer(root, metadata)
    say(f"{'split':<8}{'documents':>14}{'tokens':>18}{'windows':>14}{'shards':>9}{'MB on disk':>12}  result")
    for split, expected in metadata["splits"].items():
        report = check_split(root / split, metadata, expected_windows=expected["windows"])
        say(
            f"{split:<8}{expected['documents']:>14,}{expected['tokens']:>18,}{report.windows:>14,}{report.shards:>9,}"
            f"{report.bytes / 1e6:>12,.1f}  {counted(len(report.problems), 'problem') if report.problems else 'ok'}"
        )
        problems += report.problems
    raise_if_any(problems, heading=f"{root} is damaged")
    if arguments.sample and tokenizer is not None:
        style = _style(arguments.color)
        for split in metadata["splits"]:
            _print_sample(root / split, metadata, tokenizer, n_windows=arguments.sample, style=style)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("data_prep.check_shards", description=__doc__, epilog=_EXAMPLES)
    add_folder_argument(parser)
    sample_help = f"show the text of N evenly spaced windows of each split; {EOS_MARK} marks the end of a document"
    windows = whole_number(at_least=0, at_most=1_000_000)
    parser.add_argument("--sample", type=windows, default=0, metavar="N", help=sample_help)
    color_help = "color neighbouring tokens of the sample differently (default: on a terminal, unless NO_COLOR is set)"
    parser.add_argument("--color", choices=["auto", "always", "never"], default="auto", help=color_help)
    return parser.parse_args(argv)


def check_split(folder: Path | S3Path, metadata: dict[str, Any], *, expected_windows: int) -> SplitReport:
    """Check every shard of a split, and that consecutive windows of each part overlap, also from shard to shard."""
    report = SplitReport()
    try:
        entries = read_index(folder, strict=True)
    except DamagedShardError as error:
        report.problems.append(str(error))
        return report
    before: ShardContent | None = None
    for entry in tqdm(entries, desc=f"checking {folder.name}", unit="shard", leave=False):
        report.shards += 1
        try:
            shard = read_shard(folder, entry, metadata)
        except DamagedShardError as error:
            report.problems.append(str(error))
            before = None
            continue
        report.windows += len(shard.tokens)
        report.bytes += shard.stored_bytes
        report.problems += _problems_of_shard(shard, metadata, before=before)
        before = shard
    if not report.problems and report.windows != expected_windows:
        report.problems.append(
            f"{folder} holds {counted(report.windows, 'window')}; {METADATA} says {expected_windows}"
        )
    return report


def _problems_of_shard(shard: ShardContent, metadata: dict[str, Any], *, before: ShardContent | None) -> list[str]:
    """Return what is wrong with the windows of a shard, given the shard before it in the split, if that is intact."""
    problems = []
    shape, largest_id = window_shape(metadata), shard.tokens.max()
    if largest_id >= metadata["vocab_size"]:
        problems.append(f"{shard.path} holds id {largest_id}, beyond vocab_size {metadata['vocab_size']}")
    if shard.document_ids is not None and not _count_documents(shard.document_ids, shard.tokens, metadata):
        problems.append(f"{shard.path}: the document ids do not count the documents of each window from 0")
    heads, tails = shard.tokens[:, : shape.lookahead], shard.tokens[:, shape.seq_len :]
    overlaps = np.array_equal(heads[1:], tails[:-1])
    if before is not None and before.part == shard.part:
        overlaps = overlaps and np.array_equal(heads[0], before.tokens[-1, shape.seq_len :])
    if not overlaps:
        problems.append(f"{shard.path}: windows do not overlap by {shape.lookahead} tokens")
    return problems


def _count_documents(document_ids: TokenArray, tokens: TokenArray, metadata: dict[str, Any]) -> bool:
    """Return whether the ids start at 0 and rise by 1 after each EOS; where no EOS ends documents, by at most 1."""
    steps = np.diff(document_ids.astype(np.int32), axis=1)
    if metadata["document_ends"] in ("eos", "both"):
        is_right = steps == (tokens[:, :-1] == metadata["tokenizer"]["eos_id"])
    else:
        is_right = (steps == 0) | (steps == 1)
    return bool(is_right.all()) and not document_ids[:, 0].any()


def _style(color: str) -> Style:
    """Return how to show tokens; NO_COLOR is the convention of no-color.org."""
    is_wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") if color == "auto" else color == "always"
    return "color" if is_wanted else "plain"


def _print_sample(
    folder: Path | S3Path, metadata: dict[str, Any], tokenizer: Tokenizer, *, n_windows: int, style: Style
) -> None:
    total = metadata["splits"][folder.name]["windows"]
    indices = np.unique(np.linspace(0, total - 1, num=min(n_windows, total)).astype(int)).tolist()
    for index, window in windows_at(folder, read_index(folder, strict=True), metadata, indices=indices):
        text = marked_text(window, tokenizer, sentinels=(metadata.get("fim") or {}).get("sentinels"), style=style)
        print(f"\n--- {folder.name}, window {index + 1:,} of {total:,} ---\n{text}")


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.check_shards")
