"""Documents with text of a benchmark, compared with a search for the words themselves."""

import gzip
import json
import os
import re
import sysconfig
from pathlib import Path

import pytest
import zstandard

from common.command_line import UserError
from data_prep.filters import decontaminate
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
        ("7", r"b\.jsonl:1 has no text under any of prompt, text, canonical_solution, code"),
        ("[1]", r"b\.jsonl:1 has no text under any of prompt, text, canonical_solution, code"),
        ('{"prompt": 1}', r"b\.jsonl:1 has no text"),
        ('{"task_id": 1}', r"b\.jsonl:1 has no text"),
        ('{"prompt": "too short"}', r"b\.jsonl holds no problem of 10 words"),
        ("\n", r"b\.jsonl holds no problem of 10 words"),
        ("[]", r"b\.jsonl holds no problem of 10 words"),
        ('[{"prompt": "x"}', r"b\.jsonl cannot be read: an element is not followed by a comma"),
        ("\udcff", r"b\.jsonl:1 is not JSON"),
        ("BZh91AY", r"b\.jsonl is compressed as \.bz2; decompress it"),
        ("\x1f\udc8b\x08", r"b\.jsonl cannot be read: byte 3: the file ends too early"),
        ("{" * 100_000, r"b\.jsonl:1 is not JSON"),
        ('{"prompt": ' * 100_000, r"b\.jsonl:1 is nested deeper than 64 levels"),
        (None, r"b\.jsonl cannot be read"),
    ],
)
def test_a_file_that_is_not_a_benchmark_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"--decontaminate .*{message}"):
        load_benchmark(str(path))


def test_a_benchmark_is_read_in_every_form_in_which_it_is_handed_out(tmp_path: Path) -> None:
    lines = "".join(json.dumps(problem) + "\n" for problem in HUMANEVAL).encode()
    array, bom = json.dumps(HUMANEVAL, indent=2).encode(), b"\xef\xbb\xbf"
    (tmp_path / "b.jsonl").write_bytes(lines)
    expected = load_benchmark(str(tmp_path / "b.jsonl")).tolist()
    for name, data in (
        ("HumanEval.jsonl.gz", gzip.compress(lines)),
        ("HumanEval.jsonl.zst", zstandard.compress(bom + lines)),
        ("HumanEval.jsonl", bom + lines),
        ("HumanEval.json", array),
        ("HumanEval.json.gz", gzip.compress(bom + array)),
    ):
        (tmp_path / name).write_bytes(data)
        assert load_benchmark(str(tmp_path / name)).tolist() == expected
        assert contamination(HUMANEVAL[0]["prompt"], [str(tmp_path / name)]) == "HumanEval"


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(bytes(20 << 20)))
    (tmp_path / "long.jsonl.gz").write_bytes(gzip.compress(b"\n" * 5000 + b'{"prompt": "' + b"a " * 3000 + b'"}'))
    for name, message in (
        ("fifo", "it is a FIFO, not a file"),
        (".", "it is a folder, not a file"),
        ("bomb.jsonl.gz", r"bomb\.jsonl\.gz:1 has more than 16,777,216 bytes, which is the most"),
    ):
        with pytest.raises(UserError, match=message):
            load_benchmark(str(tmp_path / name))
    monkeypatch.setattr(decontaminate, "_MOST_BYTES", 9000)
    with pytest.raises(UserError, match=r"long\.jsonl\.gz has more than 9,000 bytes"):
        load_benchmark(str(tmp_path / "long.jsonl.gz"))


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    text = "one two three four five six seven\u2028eight nine ten"  # JSON may contain this line separator unescaped
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\n")
    assert contamination(text, (str(tmp_path / "b.jsonl"),)) == "b"
