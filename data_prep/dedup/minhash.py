"""What `deduplicate_corpus` runs: datatrove's four stages of MinHash, between our readers and files of our own.

    signatures   a task for each share of the corpus: every document's MinHash, in one file for each band
    pairs        a task for each band: documents whose signatures are equal there
    clusters     one task: what is connected by pairs is one cluster, of which one document stays
    documents    a task for each share, which reads it again, and writes the documents that stay

Steps are datatrove's own, or blocks as it has them (`PipelineStep`), so that any of its executors can run the stages.
Signatures, words and bands are those of `deduplicate`. Documents that a task reads twice are counted and hashed, or a
file that changed in between would lose the wrong ones.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
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

from common.files import write_json, written_whole
from data_prep.dedup.survey import PERMUTATIONS, SHINGLE_WORDS, THRESHOLD, Signature, signer
from data_prep.filters.decisions import ChangedInputError, decisions
from data_prep.filters.digests import digest
from data_prep.filters.languages import language_of
from data_prep.filters.options import FilterOptions
from data_prep.sources.documents import Document, Piece, ReadOptions, Selection
from data_prep.workers import report

PATH, LANGUAGE = "path", "language"  # keys that documents get, unless their records have them
_RECORDS_AT_ONCE = 1000  # of a file of signatures or pairs
_signer = functools.cache(signer)  # once in each process


def minhash_config() -> MinhashConfig:
    """Return the bands of `deduplicate`, which datasketch chooses for its threshold."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    return MinhashConfig(SHINGLE_WORDS, index.b, index.r, hash_config=HashConfig(precision=32))


def stages_of(work: Path, *, n_tasks: int, reading: ReadOptions, filters: FilterOptions) -> dict[str, Any]:
    """Return the name of each stage, in order, with its steps and its number of tasks.

    Args:
        work: what one stage leaves for the next is kept here; `write_shares` has put the shares here before.
        n_tasks: shares of the corpus.
        reading: how they are read.
        filters: which documents are left out before any duplicate is looked for.
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


def write_shares(shares: list[list[Piece]], work: Path) -> None:
    """Keep each task's pieces of the corpus where it looks for them."""
    (work / "shares").mkdir(parents=True, exist_ok=True)
    for rank, pieces in enumerate(shares):
        write_json(_of_task(work, "shares", rank), [asdict(piece) for piece in pieces])


def counts_of(work: Path, n_tasks: int) -> tuple[int, int, Counter[str]]:
    """Return how many documents there were and how many stayed, and why others had been dropped before."""
    seen = [_read(_of_task(work, "seen", rank)) for rank in range(n_tasks)]
    written = [_read(_of_task(work, "written", rank))["documents"] for rank in range(n_tasks)]
    dropped = sum((Counter(of["dropped"]) for of in seen), Counter())
    return sum(of["documents"] for of in seen), sum(written), dropped


class SourceReader(PipelineStep):
    """Yields the documents of a task's share that no rule drops, the first time and the second."""

    type, name = "reader", "our sources"

    def __init__(self, work: Path, reading: ReadOptions, filters: FilterOptions) -> None:
        super().__init__()
        self.work, self.reading, self.filters = work, reading, filters

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[TroveDocument]:
        pieces = [_piece(saved) for saved in _read(_of_task(self.work, "shares", rank))]
        dropped: Counter[str] = Counter()
        content = xxhash.xxh3_64()
        n_documents = 0
        for record, reason, _ in decisions(pieces, self.reading, self.filters) if pieces else ():
            report(documents=int(reason is None), input_bytes=record.input_bytes)
            if reason is not None:
                dropped[reason] += 1
            elif isinstance(record, Document):
                n_documents += 1
                content.update(digest(record.utf8))
                yield self._trove_document(record)
        self._remember(rank, {"documents": n_documents, "content": content.hexdigest(), "dropped": dropped})

    def _trove_document(self, document: Document) -> TroveDocument:
        row = {name: value for name, value in document.row.items() if name != self.reading.text_field}
        row.setdefault(PATH, document.source)
        row.setdefault(LANGUAGE, language_of(document.source, document.row, field=self.filters.language_field))
        return TroveDocument(document.text, document.source, metadata={"row": row})

    def _remember(self, rank: int, seen: dict[str, Any]) -> None:
        path = _of_task(self.work, "seen", rank)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_json(path, seen)
        elif (before := _read(path)) != seen:
            raise ChangedInputError(
                f"the input changed while it was read: share {rank} had {before['documents']} documents when their"
                f" signatures were made, and has {seen['documents']} now, or others; leave the input alone, and start"
                " again with another --out"
            )


class _Signatures(MinhashDedupSignature):
    """datatrove's files of signatures, with the values that `deduplicate` computes; few words have none."""

    def get_shingles(self, text: str) -> Signature:
        signature = _signer()(text)[: self.num_hashes]
        return signature if signature.any() else signature[:0]

    def get_signature(self, shingles: Signature) -> list[list[int]]:
        return [band.tolist() for band in np.split(shingles, self.config.num_buckets)]


class JsonlWriter(PipelineStep):
    """Writes a task's documents with all that their records said, as a file that is whole or not there."""

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
                # what JSON has no type for, as Parquet's times, becomes a text
                row = {self.text_field: document.text} | document.metadata["row"]
                file.write(json.dumps(row, default=str) + "\n")
                n_documents += 1
        saved = _of_task(self.work, "written", rank)
        saved.parent.mkdir(exist_ok=True)
        write_json(saved, {"documents": n_documents})


def _of_task(work: Path, what: str, rank: int) -> Path:
    return work / what / f"{rank:05}.json"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _piece(saved: dict[str, Any]) -> Piece:
    selection = Selection(**saved["selection"])
    return Piece(**saved | {"selection": selection})
