"""Ways from text to tokens on disk, each by one core in this process, with empty caches; loading is not counted.

gigatoken, sentencepiece, bytes   a part as `write_shards` writes it, by each engine
foundry                           HF's tokenizers in batches, ids concatenated in a list, streaming's MDSWriter, one
                                  sample at a time: what LLM Foundry's convert_text_to_mds documents
megatron                          jsonl, a line at a time, each text's ids with an end of document to a .bin file as
                                  an array of its own, lengths and offsets to an .idx file: Megatron-LM's
                                  preprocess_data, with SentencePiece, by one of its workers
datatrove                         jsonl, its texts to datatrove's own DocumentTokenizer, unshuffled: HF's tokenizers in
                                  batches, each document's ids to a file
floor                             the same files read, and as many bytes written as the shards of bytes have
"""

import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from benchmarks.data_prep.corpus import MB, Corpus, texts_of
from common.fast_tokens import tokenizer_json
from common.sentencepiece_model import parsed
from common.tokenizers import Engine
from data_prep.filters.options import FilterOptions
from data_prep.shards import part_writer
from data_prep.shards.part_writer import WORK_FOLDER, PartOptions
from data_prep.sources.documents import ReadOptions
from data_prep.tokens.options import DocumentOptions
from data_prep.tokens.packing import WindowShape

SHAPE = WindowShape(4096, 8)
_FOUNDRY_BATCH = 1000  # documents; what `datasets.map` takes at once by default


@dataclass(frozen=True)
class Measured:
    """One pass over a corpus: CPU seconds of all threads, seconds on the clock, bytes of text, and tokens."""

    cpu_s: float
    wall_s: float
    n_bytes: int
    n_tokens: int

    @property
    def mb_per_s(self) -> float:
        return self.n_bytes / MB / self.cpu_s

    @property
    def tokens_per_s(self) -> float:
        return self.n_tokens / self.cpu_s


class _Clock:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def measured(self, *, n_bytes: int, n_tokens: int) -> Measured:
        return Measured(time.process_time() - self._cpu, time.perf_counter() - self._wall, n_bytes, n_tokens)


def ours(corpus: Corpus, out: Path, *, tokenizer: str, engine: Engine) -> Measured:
    """Write a part as a worker does."""
    options = PartOptions(out, tokenizer, engine, ReadOptions(), SHAPE, 0.0, None, FilterOptions(), DocumentOptions())
    (out / WORK_FOLDER).mkdir(parents=True)
    part = corpus.part()
    part_writer._encoder.cache_clear()
    part_writer.encoder_of(options)
    clock = _Clock()
    counts = part_writer.write_part(part, options, None).splits["train"]
    return clock.measured(n_bytes=counts.bytes, n_tokens=counts.tokens)


def foundry(corpus: Corpus, out: Path, *, model: Path) -> Measured:
    """Write the corpus in the way that LLM Foundry documents, on one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    from common.mds import streaming

    proto = parsed(model.read_bytes())
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(proto)))
    texts = texts_of(corpus)
    clock = _Clock()
    n_bytes = n_tokens = 0
    buffer: list[int] = []
    with streaming.MDSWriter(
        columns={"tokens": f"ndarray:uint16:{SHAPE.seq_len}"}, out=str(out), hashes=["xxh64"]
    ) as mds:
        while batch := list(itertools.islice(texts, _FOUNDRY_BATCH)):
            n_bytes += sum(len(text.encode()) for text in batch)
            for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
                buffer += [*encoding.ids, proto.trainer_spec.eos_id]
                while len(buffer) >= SHAPE.seq_len:
                    mds.write({"tokens": np.asarray(buffer[: SHAPE.seq_len], dtype=np.uint16)})
                    buffer = buffer[SHAPE.seq_len :]
                    n_tokens += SHAPE.seq_len
    return clock.measured(n_bytes=n_bytes, n_tokens=n_tokens + len(buffer))


def megatron(jsonl: Path, out: Path, *, model: Path) -> Measured:
    """Write jsonl in the way of Megatron-LM's preprocess_data."""
    out.mkdir()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    clock = _Clock()
    n_bytes = 0
    lengths: list[int] = []
    with jsonl.open(encoding="utf-8") as lines, (out / "corpus.bin").open("wb") as file:
        for line in lines:
            text = json.loads(line)["text"]
            n_bytes += len(text.encode())
            ids = [*processor.encode(text), processor.eos_id()]
            file.write(np.array(ids, dtype=np.uint16).tobytes(order="C"))
            lengths.append(len(ids))
    sizes = np.array(lengths, dtype=np.int32)
    starts = np.cumsum(sizes, dtype=np.int64) - sizes
    (out / "corpus.idx").write_bytes(sizes.tobytes() + starts.tobytes())
    return clock.measured(n_bytes=n_bytes, n_tokens=int(sizes.sum()))


def datatrove(jsonl: Path, out: Path, *, model: Path) -> Measured:
    """Write jsonl by datatrove's DocumentTokenizer, on one thread; its own reader of jsonl needs a further package."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer

    out.mkdir()
    proto = parsed(model.read_bytes())
    tokenizer = out / "tokenizer.json"
    tokenizer.write_text(json.dumps(tokenizer_json(proto)))
    eos = proto.pieces[proto.trainer_spec.eos_id].piece
    step = DocumentTokenizer(str(out / "ids"), str(tokenizer), eos_token=eos, shuffle_documents=False)
    assert step.token_size == np.dtype(np.uint16).itemsize  # which loads the tokenizer, too
    n_bytes = 0

    def documents() -> Iterator[Document]:
        nonlocal n_bytes
        with jsonl.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                text = json.loads(line)["text"]
                n_bytes += len(text.encode())
                yield Document(text, str(number))

    clock = _Clock()
    step.run(documents(), rank=0, world_size=1)
    (written,) = (out / "ids").glob("*.ds")
    return clock.measured(n_bytes=n_bytes, n_tokens=written.stat().st_size // step.token_size)


def floor(corpus: Corpus, out: Path) -> Measured:
    """Read the corpus; write twice its bytes, as the shards of bytes have, and flush them to disk."""
    out.mkdir()
    pieces = corpus.part().pieces
    clock = _Clock()
    n_bytes = 0
    with (out / "written").open("wb", buffering=0) as file:
        for piece in pieces:
            with open(piece.path, "rb", buffering=0) as source:
                data = source.readall()
            n_bytes += len(data)
            file.write(data + data)
        os.fsync(file.fileno())
    return clock.measured(n_bytes=n_bytes, n_tokens=n_bytes)
