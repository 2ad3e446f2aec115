"""How fast text becomes shards: tokens and bytes per second of one core, what a second worker adds, where time goes.

The corpus is real code: files of the installed packages, each once, in an order that their paths alone decide. Every
way writes the same documents to shards on the same disk, all in turns; figures are medians over the rounds.

    gigatoken, sentencepiece, bytes   a part as `write_shards` writes it, by each engine, in this process
    peer                              HF's tokenizers in batches, ids concatenated in a list, streaming's MDSWriter, one
                                      sample at a time: what LLM Foundry's convert_text_to_mds documents
    floor                             the same files read, and as many bytes written as the shards of bytes have

Each way starts with empty caches, and loading it is not counted. The two slow ways get a share of the corpus.
"""

import argparse
import hashlib
import importlib.metadata
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from benchmarks.outputs import check_json
from common import fast_tokens
from common.command_line import exit_on_user_error
from common.files import write_json
from common.tokenizers import BYTES, Engine, load_tokenizer
from data_prep import part_writer
from data_prep.document_options import DocumentOptions
from data_prep.documents import Document, ReadOptions
from data_prep.encoding import DocumentEncoder
from data_prep.filters import FilterOptions, digest, reason_to_drop
from data_prep.mds_writer import MDSWriter
from data_prep.packing import WindowPacker, WindowShape
from data_prep.part_writer import WORK_FOLDER, Part, PartOptions
from data_prep.sources import list_source

EXTENSIONS = (".c", ".cpp", ".cuh", ".h", ".hpp", ".js", ".py", ".pyi")
SHAPE = WindowShape(4096, 8)
LARGEST_FILE = 2_000_000
PEER_BATCH = 1000  # documents; what `tokenizers` calls `datasets.map` with by default
MB = 1e6
T = TypeVar("T")


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


def copy_corpus(folder: Path, *, n_bytes: int) -> int:
    """Fill `folder` with source files of the installed packages up to `n_bytes`; return how many bytes there were."""
    root = Path(sysconfig.get_path("purelib"))
    paths = [path for path in root.rglob("*") if path.suffix in EXTENSIONS and path.is_file() and not path.is_symlink()]
    paths.sort(key=lambda path: hashlib.sha256(str(path.relative_to(root)).encode()).digest())
    folder.mkdir()
    total = 0
    for number, path in enumerate(paths):
        if total >= n_bytes:
            break
        if 0 < path.stat().st_size <= LARGEST_FILE:
            shutil.copyfile(path, folder / f"{number:06}{path.suffix}")
            total += path.stat().st_size
    return total


def part_of(corpus: Path) -> Part:
    """Return the whole corpus as one part."""
    return Part(0, list_source(str(corpus), extensions=EXTENSIONS).pieces)


def ours(corpus: Path, out: Path, *, tokenizer: str, engine: Engine) -> Measured:
    """Write a part as a worker does."""
    options = PartOptions(out, tokenizer, engine, ReadOptions(), SHAPE, 0.0, None, FilterOptions(), DocumentOptions())
    (out / WORK_FOLDER).mkdir(parents=True)
    part = part_of(corpus)
    part_writer._encoder.cache_clear()
    part_writer.encoder_of(options)
    cpu, wall = time.process_time(), time.perf_counter()
    result = part_writer.write_part(part, options, None)
    counts = result.splits["train"]
    return Measured(time.process_time() - cpu, time.perf_counter() - wall, counts.bytes, counts.tokens)


