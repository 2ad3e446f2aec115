"""Documents that contain text of a benchmark: 10 consecutive words of a problem, which is its prompt and solution.

GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C) uses 13 words; DeepSeek-Coder (Guo et al. 2024, arXiv
2401.14196) uses 10, for code. StarCoder searches for whole docstrings and solutions, which a changed indent hides. As
in GPT-3, case and punctuation are ignored. Numbers are ignored too, because lists of small numbers, frequent in
prompts, prove nothing.

Problems with fewer than 10 words cannot be found.
"""

import codecs
import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.command_line import UserError
from common.small_files import MOST_BYTES, measured_lines, open_regular_file, parse_json
from data_prep.filters.ngrams import Hashes, ngram_hashes, word_hashes, words_of
from data_prep.sources.formats.archives import GZ, ZST, DamagedError, compression_of, decompressed
from data_prep.sources.formats.json_records import BrokenArrayError, array_elements

NGRAM_WORDS = 10
_ADVICE = "give problems as JSON lines or a JSON array"
_MOST_BYTES = 256 << 20  # of a benchmark, decompressed
_HEAD_BYTES = 64
_FIELDS = ("prompt", "text", "canonical_solution", "code")  # HumanEval's and MBPP's


def load_benchmark(path: str) -> Hashes:
    """Return the hashes of a benchmark's n-grams, sorted and unique.

    Args:
        path: problems in HumanEval's format (prompt, canonical_solution) or MBPP's (text or prompt, code), as JSON
            lines or an array, compressed as .gz or .zst or not.

    Raises:
        UserError: the file cannot be read, an entry is not such a problem, or all problems are too short.
    """
    name = f"--decontaminate {path}"
    ngrams = []
    try:
        for where, problem in _problems_in(path, name=name):
            ngrams.append(_ngrams("\n".join(_texts_of(problem, where=where))))
    except (OSError, DamagedError, BrokenArrayError) as error:
        raise UserError(f"{name} cannot be read: {error}; {_ADVICE}") from error
    hashes = np.unique(np.concatenate([*ngrams, np.empty(0, dtype=np.uint64)]))
    if len(hashes) == 0:
        raise UserError(f"{name} holds no problem of {NGRAM_WORDS} words; give another file")
    return hashes


def _problems_in(path: str, *, name: str) -> Iterator[tuple[str, Any]]:
    """Yield each problem and its place in the file; a problem is in memory only while it is used."""
    with open_regular_file(Path(path), name=name) as file:
        compression = compression_of(file.read(_HEAD_BYTES))
        file.seek(0)
        if compression not in (None, GZ, ZST):
            raise UserError(f"{name} is compressed as {compression}; decompress it")
        n_bytes = 0
        content = file if compression is None else decompressed(file, compression)
        for number, (problem, size) in enumerate(_values_in(content, name=name), start=1):
            n_bytes += size
            if n_bytes > _MOST_BYTES:
                raise UserError(f"{name} has more than {_MOST_BYTES:,} bytes, which is the most; {_ADVICE}")
            if problem is not None:
                yield f"{name}:{number}", problem


def _values_in(file: io.BufferedReader, *, name: str) -> Iterator[tuple[Any, int]]:
    """Yield the values of JSON lines or of an array, each with its size in bytes; None for an empty line."""
    if file.peek(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        yield from array_elements(file)
        return
    for number, (line, size) in enumerate(measured_lines(file), start=1):
        if line is None:
            raise UserError(f"{name}:{number} has more than {MOST_BYTES:,} bytes, which is the most; {_ADVICE}")
        yield parse_json(line, name=f"{name}:{number}", finite=False) if line.strip() else None, size


def contamination(text: str, benchmarks: Sequence[str]) -> str | None:
    """Return the name of the first benchmark whose text occurs in `text`, or None.

    Args:
        text: a document.
        benchmarks: the benchmarks' paths; the name of a benchmark is its file's name without suffixes.
    """
    if not benchmarks:
        return None
    ngrams = _ngrams(text)
    for path in benchmarks:
        known = _loaded(path)
        places = np.searchsorted(known, ngrams)
        if (known[np.minimum(places, len(known) - 1)] == ngrams).any():
            return _name_of(path)
    return None


_loaded = functools.cache(load_benchmark)  # once in each worker


def _ngrams(text: str) -> Hashes:
    words = [word for word in words_of(text.lower()) if not word[0].isdigit()]
    return ngram_hashes(word_hashes(words), n=NGRAM_WORDS)


def _name_of(path: str) -> str:
    return Path(Path(path).name.removesuffix(GZ).removesuffix(ZST)).stem


def _texts_of(problem: Any, *, where: str) -> list[str]:
    texts = [problem[name] for name in _FIELDS if name in problem] if isinstance(problem, dict) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where} has no text under any of {', '.join(_FIELDS)}; {_ADVICE}")
    return texts
