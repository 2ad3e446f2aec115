"""How long the documents of finished shards are, and how many tokens their text takes, overall and by language.

    DIR/train, val     read shard by shard, each file compared with its hash; documents are found by their EOS
    DIR/report.json    what each language came to, of both splits
    stats.png          a histogram of the documents' lengths, in tokens
    stats.json         the same numbers as are printed: {"splits": {SPLIT: ...}, "languages": {LANGUAGE: ...}}

The last document of each part is cut where no window holds the rest; it is counted, but has no length.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from common.command_line import UserError, command_parser, exit_on_user_error
from common.files import write_json, written_whole
from common.s3 import S3Path, folder_at
from data_prep.report import KEPT, UNITS, read_report, tokens_per_byte
from data_prep.shards.reader import DamagedShardError, columns_in, read_metadata, shards_of, verified_bytes
from data_prep.tokens.packing import TokenArray, WindowShape

ALL = "all"
PERCENTILES = (1, 10, 50, 90, 99)
_BINS_PER_FACTOR_TWO = 2
_EXAMPLES = """examples:
  python -m data_prep.stats data/code
  python -m data_prep.stats data/code --output code.png"""


@dataclass
class SplitStats:
    """Of one split, or all: counts as metadata.json has them, and the lengths of whole documents, EOS included."""

    documents: int
    tokens: int
    bytes: int
    tokens_per_byte: float
    cut_documents: int = 0
    mean_length: float = 0.0
    percentiles: dict[str, int] = field(default_factory=dict)
    longest: int = 0


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the folder holds no finished shards, they are damaged, or their documents do not end in EOS.
    """
    arguments = _parse(argv)
    root = folder_at(arguments.folder)
    picture: Path | None = arguments.output
    if picture is None and isinstance(root, S3Path):
        raise UserError(f"{root} is not written to: say with --output where the histogram goes")
    metadata = read_metadata(root)
    if metadata.get("document_ends", "eos") not in ("eos", "both"):
        raise UserError(f"{root} was written with --document_ends {metadata['document_ends']}: no EOS ends a document")
    languages = read_report(root, languages_of)
    stats, lengths = {}, {}
    n_all_cut = 0
    for split in metadata["splits"]:
        try:
            lengths[split], n_cut = document_lengths(root / split, metadata)
        except DamagedShardError as error:
            raise UserError(f"{error}; see python -m data_prep.check_shards {root}") from error
        stats[split] = _stats(metadata["splits"][split], lengths[split], n_cut=n_cut)
        n_all_cut += n_cut
    total = {unit: sum(getattr(of, unit) for of in stats.values()) for unit in UNITS}
    stats[ALL] = _stats(total, np.concatenate(list(lengths.values())), n_cut=n_all_cut)
    print(f"{table(stats)}\n\n{language_table(languages)}")
    picture = picture or Path(f"{root}/stats.png")
    try:
        _draw(lengths, picture)
        numbers = {"splits": {split: asdict(of) for split, of in stats.items()}, "languages": languages}
        write_json(picture.with_suffix(".json"), numbers)
    except OSError as error:
        raise UserError(f"cannot write {picture}: {error.strerror}; name another file with --output") from error
    print(f"histogram: {picture}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("data_prep.stats", description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("folder", metavar="DIR", help="what write_shards was given as --out, s3:// too")
    parser.add_argument("--output", type=Path, metavar="PNG", help="where the histogram goes (default: DIR/stats.png)")
    arguments = parser.parse_args(argv)
    if arguments.output is not None and (arguments.output.suffix != ".png" or not arguments.output.parent.is_dir()):
        parser.error(f"--output {arguments.output} is no .png file in a folder that is there")
    return arguments


def languages_of(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the documents, bytes, tokens and tokens per byte of each language that was kept, most bytes first."""
    kept = {name: of[KEPT] for name, of in report["languages"].items() if of[KEPT]["documents"]}
    return {
        name: {unit: kept[name][unit] for unit in UNITS} | {"tokens_per_byte": tokens_per_byte(kept[name])}
        for name in sorted(kept, key=lambda name: (-kept[name]["bytes"], name))
    }


def document_lengths(folder: Path | S3Path, metadata: dict[str, Any]) -> tuple[npt.NDArray[np.int64], int]:
    """Return the lengths of a split's whole documents in tokens, EOS included, and how many are cut.

    Raises:
        DamagedShardError: a file is not what its index says.
    """
    eos_id = metadata["tokenizer"]["eos_id"]
    lengths: list[npt.NDArray[np.int64]] = []
    part, open_tokens, n_cut = "", 0, 0
    for of_part, tokens in _streams(folder, metadata):
        if of_part != part:
            n_cut += open_tokens > 0
            part, open_tokens = of_part, 0
        ends = np.flatnonzero(tokens == eos_id) + 1
        if len(ends):
            lengths.append(np.diff(ends, prepend=-open_tokens))
            open_tokens = len(tokens) - int(ends[-1])
        else:
            open_tokens += len(tokens)
    n_cut += open_tokens > 0
    return np.concatenate(lengths) if lengths else np.empty(0, dtype=np.int64), n_cut


def _streams(folder: Path | S3Path, metadata: dict[str, Any]) -> Iterator[tuple[str, TokenArray]]:
    """Yield, shard by shard, the name of its part and the tokens that no window before has."""
    shape = WindowShape(metadata["seq_len"], metadata["lookahead"])
    shards = shards_of(folder)
    for number, shard in enumerate(tqdm(shards, desc=f"reading {folder.name}", unit="shard", leave=False)):
        path = folder / shard["raw_data"]["basename"]
        raw, _ = verified_bytes(folder, shard)
        _, windows = columns_in(raw, shape, metadata, n_windows=shard["samples"], path=path)
        part = _part_of(shard)
        yield part, windows[:, : shape.seq_len].ravel()
        is_last = number + 1 == len(shards) or _part_of(shards[number + 1]) != part
        if is_last:
            yield part, windows[-1, shape.seq_len :]


def _part_of(shard: dict[str, Any]) -> str:
    return str(shard["raw_data"]["basename"].partition("/")[0])


def _stats(counts: dict[str, Any], lengths: npt.NDArray[np.int64], *, n_cut: int) -> SplitStats:
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
    """Return the splits as a table: sizes, and percentiles of document lengths in tokens."""
    heads = "".join(f"{f'{percentile} %':>9}" for percentile in PERCENTILES)
    lines = [
        f"{'split':<8}{'documents':>12}{'tokens':>16}{'tokens/byte':>13}{'bytes/token':>13}"
        f"{'cut':>6}{'mean':>10}{heads}{'longest':>12}"
    ]
    for split, of in stats.items():
        values = "".join(f"{of.percentiles.get(str(percentile), 0):>9,}" for percentile in PERCENTILES)
        lines.append(
            f"{split:<8}{of.documents:>12,}{of.tokens:>16,}{of.tokens_per_byte:>13.3f}"
            f"{of.bytes / max(1, of.tokens):>13.2f}{of.cut_documents:>6,}{of.mean_length:>10,.0f}"
            f"{values}{of.longest:>12,}"
        )
    return "\n".join(lines)


def language_table(languages: dict[str, dict[str, float]]) -> str:
    """Return the languages as a table."""
    lines = [f"{'language':<26}{'documents':>12}{'tokens':>16}{'tokens/byte':>13}{'bytes/token':>13}{'of tokens':>11}"]
    n_tokens = sum(of["tokens"] for of in languages.values())
    for name, of in languages.items():
        lines.append(
            f"{name:<26}{of['documents']:>12,}{of['tokens']:>16,}{of['tokens_per_byte']:>13.3f}"
            f"{of['bytes'] / max(1, of['tokens']):>13.2f}{of['tokens'] / max(1, n_tokens):>11.1%}"
        )
    return "\n".join(lines)


def _draw(lengths: dict[str, npt.NDArray[np.int64]], picture: Path) -> None:
    """Draw the share of documents by length, and of the tokens that they hold."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharex=True)
    longest = max((int(of.max()) for of in lengths.values() if len(of)), default=1)
    n_bins = _BINS_PER_FACTOR_TWO * int(np.ceil(np.log2(longest + 1)))
    edges = np.logspace(0, n_bins / _BINS_PER_FACTOR_TWO, num=n_bins + 1, base=2)
    for panel, of_what in zip(panels, ("documents", "tokens"), strict=True):
        for split, of in lengths.items():
            weights = np.ones(len(of)) if of_what == "documents" else of.astype(float)
            panel.hist(of, bins=edges, weights=weights / max(1.0, weights.sum()), histtype="step", label=split)
        panel.set(xscale="log", xlabel="tokens of a document", ylabel=f"share of the {of_what}")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    with written_whole(picture) as partial:
        figure.savefig(partial, format="png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.stats")