def peer(corpus: Path, out: Path, *, model: Path) -> Measured:
    """Write the corpus in the way that LLM Foundry documents, on one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    from common.mds import streaming

    proto = sentencepiece_model_pb2.ModelProto.FromString(model.read_bytes())  # type: ignore[attr-defined]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(fast_tokens._tokenizer_json(proto)))
    pieces = part_of(corpus).pieces
    cpu, wall = time.process_time(), time.perf_counter()
    n_bytes = n_tokens = 0
    buffer: list[int] = []
    texts = (text for piece in pieces if (text := _text_of(Path(piece.path))))
    with streaming.MDSWriter(
        columns={"tokens": f"ndarray:uint16:{SHAPE.seq_len}"}, out=str(out), hashes=["xxh64"]
    ) as mds:
        while batch := list(itertools.islice(texts, PEER_BATCH)):
            n_bytes += sum(len(text.encode()) for text in batch)
            for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
                buffer += [*encoding.ids, proto.trainer_spec.eos_id]
                while len(buffer) >= SHAPE.seq_len:
                    mds.write({"tokens": np.asarray(buffer[: SHAPE.seq_len], dtype=np.uint16)})
                    buffer = buffer[SHAPE.seq_len :]
                    n_tokens += SHAPE.seq_len
    n_tokens += len(buffer)
    return Measured(time.process_time() - cpu, time.perf_counter() - wall, n_bytes, n_tokens)


def _text_of(path: Path) -> str:
    data = path.read_bytes()
    try:
        return "" if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return ""


def floor(corpus: Path, out: Path) -> Measured:
    """Read the corpus; write twice its bytes, as the shards of bytes have, and flush them to disk."""
    out.mkdir()
    pieces = part_of(corpus).pieces
    cpu, wall = time.process_time(), time.perf_counter()
    n_bytes = 0
    with (out / "written").open("wb", buffering=0) as file:
        for piece in pieces:
            with open(piece.path, "rb", buffering=0) as source:
                data = source.readall()
            n_bytes += len(data)
            file.write(data + data)
        os.fsync(file.fileno())
    return Measured(time.process_time() - cpu, time.perf_counter() - wall, n_bytes, n_bytes)


def command(corpus: Path, out: Path, *, model: Path, n_workers: int) -> float:
    """Run the real command; return seconds on the clock, its start included."""
    words = ["--input", corpus, "--extensions", *EXTENSIONS, "--tokenizer", model, "--out", out]
    words += ["--num_workers", n_workers, "--val_fraction", 0]
    started = time.perf_counter()
    run = [sys.executable, "-m", "data_prep.write_shards", *map(str, words)]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def stages(corpus: Path, out: Path, *, tokenizer: str, engine: Engine) -> dict[str, float]:
    """Return the CPU seconds of each stage of our way, each over all documents by itself."""
    loaded = load_tokenizer(tokenizer, engine=engine)
    encoder = DocumentEncoder(tokenizer, engine=engine, ends="eos", fim=None)
    part = part_of(corpus)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        started = time.process_time()
        result = work()
        seconds[name] = time.process_time() - started
        return result

    records = timed("read", lambda: list(part_writer.read_part(part, ReadOptions())))
    documents = [record for record in records if isinstance(record, Document)]
    timed("filter", lambda: [reason_to_drop(document, FilterOptions()) for document in documents])
    digests = timed("hash", lambda: [digest(document.utf8) for document in documents])
    arrays = timed(
        "tokenize", lambda: [encoder.encode(d, b"", may_fill=False, is_checked=False).tokens for d in documents]
    )
    checked = [d for d, of in zip(documents, digests, strict=True) if of[-1] < part_writer._CHECKED_OF_256]
    timed("check", lambda: [] if loaded.is_reference else [loaded.encode(document.text) for document in checked])
    packer = WindowPacker(SHAPE)
    shares = [arrays[i : i + 100] for i in range(0, len(arrays), 100)]
    windows = timed("pack", lambda: [packer.add(share) for share in shares])
    mds = MDSWriter(out, window_length=SHAPE.length, compression=None)

    def write() -> None:
        for share in windows:
            mds.add(share)
        mds.finish()

    timed("write", write)
    return seconds


def median_of(passes: Sequence[Measured]) -> Measured:
    """Return the pass whose CPU time is the median, the lower one of two."""
    return sorted(passes, key=lambda measured: measured.cpu_s)[(len(passes) - 1) // 2]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the JSON that was asked for.

    Raises:
        UserError: the JSON's folder does not exist.
    """
    arguments = _parse(argv)
    check_json(arguments.json)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        results = _measure(Path(scratch), arguments)
    _print(results)
    if arguments.json is not None:
        write_json(arguments.json, results)


