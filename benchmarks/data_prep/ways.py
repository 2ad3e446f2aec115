"""Ways from text to tokens on disk, each on one core in this process, with empty caches and without loading time.

gigatoken, sentencepiece, bytes   a part as `write_shards` writes it, with each engine
foundry                           the way that LLM Foundry's convert_text_to_mds documents: HF's tokenizers in batches,
                                  ids concatenated in a list, streaming's MDSWriter, one window at a time
megatron                          one worker of Megatron-LM's preprocess_data with SentencePiece: jsonl line by line,
                                  the ids of each text and an end of document to a .bin file as one array, lengths and
                                  offsets to an .idx file
datatrove                         texts of jsonl through datatrove's own DocumentTokenizer, unshuffled: HF's tokenizers
                                  in batches, the ids of each document to a file
floor                             reading the same files, and writing as many bytes as the shards of bytes have
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
from common.sentencepieces.fast_tokens import tokenizer_json
from common.sentencepieces.sentencepiece_model import parsed
from common.tokenizers import Engine
from data_prep.filters.options import FilterOptions
from data_prep.shards import part_writer
from data_prep.shards.parts import WORK_FOLDER, PartOptions
from data_prep.sources.documents import ReadOptions
from data_prep.tokens.options import DocumentOptions
from data_prep.tokens.packing import WindowShape

SHAPE = WindowShape(4096, 8)
_FOUNDRY_BATCH = 1000  # documents; the default batch of `datasets.map`


@dataclass(frozen=True)
class Pass:
    """One pass over a corpus: CPU seconds of all threads, wall seconds, bytes of text, and tokens."""

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
    """Measures a pass from the creation of the clock."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def measured(self, *, n_bytes: int, n_tokens: int) -> Pass:
        return Pass(time.process_time() - self._cpu, time.perf_counter() - self._wall, n_bytes, n_tokens)


def ours(corpus: Corpus, out: Path, *, tokenizer: str, engine: Engine) -> Pass:
    """Write a part as a worker of write_shards does."""
    options = PartOptions(out, tokenizer, engine, ReadOptions(), SHAPE, 0.0, None, FilterOptions(), DocumentOptions())
    (out / WORK_FOLDER).mkdir(parents=True)
    part = corpus.part()
    part_writer._encoder.cache_clear()
    part_writer.encoder_of(options)
    clock = _Clock()
    counts = part_writer.write_part(part, options, None).splits["train"]
    return clock.measured(n_bytes=counts.bytes, n_tokens=counts.tokens)


def foundry(corpus: Corpus, out: Path, *, model: Path) -> Pass:
    """Write the corpus the way that LLM Foundry documents, on one thread."""
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


def megatron(jsonl: Path, out: Path, *, model: Path) -> Pass:
    """Write jsonl the way Megatron-LM's preprocess_data does."""
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


def datatrove(jsonl: Path, out: Path, *, model: Path) -> Pass:
    """Write jsonl with datatrove's DocumentTokenizer, on one thread.

    The lines are read here, because datatrove's reader of jsonl needs another package.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer

    out.mkdir()
    proto = parsed(model.read_bytes())
    tokenizer = out / "tokenizer.json"
    tokenizer.write_text(json.dumps(tokenizer_json(proto)))
    eos = proto.pieces[proto.trainer_spec.eos_id].piece
    step = DocumentTokenizer(str(out / "ids"), str(tokenizer), eos_token=eos, shuffle_documents=False)
    assert step.token_size == np.dtype(np.uint16).itemsize  # this also loads the tokenizer
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


def floor(corpus: Corpus, out: Path) -> Pass:
    """Read the corpus, write twice its bytes, which is the size of the shards of bytes, and flush them to disk."""
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
