"""One part of the corpus to MDS shards: what a worker process does, and how it survives being killed.

A part is written into a staging folder of this process, flushed to disk, moved into its place by a rename per
split, and marked as done last. What a killed worker leaves is a staging folder, or splits without the mark: the
next run writes that part again, to the same bytes.

Ids are compared with SentencePiece's (`encoding`) for the first documents of every part, and for one in 128 of all,
chosen by their hash.
"""

import contextlib
import functools
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_json
from common.tokenizers import Engine
from data_prep.filters.decisions import Reasons, decisions
from data_prep.filters.digests import digest, is_validation
from data_prep.filters.languages import language_of
from data_prep.filters.options import FilterOptions
from data_prep.report import KEPT, Samples, Tally, add_sample, count
from data_prep.shards.mds_writer import DOCUMENT_IDS, TOKENS, MDSWriter
from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions
from data_prep.tokens.encoding import DocumentEncoder, Encoded
from data_prep.tokens.options import DocumentOptions
from data_prep.tokens.packing import TokenArray, WindowPacker, WindowShape, documents_in_windows
from data_prep.tokens.shuffling import DocumentShuffler
from data_prep.workers import report

SPLITS = ("train", "val")
WORK_FOLDER = "work"
_TOKENS_BETWEEN_FLUSHES = 1 << 20
_CHECKED_FIRST = 2  # documents of a part whose ids are compared with the reference's in any case
_CHECKED_OF_256 = 2  # and how many of 256 others, by the last byte of their digest

_encoder = functools.cache(DocumentEncoder)  # building a fast tokenizer takes longer than a small part does


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
    documents: DocumentOptions


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
    """Of one split: documents, their UTF-8 bytes, their tokens with all special ones, windows, the tokens no window
    holds, and how many of the documents have their middle last.
    """

    documents: int = 0
    tokens: int = 0
    windows: int = 0
    bytes: int = 0
    tail_tokens: int = 0
    fim_documents: int = 0

    def add(self, other: "SplitCounts") -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class PartResult:
    """What a part came to; `tally` and `samples` are for report.json.

    `shares` has the documents, bytes and tokens of each source that were written, by its name.
    """

    splits: dict[str, SplitCounts] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    input_bytes: int = 0
    shares: dict[str, dict[str, int]] = field(default_factory=dict)
    tally: Tally = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)


class _SplitWriter:
    """One split of one part: gathers tokens, writes windows."""

    def __init__(self, folder: Path, options: PartOptions, *, part_index: int) -> None:
        self.counts = SplitCounts()
        self._packer = WindowPacker(options.shape)
        self._number_packer = WindowPacker(options.shape) if options.documents.ids else None
        self._pending: list[TokenArray] = []
        self._pending_tokens = 0
        self._n_packed = 0  # documents
        self._mds = MDSWriter(
            folder,
            window_length=options.shape.length,
            compression=options.compression,
            columns=[DOCUMENT_IDS, TOKENS] if options.documents.ids else [TOKENS],
        )
        self._shuffler: DocumentShuffler | None = None
        if (seed := options.documents.shuffle_seed) is not None:
            waiting = folder.with_name(f"{folder.name}.documents")
            self._shuffler = DocumentShuffler(waiting, seed=seed, part_index=part_index)

    def add(self, document: Document, encoded: Encoded) -> None:
        self.counts.documents += 1
        self.counts.bytes += len(document.utf8)
        self.counts.tokens += len(encoded.tokens)
        self.counts.fim_documents += encoded.is_filled
        if self._shuffler is not None:
            self._shuffler.add(encoded.tokens)
        else:
            self._pack(encoded.tokens)

    def finish(self) -> SplitCounts:
        for tokens in self._shuffler.documents() if self._shuffler is not None else ():
            self._pack(tokens)
        self._flush()
        self._mds.finish()
        self.counts.tail_tokens = self._packer.tail_tokens
        return self.counts

    def _pack(self, tokens: TokenArray) -> None:
        self._pending.append(tokens)
        self._pending_tokens += len(tokens)
        if self._pending_tokens >= _TOKENS_BETWEEN_FLUSHES:
            self._flush()

    def _flush(self) -> None:
        windows = self._packer.add(self._pending)
        self.counts.windows += len(windows)
        if self._number_packer is not None:
            numbers = np.arange(self._n_packed, self._n_packed + len(self._pending)).astype(np.uint16)
            numbers = np.repeat(numbers, [len(tokens) for tokens in self._pending])
            windows = np.hstack([documents_in_windows(self._number_packer.add([numbers])), windows])
        self._mds.add(windows)
        self._n_packed += len(self._pending)
        self._pending, self._pending_tokens = [], 0