def _measure(scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    whole, share = scratch / "whole", scratch / "share"
    n_bytes = copy_corpus(whole, n_bytes=int(arguments.megabytes * MB))
    copy_corpus(share, n_bytes=int(min(arguments.slow_megabytes, arguments.megabytes) * MB))
    model = scratch / "tokenizer.model"
    words = ["--input", share, "--extensions", *EXTENSIONS, "--output", model, "--num_threads", 1]
    run = [sys.executable, "-m", "data_prep.train_tokenizer", *map(str, words)]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ways: dict[str, Callable[[Path], Measured]] = {
        "floor": lambda out: floor(whole, out),
        "bytes": lambda out: ours(whole, out, tokenizer=BYTES, engine="sentencepiece"),
        "gigatoken": lambda out: ours(whole, out, tokenizer=str(model), engine="gigatoken"),
        "gigatoken, on the share": lambda out: ours(share, out, tokenizer=str(model), engine="gigatoken"),
        "sentencepiece, on the share": lambda out: ours(share, out, tokenizer=str(model), engine="sentencepiece"),
        "peer, on the share": lambda out: peer(share, out, model=model),
    }
    passes: dict[str, list[Measured]] = {name: [] for name in ways}
    walls: dict[int, list[float]] = {1: [], 2: []}
    out = scratch / "out"
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            passes[name].append(way(out))
            shutil.rmtree(out)
        for n_workers, seconds in walls.items():
            seconds.append(command(whole, out, model=model, n_workers=n_workers))
            shutil.rmtree(out)
    times: dict[str, dict[str, float]] = {}
    for name, tokenizer, engine in (("gigatoken", str(model), "gigatoken"), ("bytes", BYTES, "sentencepiece")):
        times[name] = stages(whole, out, tokenizer=tokenizer, engine=engine)  # type: ignore[arg-type]
        shutil.rmtree(out)
    packages = ("gigatoken", "sentencepiece", "tokenizers", "mosaicml-streaming", "numpy")
    return {
        "corpus_bytes": n_bytes,
        "rounds": arguments.rounds,
        "passes": {name: [asdict(measured) for measured in of] for name, of in passes.items()},
        "wall_s_of_the_command": {str(n_workers): seconds for n_workers, seconds in walls.items()},
        "cpu_s_of_stages": times,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _print(results: dict[str, Any]) -> None:
    print(f"{results['corpus_bytes'] / MB:.0f} MB of code, medians of {results['rounds']} rounds\n")
    print("| way | MB/s per core | million tokens/s per core | over sentencepiece |")
    print("|---|---|---|---|")
    best = {name: median_of([Measured(**one) for one in of]) for name, of in results["passes"].items()}
    base = best["sentencepiece, on the share"].mb_per_s
    for name, of in best.items():
        print(f"| {name} | {of.mb_per_s:.1f} | {of.tokens_per_s / 1e6:.2f} | {of.mb_per_s / base:.1f} |")
    one, two = (statistics.median(of) for of in results["wall_s_of_the_command"].values())
    print(f"\nthe command, gigatoken: {one:.1f} s with 1 worker, {two:.1f} s with 2: {one / two:.2f} times as fast\n")
    names = list(results["cpu_s_of_stages"]["gigatoken"])
    print(f"| share of CPU time, % | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for name, seconds in results["cpu_s_of_stages"].items():
        total = sum(seconds.values())
        print(f"| {name} | {' | '.join(f'{100 * of / total:.1f}' for of in seconds.values())} |")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_prep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--megabytes", type=float, default=200, metavar="N", help="size of the corpus (default: %(default)s)")
    share_help = "size of the share that slow ways get (default: %(default)s)"
    add("--slow_megabytes", type=float, default=40, metavar="N", help=share_help)
    add("--rounds", type=int, default=3, metavar="N", help="passes of each way, in turns (default: %(default)s)")
    add("--scratch", type=Path, metavar="DIR", help="folder for corpus and shards (default: the system's)")
    add("--json", type=Path, metavar="FILE", help="also write every figure here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.data_prep")
