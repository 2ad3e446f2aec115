"""The stages of `deduplicate_corpus`: datatrove's four stages of MinHash, with our reader and writer around them.

    signatures   one task for each slice of the corpus: the MinHash signature of every document, one file for each band
    pairs        one task for each band: documents that have equal values there
    clusters     one task: documents connected by pairs form a cluster, of which one stays
    documents    one task for each slice, which reads it again, and writes the documents that stay

The steps of a stage are datatrove's, or have its interface (`PipelineStep`), so that each of its executors can run
them. Words, signatures and bands are those of `survey`. The documents are read twice, and compared by
the content of each piece, because a file that changed in between would lose the wrong ones.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from datatrove.data import Document as TroveDocument
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WhitespaceTokenizer
from pydantic import BaseModel, NonNegativeInt, ValidationError

from common.command_line import UserError
from common.files import json_text, write_json, write_text, written_whole
from common.small_files import read_json
from data_prep.dedup.survey import SHINGLE_WORDS, Signature, bands_and_size, signer
from data_prep.filters.changes import ChangedInputError
from data_prep.filters.decisions import decisions
from data_prep.filters.options import FilterOptions
from data_prep.shards.identity import shape_fault
from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions, Selection
from data_prep.sources.languages import language_of
from data_prep.workers import count_progress

PATH, LANGUAGE = "path", "language"  # keys that are added to records which do not have them
_RECORDS_AT_ONCE = 1000  # read at once from a file of signatures or pairs
_MOST_BYTES = 1 << 30  # of a task's file, which names every piece of its slice
_signer = functools.cache(signer)  # made once in each process


def minhash_config() -> MinhashConfig:
    """Return datatrove's settings with the bands of `survey`."""
    return MinhashConfig(SHINGLE_WORDS, *bands_and_size(), hash_config=HashConfig(precision=32))


def stages_of(work: Path, *, n_tasks: int, reading: ReadOptions, filters: FilterOptions) -> dict[str, Any]:
    """Return the steps and the number of tasks of each stage, by its name, in order.

    Args:
        work: folder of the files that one stage writes for the next; `write_slices` has written the slices there.
        n_tasks: number of slices of the corpus.
        reading: options for reading the slices.
        filters: filters that drop documents before duplicates are looked for.
    """
    config = minhash_config()
    reader = SourceReader(work, reading, filters)
    signatures, pairs, clusters = (str(work / name) for name in ("signatures", "pairs", "clusters"))
    return {
        "signatures": ([reader, _Signatures(signatures, config=config, language=WhitespaceTokenizer())], n_tasks),
        "pairs": (
            [MinhashDedupBuckets(signatures, pairs, config=config, lines_to_buffer=_RECORDS_AT_ONCE)],
            config.num_buckets,
        ),
        "clusters": ([MinhashDedupCluster(pairs, clusters, config=config, lines_to_buffer=_RECORDS_AT_ONCE)], 1),
        "documents": ([reader, MinhashDedupFilter(clusters), JsonlWriter(work, reading.text_field)], n_tasks),
    }


def write_slices(slices: list[list[Piece]], work: Path) -> None:
    """Write, for each task, a file with the pieces of the corpus that it reads."""
    (work / "slices").mkdir(parents=True, exist_ok=True)
    for rank, pieces in enumerate(slices):
        # not as `write_json` does it, because the names must stay as they are to be opened
        write_text(_task_file(work, "slices", rank), json.dumps([asdict(piece) for piece in pieces]))


def counts_of(work: Path, n_tasks: int) -> tuple[int, int, Counter[str]]:
    """Return the number of documents before and after deduplication, and of those dropped before it, by reason."""
    seen = [_counts(_task_file(work, "seen", rank)) for rank in range(n_tasks)]
    written = [_counts(_task_file(work, "written", rank)) for rank in range(n_tasks)]
    dropped = sum((Counter(task.dropped) for task in seen), Counter())
    return sum(task.documents for task in seen), sum(task.documents for task in written), dropped