def encoder_of(options: PartOptions) -> DocumentEncoder:
    """Return what encodes documents in this process, the same at every call."""
    how = options.documents
    return _encoder(options.tokenizer, engine=options.engine, ends=how.ends, fim=how.fim)


def finished_parts(parts: Sequence[Part], out: Path) -> dict[int, PartResult]:
    """Return the results of the parts that are marked as done, by index; a damaged mark is none."""
    results = {}
    for part in parts:
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
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
        encoding.WrongIdsError: a document's ids are not those of the reference.
        ChangedInputError: the input is not what was surveyed.
        BadInputError: the input holds what is no document, and that is to end the run.
    """
    staging = options.out / WORK_FOLDER / f"{part.name}.staging-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    names = SPLITS if options.val_fraction > 0 else SPLITS[:1]
    writers = {name: _SplitWriter(staging / name, options, part_index=part.index) for name in names}
    result = _fill(writers, part, options, reasons)
    result.splits = {name: writer.finish() for name, writer in writers.items()}
    for name in names:
        _publish(staging / name, options.out / name / part.name)
    staging.rmdir()
    write_json(_mark(part, options.out), asdict(result))
    return result


def _fill(writers: dict[str, _SplitWriter], part: Part, options: PartOptions, reasons: Reasons | None) -> PartResult:
    encoder = encoder_of(options)
    result = PartResult()
    n_documents = 0
    dropped: Counter[str] = Counter()
    decided = decisions(
        part.pieces, options.reading, options.filters, reasons=reasons, val_fraction=options.val_fraction
    )
    for record, reason, source in decided:
        result.input_bytes += record.input_bytes
        n_tokens = 0
        if reason is not None:
            dropped[reason] += 1
        elif isinstance(record, Document):
            document_digest = digest(record.utf8)
            is_checked = n_documents < _CHECKED_FIRST or document_digest[-1] < _CHECKED_OF_256
            is_val = is_validation(document_digest, val_fraction=options.val_fraction)
            encoded = encoder.encode(record, document_digest, may_fill=not is_val, is_checked=is_checked)
            n_documents += 1
            n_tokens = len(encoded.tokens)
            writers[SPLITS[is_val]].add(record, encoded)
            add_share(result.shares, source, documents=1, bytes=len(record.utf8), tokens=n_tokens)
        _report_on(result, record, reason, n_tokens=n_tokens, language_field=options.filters.language_field)
        report(documents=int(reason is None), input_bytes=record.input_bytes, tokens=n_tokens)
    result.dropped = dict(sorted(dropped.items()))
    return result


def _report_on(
    result: PartResult, record: Document | Dropped, reason: str | None, *, n_tokens: int, language_field: str | None
) -> None:
    row, shown, n_bytes = (
        (record.row, {"text": record.text}, len(record.utf8))
        if isinstance(record, Document)
        else ({}, {"detail": record.detail}, record.input_bytes)
    )
    language = language_of(record.source, row, field=language_field)
    count(result.tally, language=language, outcome=reason or KEPT, n_bytes=n_bytes, n_tokens=n_tokens)
    if reason is not None:
        add_sample(result.samples, rule=reason, source=record.source, **shown)


def add_share(shares: dict[str, dict[str, int]], source: str, **counts: int) -> None:
    """Add what a source came to."""
    share = shares.setdefault(source, dict.fromkeys(counts, 0))
    for name, value in counts.items():
        share[name] += value


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
