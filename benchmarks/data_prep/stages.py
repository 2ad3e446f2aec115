"""The CPU time of each stage of a worker: every stage of `write_part` runs over all documents by itself."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.data_prep.corpus import Corpus
from benchmarks.data_prep.ways import SHAPE
from common.tokenizers import Engine, load_tokenizer
from data_prep.filters.digests import digest
from data_prep.filters.options import FilterOptions
from data_prep.filters.reasons import rule_broken
from data_prep.shards import part_writer
from data_prep.shards.mds_writer import MDSWriter
from data_prep.sources.documents import Document, ReadOptions
from data_prep.sources.readers import read_piece
from data_prep.tokens.encoding import DocumentEncoder
from data_prep.tokens.packing import WindowPacker

T = TypeVar("T")


def stages(corpus: Corpus, out: Path, *, tokenizer: str, engine: Engine) -> dict[str, float]:
    """Return the CPU seconds of each stage, by name."""
    loaded = load_tokenizer(tokenizer, engine=engine)
    encoder = DocumentEncoder(tokenizer, engine=engine, ends="eos", fim=None)
    part = corpus.part()
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        started = time.process_time()
        result = work()
        seconds[name] = time.process_time() - started
        return result

    records = timed("read", lambda: [record for piece in part.pieces for record in read_piece(piece, ReadOptions())])
    documents = [record for record in records if isinstance(record, Document)]
    timed("filter", lambda: [rule_broken(document, FilterOptions()) for document in documents])
    digests = timed("hash", lambda: [digest(document.utf8) for document in documents])
    arrays = timed(
        "tokenize", lambda: [encoder.encode(d, b"", may_fill=False, is_checked=False).tokens for d in documents]
    )
    checked = [d for d, of in zip(documents, digests, strict=True) if of[-1] < part_writer._CHECKED_OF_256]
    timed("check", lambda: [] if loaded.is_reference else [loaded.encode(document.text) for document in checked])
    packer = WindowPacker(SHAPE)
    batches = [arrays[i : i + 100] for i in range(0, len(arrays), 100)]
    windows = timed("pack", lambda: [packer.add(batch) for batch in batches])
    mds = MDSWriter(out, window_length=SHAPE.length, compression=None)

    def write() -> None:
        for batch in windows:
            mds.add(batch)
        mds.finish()

    timed("write", write)
    return seconds
