"""One part of the corpus to MDS shards: what a worker process does, and how it survives being killed.

A part is written into a staging folder of this process, flushed to disk, moved into its place by a rename per
split, and marked as done last. What a killed worker leaves is a staging folder, or splits without the mark: the
next run writes that part again, to the same bytes.

Ids are SentencePiece's, whatever computes them: of every part the first documents, and of all one in 128, chosen by
their hash, are encoded by SentencePiece too, and a difference ends the run.
"""

import contextlib
import functools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.command_line import UserError
from common.fast_tokens import first_difference
from common.files import write_json
from common.tokenizers import Engine, Tokenizer, load_tokenizer
from data_prep.documents import Document, Dropped, Piece, ReadOptions
from data_prep.filters import FilterOptions, digest, is_validation
from data_prep.languages import language_of
from data_prep.mds_writer import MDSWriter
from data_prep.packing import TokenArray, WindowPacker, WindowShape
from data_prep.readers import read_piece
from data_prep.report import KEPT, Samples, Tally, add_sample, count
from data_prep.verdicts import Reasons, verdicts
from data_prep.workers import report

SPLITS = ("train", "val")
WORK_FOLDER = "work"
_TOKENS_BETWEEN_FLUSHES = 1 << 20
_CHECKED_FIRST = 2  # documents of a part whose ids are compared with the reference's in any case
_CHECKED_OF_256 = 2  # and how many of 256 others, by the last byte of their digest

_tokenizer = functools.cache(load_tokenizer)  # building the fast one takes longer than a small part does


class WrongIdsError(UserError):
    """The fast tokenizer does not give SentencePiece's ids; nothing that it has written can be trusted."""


@dataclass(frozen=True)
class PartOptions:
    """What every part is written with. `out` is the root of the shards."""

    out: Path
    tokenizer: str
    engine: Engine
    reading: ReadOptions
    shape: WindowShape
    val_fraction: float
    compression: str | None
    filters: FilterOptions


@dataclass(frozen=True)
class Part:
    """The `index`-th share of the corpus, in order."""

    index: int
    pieces: tuple[Piece, ...]

    @property
    def name(self) -> str:
        return f"part-{self.index:05}"


@dataclass
class SplitCounts:
    """Of one split: documents, their UTF-8 bytes, their tokens with EOS, windows, and the tokens no window holds."""

    documents: int = 0
    tokens: int = 0
    windows: int = 0
    bytes: int = 0
    tail_tokens: int = 0

    def add(self, other: "SplitCounts") -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class PartResult:
    """What a part came to. `examples` names the first source of each reason to drop; the rest is for report.json.

    `shares` has the documents, bytes and tokens of each source that were written, by its name.
    """

    splits: dict[str, SplitCounts] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    input_bytes: int = 0
    shares: dict[str, dict[str, int]] = field(default_factory=dict)
    tally: Tally = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)


class _SplitWriter:
    """One split of one part: gathers tokens, writes windows."""

    def __init__(self, folder: Path, options: PartOptions) -> None:
        self.counts = SplitCounts()
        self._packer = WindowPacker(options.shape)
        self._pending: list[TokenArray] = []
        self._pending_tokens = 0
        self._mds = MDSWriter(folder, window_length=options.shape.length, compression=options.compression)

    def add(self, document: Document, tokens: TokenArray) -> None:
        self.counts.documents += 1
        self.counts.bytes += len(document.utf8)
        self.counts.tokens += len(tokens)
        self._pending.append(tokens)
        self._pending_tokens += len(tokens)
        if self._pending_tokens >= _TOKENS_BETWEEN_FLUSHES:
            self._flush()

    def finish(self) -> SplitCounts:
        self._flush()
        self._mds.finish()
        self.counts.tail_tokens = self._packer.tail_tokens
        return self.counts

    def _flush(self) -> None:
        windows = self._packer.add(self._pending)
        self._pending, self._pending_tokens = [], 0
        self.counts.windows += len(windows)
        self._mds.add(windows)


def read_part(part: Part, reading: ReadOptions) -> Iterator[Document | Dropped]:
    """Yield the documents of a part, and what was dropped in reading it, in order."""
    for piece in part.pieces:
        yield from read_piece(piece, reading)


def finished_parts(parts: Sequence[Part], out: Path) -> dict[int, PartResult]:
    """Return the results of the parts that are marked as done, by index."""
    results = {}
    for part in parts:
        with contextlib.suppress(FileNotFoundError):
            saved: dict[str, Any] = json.loads(_mark(part, out).read_text(encoding="utf-8"))
            splits = {name: SplitCounts(**counts) for name, counts in saved["splits"].items()}
            results[part.index] = PartResult(**saved | {"splits": splits})
    return results


