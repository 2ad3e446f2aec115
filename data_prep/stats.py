"""Show how long the documents of finished shards are, and how many tokens their text takes, overall and by language.

    DIR/train, val     read shard by shard; documents are found by their EOS
    DIR/report.json    the totals of each language, over both splits
    stats.png          a histogram of the lengths of documents, in tokens
    stats.json         the printed numbers: {"splits": {SPLIT: ...}, "languages": {LANGUAGE: ...}}

The last document of each part is cut off where its last window ends. It is counted, but has no length.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import argparse
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from common.command_line import UserError, command_parser, output_path, say
from common.files import PNG_HEAD, refuse_to_replace, write_json, written_whole
from common.s3 import S3Path
from common.shard_format import DamagedShardError, read_index, read_metadata
from data_prep.folder_argument import add_folder_argument, shard_folder
from data_prep.shards.reader import part_of, read_shard
from data_prep.shards.tally import KEPT, UNITS, read_report, tokens_per_byte
from data_prep.tokens.packing import TokenArray

ALL = "all"
PERCENTILES = (1, 10, 50, 90, 99)
_BINS_PER_FACTOR_TWO = 2
_FEWEST_TICKS, _MOST_TICKS = 3, 8
_JSON_HEAD = b'{\n  "splits": {'
_EXAMPLES = """examples:
  python -m data_prep.stats data/code
  python -m data_prep.stats data/code --output code.png"""


Lengths = npt.NDArray[np.int64]  # (documents,), in tokens with EOS


@dataclass
class SplitStats:
    """Numbers of one split, or of all. Lengths are in tokens, with EOS, and of documents that are not cut off."""

    documents: int
    tokens: int
    bytes: int
    """UTF-8 bytes of the documents."""
    tokens_per_byte: float
    cut_documents: int = 0
    mean_length: float = 0.0
    percentiles: dict[str, int] = field(default_factory=dict)
    """Lengths by percentile, `PERCENTILES`."""
    longest: int = 0


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the folder holds no finished shards, they are damaged, or their documents do not end in EOS.
    """
    arguments = _parse(argv)
    root = shard_folder(arguments)
    if arguments.output is None and isinstance(root, S3Path):
        raise UserError(f"stats does not write to {root}: give a file for the histogram with --output")
    metadata = read_metadata(root)
    picture = arguments.output or Path(f"{root}/stats.png")
    refuse_to_replace(picture, head=PNG_HEAD, kind="a picture")
    refuse_to_replace(picture.with_suffix(".json"), head=_JSON_HEAD, kind="what stats wrote")
    if metadata.get("document_ends", "eos") not in ("eos", "both"):
        raise UserError(f"{root} was written with --document_ends {metadata['document_ends']}: no EOS ends a document")
    languages = read_report(root, languages_of)
    stats, lengths = _measure(root, metadata)
    say(f"{table(stats)}\n\n{language_table(languages)}")
    try:
        _draw(lengths, picture)
        splits = {split: asdict(split_stats) for split, split_stats in stats.items()}
        write_json(picture.with_suffix(".json"), {"splits": splits, "languages": languages})
    except OSError as error:
        raise UserError(f"cannot write {picture}: {error.strerror}; name another file with --output") from error
    say(f"histogram: {picture}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("data_prep.stats", description=__doc__, epilog=_EXAMPLES)
    add_folder_argument(parser)
    output_help = "file for the histogram (default: DIR/stats.png)"
    parser.add_argument("--output", type=output_path, metavar="PNG", help=output_help)
    arguments = parser.parse_args(argv)
    if arguments.output is not None and (arguments.output.suffix != ".png" or not arguments.output.parent.is_dir()):
        parser.error(f"--output {arguments.output} must be a .png file in a folder that exists")
    return arguments


def _measure(root: Path | S3Path, metadata: dict[str, Any]) -> tuple[dict[str, SplitStats], dict[str, Lengths]]:
    """Return the numbers of each split and of all, and the lengths of the documents of each split.

    Raises:
        UserError: the shards are damaged.
    """
    stats: dict[str, SplitStats] = {}
    lengths: dict[str, Lengths] = {}
    for split, counts in metadata["splits"].items():
        try:
            lengths[split], n_cut = document_lengths(root / split, metadata)
        except DamagedShardError as error:
            raise UserError(f"{error}; see python -m data_prep.check_shards {shlex.quote(str(root))}") from error
        stats[split] = _stats(counts, lengths[split], n_cut=n_cut)
    total = {unit: sum(getattr(split_stats, unit) for split_stats in stats.values()) for unit in UNITS}
    n_cut = sum(split_stats.cut_documents for split_stats in stats.values())
    stats[ALL] = _stats(total, np.concatenate(list(lengths.values())), n_cut=n_cut)
    return stats, lengths


def languages_of(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the kept documents, bytes, tokens and tokens per byte of each language, the one with most bytes first."""
    kept = {name: section[KEPT] for name, section in report["languages"].items() if section[KEPT]["documents"]}
    return {
        name: {unit: kept[name][unit] for unit in UNITS} | {"tokens_per_byte": tokens_per_byte(kept[name])}
        for name in sorted(kept, key=lambda name: (-kept[name]["bytes"], name))
    }


def document_lengths(folder: Path | S3Path, metadata: dict[str, Any]) -> tuple[Lengths, int]:
    """Return the lengths in tokens of a split's whole documents, EOS included, and the number of those cut off.

    Raises:
        DamagedShardError: a file is not what its index says.
    """
    eos_id = metadata["tokenizer"]["eos_id"]
    lengths: list[Lengths] = []
    part, open_tokens, n_cut = "", 0, 0
    for next_part, tokens in _token_runs(folder, metadata):
        if next_part != part:
            n_cut += open_tokens > 0
            part, open_tokens = next_part, 0
        ends = np.flatnonzero(tokens == eos_id) + 1
        if len(ends):
            lengths.append(np.diff(ends, prepend=-open_tokens))
            open_tokens = len(tokens) - int(ends[-1])
        else:
            open_tokens += len(tokens)
    n_cut += open_tokens > 0
    return np.concatenate(lengths) if lengths else np.empty(0, dtype=np.int64), n_cut


def _token_runs(folder: Path | S3Path, metadata: dict[str, Any]) -> Iterator[tuple[str, TokenArray]]:
    """Yield consecutive runs of each part's tokens, each token once, with the name of the part."""
    seq_len = metadata["seq_len"]
    entries = read_index(folder, strict=True)
    for number, entry in enumerate(tqdm(entries, desc=f"reading {folder.name}", unit="shard", leave=False)):
        shard = read_shard(folder, entry, metadata)
        yield shard.part, shard.tokens[:, :seq_len].ravel()
        is_last_of_part = number + 1 == len(entries) or part_of(entries[number + 1]) != shard.part
        if is_last_of_part:
            yield shard.part, shard.tokens[-1, seq_len:]


def _stats(counts: dict[str, Any], lengths: Lengths, *, n_cut: int) -> SplitStats:
    stats = SplitStats(
        documents=counts["documents"],
        tokens=counts["tokens"],
        bytes=counts["bytes"],
        tokens_per_byte=tokens_per_byte(counts),
        cut_documents=n_cut,
    )
    if len(lengths):
        stats.mean_length, stats.longest = float(lengths.mean()), int(lengths.max())
        values = np.percentile(lengths, PERCENTILES, method="inverted_cdf").astype(int).tolist()
        stats.percentiles = dict(zip(map(str, PERCENTILES), values, strict=True))
    return stats


def table(stats: dict[str, SplitStats]) -> str:
    """Return a table of the splits: sizes, and percentiles of the lengths of documents in tokens."""
    heads = "".join(f"{f'{percentile} %':>9}" for percentile in PERCENTILES)
    lines = [
        f"{'split':<8}{'documents':>12}{'tokens':>16}{'tokens/byte':>13}{'bytes/token':>13}"
        f"{'cut':>6}{'mean':>10}{heads}{'longest':>12}"
    ]
    for split, row in stats.items():
        values = "".join(f"{row.percentiles.get(str(percentile), 0):>9,}" for percentile in PERCENTILES)
        lines.append(
            f"{split:<8}{row.documents:>12,}{row.tokens:>16,}{row.tokens_per_byte:>13.3f}"
            f"{row.bytes / max(1, row.tokens):>13.2f}{row.cut_documents:>6,}{row.mean_length:>10,.0f}"
            f"{values}{row.longest:>12,}"
        )
    return "\n".join(lines)


def language_table(languages: dict[str, dict[str, float]]) -> str:
    """Return a table of the languages."""
    lines = [f"{'language':<26}{'documents':>12}{'tokens':>16}{'tokens/byte':>13}{'bytes/token':>13}{'of tokens':>11}"]
    n_tokens = sum(row["tokens"] for row in languages.values())
    for name, row in languages.items():
        lines.append(
            f"{name:<26}{row['documents']:>12,}{row['tokens']:>16,}{row['tokens_per_byte']:>13.3f}"
            f"{row['bytes'] / max(1, row['tokens']):>13.2f}{row['tokens'] / max(1, n_tokens):>11.1%}"
        )
    return "\n".join(lines)


def _draw(lengths: dict[str, Lengths], picture: Path) -> None:
    """Draw two histograms over the length of documents: the fraction of the documents, and that of their tokens."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharex=True)
    edges, ticks = _axis(np.concatenate(list(lengths.values())))
    for panel, unit in zip(panels, ("documents", "tokens"), strict=True):
        for split, in_split in lengths.items():
            weights = np.ones(len(in_split)) if unit == "documents" else in_split.astype(float)
            panel.hist(in_split, bins=edges, weights=weights / max(1.0, weights.sum()), histtype="step", label=split)
        panel.set(xscale="log", xlabel="tokens in a document", ylabel=f"fraction of {unit}", xlim=(edges[0], edges[-1]))
        panel.set_xticks(ticks, labels=[_short(tick) for tick in ticks])
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(lengths), frameon=False)
    with written_whole(picture) as partial:
        figure.savefig(partial, format="png", dpi=120)
    pyplot.close(figure)


def _axis(lengths: Lengths) -> tuple[npt.NDArray[np.float64], list[int]]:
    """Return the edges of the histograms' bins, and the few lengths to name on the axis."""
    lowest = int(np.log2(lengths.min())) if len(lengths) else 0
    highest = int(np.ceil(np.log2(lengths.max() + 1))) if len(lengths) else 1
    n_bins = _BINS_PER_FACTOR_TWO * (highest - lowest)
    edges = np.logspace(lowest, highest, num=n_bins + 1, base=2)
    powers = [10**power for power in range(19) if edges[0] <= 10**power <= edges[-1]]
    if len(powers) < _FEWEST_TICKS:
        powers = [2**power for power in range(lowest, highest + 1)]
    return edges, powers[:: -(-len(powers) // _MOST_TICKS)]


def _short(tick: int) -> str:
    """Return a length as a label that leaves room for its neighbours: 512, 1k, 100k, 1M."""
    factor, letter = next((pair for pair in ((10**9, "G"), (10**6, "M"), (10**3, "k")) if tick >= pair[0]), (1, ""))
    return f"{tick / factor:.4g}{letter}"


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.stats")
