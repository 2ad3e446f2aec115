"""A corpus of real code: the files of the installed packages and of Python itself, in an order that depends on paths.

If the files are smaller than the size asked for, they are repeated, and the corpus reports how often.
"""

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.command_line import UserError
from data_prep.shards.parts import Part
from data_prep.sources.listing import list_source

EXTENSIONS = (".c", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".js", ".py", ".pyi", ".pyx", ".rs")
LARGEST_FILE = 2_000_000
MB = 1e6


@dataclass(frozen=True)
class Corpus:
    """A folder of source files. `times` is how often the installed code was used, counting a partial use as one."""

    folder: Path
    n_bytes: int
    n_files: int
    times: int

    def __str__(self) -> str:
        again = f", the installed code {self.times} times over" if self.times > 1 else ""
        return f"{self.n_bytes / MB:.0f} MB of code in {self.n_files:,} files{again}"

    def part(self) -> Part:
        """Return the whole corpus as one part."""
        return Part(0, list_source(str(self.folder), extensions=EXTENSIONS).pieces)


def copy_corpus(folder: Path, *, n_bytes: int) -> Corpus:
    """Create `folder` and copy source files into it until they have `n_bytes`.

    Raises:
        UserError: no source code is installed.
    """
    paths = sorted(_installed(), key=lambda path: hashlib.sha256(path.encode()).digest())
    if not paths:
        raise UserError("there is no corpus to measure with: no source code is installed beside Python")
    folder.mkdir()
    total = n_files = times = 0
    for number, path in enumerate(itertools.cycle(paths)):
        if total >= n_bytes:
            break
        times = number // len(paths) + 1
        shutil.copyfile(path, folder / f"{number:07}{Path(path).suffix}")
        total += os.path.getsize(path)
        n_files += 1
    return Corpus(folder, total, n_files, times)


def _installed() -> Iterator[str]:
    for root in (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")):
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = [name for name in subfolders if name not in ("site-packages", "__pycache__")]
            for name in names:
                path = os.path.join(folder, name)
                is_code = name.endswith(EXTENSIONS) and os.path.isfile(path) and not os.path.islink(path)
                if is_code and 0 < os.path.getsize(path) <= LARGEST_FILE:
                    yield path


def write_jsonl(corpus: Corpus, path: Path) -> None:
    """Write the corpus as jsonl, one line per file."""
    with path.open("w", encoding="utf-8") as file:
        for text in texts_of(corpus):
            file.write(json.dumps({"text": text}) + "\n")


def write_parquet(corpus: Corpus, path: Path) -> None:
    """Write the corpus as Parquet in the layout of The Stack: compressed row groups of 1,000 files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("text", pa.string())])
    texts = texts_of(corpus)
    with pq.ParquetWriter(path, schema, compression="snappy") as writer:
        while batch := list(itertools.islice(texts, 1000)):
            writer.write_table(pa.table({"text": batch}, schema=schema))


def texts_of(corpus: Corpus) -> Iterator[str]:
    """Yield the text of each file that holds text."""
    for piece in corpus.part().pieces:
        data = Path(piece.path).read_bytes()
        try:
            if data and b"\0" not in data:
                yield data.decode()
        except UnicodeDecodeError:
            continue


def train_tokenizer(corpus: Corpus, model: Path) -> None:
    """Train a SentencePiece model with the real command."""
    words = ["--input", corpus.folder, "--extensions", *EXTENSIONS, "--output", model, "--num_threads", 1]
    words += ["--vocab_size", 32000 if corpus.n_bytes > 20 * MB else 1000]
    run = [sys.executable, "-m", "data_prep.train_tokenizer", *map(str, words)]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