def write_part(part: Part, options: PartOptions, reasons: Reasons | None) -> PartResult:
    """Write one part and mark it as done.

    Args:
        part: what to read.
        options: how to write it.
        reasons: why each document of the part is dropped, as a survey decided; None asks the rules.

    Raises:
        WrongIdsError: a document's ids are not those of the reference.
        ChangedInputError: the input is not what was surveyed.
        BadInputError: the input holds what is no document, and that is to end the run.
    """
    staging = options.out / WORK_FOLDER / f"{part.name}.staging-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    names = SPLITS if options.val_fraction > 0 else SPLITS[:1]
    writers = {name: _SplitWriter(staging / name, options) for name in names}
    result = _fill(writers, part, options, reasons)
    result.splits = {name: writer.finish() for name, writer in writers.items()}
    for name in names:
        _publish(staging / name, options.out / name / part.name)
    staging.rmdir()
    write_json(_mark(part, options.out), asdict(result))
    return result


def _fill(writers: dict[str, _SplitWriter], part: Part, options: PartOptions, reasons: Reasons | None) -> PartResult:
    tokenizer = _tokenizer(options.tokenizer, engine=options.engine)
    result = PartResult()
    n_documents = 0
    dropped: Counter[str] = Counter()
    judged = verdicts(part.pieces, options.reading, options.filters, reasons=reasons, val_fraction=options.val_fraction)
    for record, reason, source in judged:
        result.input_bytes += record.input_bytes
        n_tokens = 0
        _report_on(result, record, reason, language_field=options.filters.language_field)
        if reason is not None:
            dropped[reason] += 1
            result.examples.setdefault(reason, record.source)
        elif isinstance(record, Document):
            tokens = tokens_with_eos(record.text, tokenizer)
            n_tokens = len(tokens)
            document_digest = digest(record.utf8)
            is_checked = n_documents < _CHECKED_FIRST or document_digest[-1] < _CHECKED_OF_256
            if is_checked and not tokenizer.is_reference:
                _check_ids(record, tokens[:-1], tokenizer)
            n_documents += 1
            is_val = is_validation(document_digest, val_fraction=options.val_fraction)
            writers[SPLITS[is_val]].add(record, tokens)
            add_share(result.shares, source, documents=1, bytes=len(record.utf8), tokens=n_tokens)
        report(documents=int(reason is None), input_bytes=record.input_bytes, tokens=n_tokens)
    result.dropped = dict(sorted(dropped.items()))
    return result


def _report_on(
    result: PartResult, record: Document | Dropped, reason: str | None, *, language_field: str | None
) -> None:
    row, text, n_bytes = (
        (record.row, record.text, len(record.utf8))
        if isinstance(record, Document)
        else ({}, record.detail, record.input_bytes)
    )
    language = language_of(record.source, row, field=language_field)
    count(result.tally, language=language, outcome=reason or KEPT, n_bytes=n_bytes)
    if reason is not None:
        add_sample(result.samples, rule=reason, source=record.source, text=text)


def add_share(shares: dict[str, dict[str, int]], source: str, **counts: int) -> None:
    """Add what a source came to."""
    share = shares.setdefault(source, dict.fromkeys(counts, 0))
    for name, value in counts.items():
        share[name] += value


def tokens_with_eos(text: str, tokenizer: Tokenizer) -> TokenArray:
    """Return the ids of one document followed by EOS, (tokens + 1,) uint16."""
    ids = tokenizer.encode_array(text)
    tokens = np.empty(len(ids) + 1, dtype=np.uint16)
    tokens[:-1] = ids
    tokens[-1] = tokenizer.eos_id
    return tokens


def _check_ids(document: Document, ids: TokenArray, tokenizer: Tokenizer) -> None:
    """Compare a document's ids with those of the reference.

    Raises:
        WrongIdsError: they differ.
    """
    expected = np.asarray(tokenizer.encode(document.text), dtype=np.uint16)
    position = first_difference(ids, expected)
    if position is None:
        return
    found, wanted = (str(of[position]) if position < len(of) else "no id" for of in (ids, expected))
    versions = ", ".join(f"{name} {number}" for name, number in tokenizer.versions.items())
    raise WrongIdsError(
        f"{document.source}: at token {position} the fast tokenizer gives {found}, sentencepiece {wanted} "
        f"({versions}); all that was written is removed: run it again with --tokenizer_engine sentencepiece"
    )


def _mark(part: Part, out: Path) -> Path:
    return out / WORK_FOLDER / f"{part.name}.json"


def _publish(staged: Path, target: Path) -> None:
    """Flush a staged folder to disk and move it to `target`, over what an unmarked try left there."""
    for path in sorted(staged.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    staged.replace(target)
