"""Documents with text of a benchmark, compared with a search for the words themselves."""

import json
import re
import sysconfig
from pathlib import Path

import pytest

from common.command_line import UserError
from data_prep.filters.decontaminate import contamination, load_benchmark
from data_prep.filters.ngrams import ngram_hashes, word_hashes, words_of
from tests.helpers.own_problems import HUMANEVAL, MBPP, SANITIZED_MBPP, write_jsonl

STDLIB = Path(sysconfig.get_path("stdlib"))
CODE = (STDLIB / "json" / "decoder.py").read_text()


@pytest.fixture
def benchmarks(tmp_path: Path) -> tuple[str, ...]:
    humaneval = write_jsonl(tmp_path / "humaneval.jsonl", HUMANEVAL)
    mbpp = write_jsonl(tmp_path / "mbpp.jsonl", MBPP + SANITIZED_MBPP)
    return str(humaneval), str(mbpp)


@pytest.mark.parametrize("problem", HUMANEVAL + MBPP + SANITIZED_MBPP, ids=lambda problem: str(problem["task_id"]))
def test_a_problem_inside_a_larger_file_is_found(problem: dict[str, str], benchmarks: tuple[str, ...]) -> None:
    prompt = problem.get("prompt", problem.get("text", ""))
    solution = problem.get("canonical_solution") or "\n" + problem["code"]
    expected = "humaneval" if "canonical_solution" in problem else "mbpp"
    text = CODE + prompt + solution + CODE
    assert contamination(text, benchmarks) == expected
    indented = CODE + re.sub("^", "\t", (prompt + solution).upper(), flags=re.MULTILINE)
    assert contamination(indented, benchmarks) == expected
    assert contamination(CODE, benchmarks) is None


def test_ten_consecutive_words_are_needed(benchmarks: tuple[str, ...]) -> None:
    words = re.findall(r"[^\W\d]\w*", HUMANEVAL[0]["prompt"])
    assert contamination(" ".join(words[3:13]), benchmarks) == "humaneval"
    assert contamination(" ".join([*words[3:12], "other", *words[12:21]]), benchmarks) is None
    assert contamination(", 5: ".join(words[3:13]), benchmarks) == "humaneval"
    assert contamination(" ".join(reversed(words)), benchmarks) is None
    assert contamination("", benchmarks) is None
    assert contamination(" ".join(words), ()) is None


def test_the_standard_library_gives_what_a_search_gives(benchmarks: tuple[str, ...]) -> None:
    needles = set()
    for problem in HUMANEVAL + MBPP + SANITIZED_MBPP:
        fields = [problem.get(name, "") for name in ("prompt", "text", "canonical_solution", "code")]
        words = [word for word in re.findall(r"\w+", "\n".join(fields).lower()) if not word[0].isdigit()]
        needles |= {f" {' '.join(words[i : i + 10])} " for i in range(len(words) - 9)}
    for path in sorted((STDLIB / "email").glob("*.py")):
        text = path.read_text()
        words = [word for word in re.findall(r"\w+", text.lower()) if not word[0].isdigit()]
        joined = f" {' '.join(words)} "
        found = any(needle in joined for needle in needles)
        assert (contamination(text, benchmarks) is not None) == found


def test_ngrams_depend_on_the_order_of_words() -> None:
    words = words_of("a b c a b, c(a_b) é1")
    assert words == ["a", "b", "c", "a", "b", "c", "a_b", "é1"]
    hashes = ngram_hashes(word_hashes(words), n=3)
    assert len(hashes) == 6
    assert hashes[0] == hashes[3]
    assert len(set(hashes.tolist())) == 5
    assert len(ngram_hashes(word_hashes(words), n=9)) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "x"}\n{"promp', r"b\.jsonl:2 is not JSON"),
        ("[1]", r"b\.jsonl:1 has no text under any of prompt, text, canonical_solution, code"),
        ('{"prompt": 1}', r"b\.jsonl:1 has no text"),
        ('{"task_id": 1}', r"b\.jsonl:1 has no text"),
        ('{"prompt": "too short"}', r"b\.jsonl holds no problem of 10 words"),
        ("\n", r"b\.jsonl holds no problem of 10 words"),
        ("\udcff", r"b\.jsonl cannot be read"),
        (None, r"b\.jsonl cannot be read"),
    ],
)
def test_a_file_that_is_not_a_benchmark_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        load_benchmark(str(path))


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    text = "one two three four five six seven\u2028eight nine ten"  # JSON may contain this line separator unescaped
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\n")
    assert contamination(text, (str(tmp_path / "b.jsonl"),)) == "b"
