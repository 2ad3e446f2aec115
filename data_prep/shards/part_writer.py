"""Writing one part of the corpus as MDS shards: the work of a worker process, which may be killed at any moment.

1. The shards of each split are written into a staging folder of this process.
2. They are flushed to disk and moved into place, with one rename for each split.
3. The times and contents of the input's pieces are noted (`changes`), and the part is marked as finished.

A killed worker leaves a staging folder, or splits without a mark. The next run writes that part again, to the same
bytes.

The token ids are compared with those of SentencePiece (`encoding`) for the first documents of every part, and for one
in 128 of all other documents, chosen by their hash.
"""

import functools
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_prep.filters.changes import save_fingerprints, times_of
from data_prep.filters.decisions import Reasons, decisions
from data_prep.filters.digests import digest, is_validation
from data_prep.shards.mds_writer import DOCUMENT_IDS, TOKENS, MDSWriter
from data_prep.shards.parts import (
    SPLITS,
    WORK_FOLDER,
    Part,
    PartOptions,
    PartResult,
    Split,
    SplitCounts,
    add_source_counts,
    fingerprints_path,
    mark_finished,
)
from data_prep.shards.tally import KEPT, add_counts, add_example
from data_prep.sources.documents import Document, Dropped
from data_prep.sources.languages import language_of
from data_prep.tokens.encoding import DocumentEncoder, Encoded
from data_prep.tokens.packing import TokenArray, WindowPacker, documents_in_windows
from data_prep.tokens.shuffling import DocumentShuffler
from data_prep.workers import count_progress

_TOKENS_BETWEEN_FLUSHES = 1 << 20
_CHECKED_FIRST = 2  # documents at the start of a part whose ids are always compared with the reference
_CHECKED_OF_256 = 2  # of 256 values of the last byte of a document's digest, those whose documents are compared

_encoder = functools.cache(DocumentEncoder)  # building a fast tokenizer takes longer than writing a small part


class _SplitWriter:
    """Writes one split of one part: collects the tokens of documents, and cuts them into windows."""

    def __init__(self, folder: Path, options: PartOptions, *, part_index: int) -> None:
        self.counts = SplitCounts()
        self._packer = WindowPacker(options.shape)
        self._index_packer = WindowPacker(options.shape) if options.documents.ids else None
        self._pending: list[TokenArray] = []
        self._pending_tokens = 0
        self._n_packed_documents = 0
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
        if self._index_packer is not None:
            first = self._n_packed_documents
            indices = np.arange(first, first + len(self._pending)).astype(np.uint16)
            indices = np.repeat(indices, [len(tokens) for tokens in self._pending])
            windows = np.hstack([documents_in_windows(self._index_packer.add([indices])), windows])
        self._mds.add(windows)
        self._n_packed_documents += len(self._pending)
        self._pending, self._pending_tokens = [], 0


def encoder_of(options: PartOptions) -> DocumentEncoder:
    """Return the encoder of documents; one process makes it once."""
    how = options.documents
    return _encoder(options.tokenizer, engine=options.engine, ends=how.ends, fim=how.fim)


def write_part(
    part: Part, options: PartOptions, reasons: Reasons | None, contents: list[int] | None = None
) -> PartResult:
    """Write one part and mark it as finished.

    Args:
        part: the part to read.
        options: the options of all parts.
        reasons: why each document of the part is dropped, from its survey; None applies the filters now.
        contents: the hashes of the pieces' contents, from the survey.

    Raises:
        encoding.WrongIdsError: a document's ids are not those of the reference.
        ChangedInputError: the input has changed since the survey, or between two readings.
        BadInputError: a record is not a document, and `options.reading` refuses such input.
    """
    staging = options.out / WORK_FOLDER / f"{part.name}.staging-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    names = SPLITS if options.val_fraction > 0 else SPLITS[:1]
    writers = {name: _SplitWriter(staging / name, options, part_index=part.index) for name in names}
    times, contents = times_of(part.pieces), [] if contents is None else contents
    result = _write_documents(writers, part, options, reasons, contents)
    result.splits = {name: writer.finish() for name, writer in writers.items()}
    for name in names:
        _publish(staging / name, options.out / name / part.name)
    staging.rmdir()
    save_fingerprints(fingerprints_path(part, options.out), times=times, contents=contents)
    mark_finished(part, options.out, result)
    return result


def _write_documents(
    writers: Mapping[Split, _SplitWriter],
    part: Part,
    options: PartOptions,
    reasons: Reasons | None,
    contents: list[int],
) -> PartResult:
    """Give each document that stays to the writer of its split; return the result without its splits."""
    encoder = encoder_of(options)
    result = PartResult()
    n_documents = 0
    dropped: Counter[str] = Counter()
    decided = decisions(
        part.pieces, options.reading, options.filters,
        reasons=reasons, contents=contents, val_fraction=options.val_fraction,
    )  # fmt: skip
    for record, reason, source in decided:
        result.input_bytes += record.input_bytes
        n_tokens = 0
        if reason is not None:
            dropped[reason] += record.documents if isinstance(record, Dropped) else 1
        elif isinstance(record, Document):
            document_digest = digest(record.utf8)
            is_checked = n_documents < _CHECKED_FIRST or document_digest[-1] < _CHECKED_OF_256
            is_val = is_validation(document_digest, val_fraction=options.val_fraction)
            encoded = encoder.encode(record, document_digest, may_fill=not is_val, is_checked=is_checked)
            n_documents += 1
            n_tokens = len(encoded.tokens)
            writers[SPLITS[is_val]].add(record, encoded)
            add_source_counts(result.sources, source, documents=1, bytes=len(record.utf8), tokens=n_tokens)
        _tally(result, record, reason, n_tokens=n_tokens, language_field=options.filters.language_field)
        count_progress(documents=int(reason is None), input_bytes=record.input_bytes, tokens=n_tokens)
    result.dropped = dict(sorted(dropped.items()))
    return result


def _tally(
    result: PartResult, record: Document | Dropped, reason: str | None, *, n_tokens: int, language_field: str | None
) -> None:
    """Count a record for report.json, and keep it as an example if it is dropped."""
    row, shown, n_bytes, n_documents = (
        (record.row, {"text": record.text}, len(record.utf8), 1)
        if isinstance(record, Document)
        else ({}, {"detail": record.detail}, record.input_bytes, record.documents)
    )
    language = language_of(record.source, row, field=language_field)
    amounts = {"n_bytes": n_bytes, "n_tokens": n_tokens, "documents": n_documents}
    add_counts(result.tally, language=language, outcome=reason or KEPT, **amounts)
    if reason is not None:
        add_example(result.examples, rule=reason, source=record.source, **shown)


def _publish(staged: Path, target: Path) -> None:
    """Flush a staged folder to disk and move it to `target`, replacing what an unmarked attempt left there."""
    for path in sorted(staged.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    staged.replace(target)
