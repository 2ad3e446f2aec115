"""Documents that contain text of a benchmark: 10 consecutive words of a problem, which is its prompt and solution.

GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C) uses 13 words; DeepSeek-Coder (Guo et al. 2024, arXiv
2401.14196) uses 10, for code. StarCoder searches for whole docstrings and solutions, which a changed indent hides. As
in GPT-3, case and punctuation are ignored. Numbers are ignored too, because lists of small numbers, frequent in
prompts, prove nothing.

Problems with fewer than 10 words cannot be found.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.command_line import UserError
from data_prep.filters.ngrams import Hashes, ngram_hashes, word_hashes, words_of

NGRAM_WORDS = 10
_FIELDS = ("prompt", "text", "canonical_solution", "code")  # HumanEval's and MBPP's


def load_benchmark(path: str) -> Hashes:
    """Return the hashes of a benchmark's n-grams, sorted and unique.

    Args:
        path: jsonl of problems in HumanEval's format (prompt, canonical_solution) or MBPP's (text or prompt, code).

    Raises:
        UserError: the file cannot be read, a line is not such a problem, or all problems are too short.
    """
    ngrams = []
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--decontaminate {path} cannot be read ({error}); give jsonl of problems") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            ngrams.append(_ngrams("\n".join(_texts_of(line, where=f"{path}:{number}"))))
    hashes = np.unique(np.concatenate([*ngrams, np.empty(0, dtype=np.uint64)]))
    if len(hashes) == 0:
        raise UserError(f"--decontaminate {path} holds no problem of {NGRAM_WORDS} words; give another file")
    return hashes


def contamination(text: str, benchmarks: Sequence[str]) -> str | None:
    """Return the name of the first benchmark whose text occurs in `text`, or None.

    Args:
        text: a document.
        benchmarks: the benchmarks' paths; the name of a benchmark is its file's name without suffix.
    """
    if not benchmarks:
        return None
    ngrams = _ngrams(text)
    for path in benchmarks:
        known = _loaded(path)
        places = np.searchsorted(known, ngrams)
        if (known[np.minimum(places, len(known) - 1)] == ngrams).any():
            return Path(path).stem
    return None


_loaded = functools.cache(load_benchmark)  # once in each worker


def _ngrams(text: str) -> Hashes:
    words = [word for word in words_of(text.lower()) if not word[0].isdigit()]
    return ngram_hashes(word_hashes(words), n=NGRAM_WORDS)


def _texts_of(line: str, *, where: str) -> list[str]:
    try:
        problem: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--decontaminate {where} is not JSON ({error}); give jsonl of problems") from error
    texts = [problem[name] for name in _FIELDS if name in problem] if isinstance(problem, dict) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"--decontaminate {where} has no text under any of {', '.join(_FIELDS)}; give jsonl of problems"
        )
    return texts