class SourceReader(PipelineStep):
    """Yields the documents of a task's slice that no rule drops; the second reading checks that they are the same."""

    type, name = "reader", "our sources"

    def __init__(self, work: Path, reading: ReadOptions, filters: FilterOptions) -> None:
        super().__init__()
        self.work, self.reading, self.filters = work, reading, filters

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[TroveDocument]:
        pieces = [_piece(saved) for saved in _read(_task_file(self.work, "slices", rank))]
        dropped: Counter[str] = Counter()
        before = self._seen(rank)
        contents = [] if before is None else before.contents
        n_documents = 0
        for record, reason, _ in decisions(pieces, self.reading, self.filters, contents=contents) if pieces else ():
            count_progress(documents=int(reason is None), input_bytes=record.input_bytes)
            if reason is not None:
                dropped[reason] += record.documents if isinstance(record, Dropped) else 1
            elif isinstance(record, Document):
                n_documents += 1
                yield self._trove_document(record)
        self._compare_or_save(rank, _Counts(documents=n_documents, contents=contents, dropped=dropped))

    def _seen(self, rank: int) -> "_Counts | None":
        """Return what the first reading of a task's slice found; None if this is the first one."""
        path = _task_file(self.work, "seen", rank)
        return _counts(path) if path.exists() else None

    def _trove_document(self, document: Document) -> TroveDocument:
        row = {name: value for name, value in document.row.items() if name != self.reading.text_field}
        row.setdefault(PATH, document.source)
        row.setdefault(LANGUAGE, language_of(document.source, document.row, field=self.filters.language_field))
        return TroveDocument(document.text, document.source, metadata={"row": row})

    def _compare_or_save(self, rank: int, seen: "_Counts") -> None:
        path, before = _task_file(self.work, "seen", rank), self._seen(rank)
        if before is None:
            path.parent.mkdir(exist_ok=True)
            write_json(path, seen.model_dump())
        elif before != seen:
            raise ChangedInputError(
                f"the input changed while it was read: task {rank} found {before.documents} documents when it"
                f" computed their signatures, and {seen.documents}, or others, when it wrote them; leave the input"
                " unchanged, and start again with another --out"
            )


class _Signatures(MinhashDedupSignature):
    """Writes datatrove's files of signatures, with the values of `survey`; none for documents of too few words."""

    def get_shingles(self, text: str) -> Signature:
        signature = _signer()(text)[: self.num_hashes]
        return signature if signature.any() else signature[:0]

    def get_signature(self, shingles: Signature) -> list[list[int]]:
        return [band.tolist() for band in np.split(shingles, self.config.num_buckets)]


class JsonlWriter(PipelineStep):
    """Writes the documents of a task, with all fields of their records, to a file that is complete or missing."""

    type, name = "writer", "jsonl.zst"

    def __init__(self, work: Path, text_field: str) -> None:
        super().__init__()
        self.work, self.text_field = work, text_field

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        path = self.work / "documents" / f"{rank:05}.jsonl.zst"
        path.parent.mkdir(exist_ok=True)
        n_documents = 0
        with written_whole(path) as partial, zstandard.open(partial, "wt", encoding="utf-8") as file:
            for document in data:
                row = {self.text_field: document.text} | document.metadata["row"]
                file.write(json_text(row) + "\n")
                n_documents += 1
        saved = _task_file(self.work, "written", rank)
        saved.parent.mkdir(exist_ok=True)
        write_json(saved, {"documents": n_documents})


def _task_file(work: Path, kind: str, rank: int) -> Path:
    return work / kind / f"{rank:05}.json"


class _Counts(BaseModel):
    """The content of a file in which a task counts the documents that it has read, or written."""

    documents: NonNegativeInt
    contents: list[int] = []
    dropped: dict[str, NonNegativeInt] = {}


def _counts(path: Path) -> _Counts:
    """Return what a task has counted.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return _Counts.model_validate(_read(path))
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {shape_fault(error)}; start again with another --out") from error


def _read(path: Path) -> Any:
    return read_json(path, most_bytes=_MOST_BYTES)


def _piece(saved: dict[str, Any]) -> Piece:
    return Piece(**saved | {"selection": Selection(**saved["selection"]), "earlier": ()})
