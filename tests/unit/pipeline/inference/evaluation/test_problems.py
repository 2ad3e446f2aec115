"""Problems in both formats: prompts, stop texts and checks, and one clear line for each mistake in a file."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from pipeline.inference.decoding.text import cut_at_stop
from pipeline.inference.evaluation import problems
from pipeline.inference.evaluation.problems import load_problems
from tests.helpers.own_problems import HUMANEVAL, MBPP, SANITIZED_MBPP, write_jsonl


def test_humaneval_uses_the_prompt_unchanged(tmp_path: Path) -> None:
    problems = load_problems(write_jsonl(tmp_path / "p.jsonl", HUMANEVAL))
    assert [problem.task_id for problem in problems] == ["Own/0", "Own/1", "Own/2"]
    for problem, row in zip(problems, HUMANEVAL, strict=True):
        assert problem.prompt == problem.head == row["prompt"]
        assert problem.checks == row["test"] + f"\ncheck({row['entry_point']})"


def test_mbpp_shows_one_test_but_runs_all(tmp_path: Path) -> None:
    first, second = load_problems(write_jsonl(tmp_path / "p.jsonl", MBPP))
    assert first.task_id == "601"
    assert first.prompt == (
        '"""\nWrite a function to count the vowels of a word.\nassert vowels(\'banana\') == 3\n"""\n'
    )
    assert first.head == ""
    assert "'why'" in first.checks
    assert "None" not in first.checks
    assert second.checks.index("root = Node(") < second.checks.index("assert")


def test_sanitized_mbpp_names_the_text_prompt_and_imports_for_its_tests(tmp_path: Path) -> None:
    (problem,) = load_problems(write_jsonl(tmp_path / "p.jsonl", SANITIZED_MBPP))
    assert problem.prompt.startswith('"""\nWrite a function to find the hypotenuse.\nassert math')
    assert problem.checks.startswith("import math\n")


def test_a_gzipped_file_gives_the_same_problems(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "p.jsonl", MBPP)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert load_problems(tmp_path / "p.jsonl.gz") == load_problems(plain)


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    row = {**HUMANEVAL[0], "prompt": "def f():\n    '''\u2028\x85\x0c'''\n"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\r\n\n", encoding="utf-8")
    assert load_problems(tmp_path / "p.jsonl")[0].prompt == row["prompt"]


def test_the_format_can_be_given(tmp_path: Path) -> None:
    both = {**HUMANEVAL[0], **SANITIZED_MBPP[0], "task_id": "both"}
    path = write_jsonl(tmp_path / "p.jsonl", [both])
    with pytest.raises(UserError, match="could be humaneval or mbppplus; say which it is with --format"):
        load_problems(path)
    assert "check(" in load_problems(path, problem_format="humaneval")[0].checks
    assert "check(" not in load_problems(path, problem_format="mbpp")[0].checks


@pytest.mark.parametrize(
    ("completion", "kept"),
    [
        ("    return 1\n", "    return 1\n"),
        ("    return 1\n\ndef g():\n    pass\nclass A", "    return 1\n"),
        ("    return 1\n# x\ndef g():", "    return 1"),
        ("    if x:\n        print(x)\n", "    if x:\n        print(x)\n"),
        ("def g():\n    pass\nif x:", "def g():\n    pass"),
        ("", ""),
    ],
)
def test_a_completion_ends_before_its_first_stop_string(tmp_path: Path, completion: str, kept: str) -> None:
    stops = load_problems(write_jsonl(tmp_path / "p.jsonl", HUMANEVAL))[0].stops
    assert cut_at_stop(completion, stops) == kept


def test_an_mbpp_completion_may_define_several_functions(tmp_path: Path) -> None:
    stops = load_problems(write_jsonl(tmp_path / "p.jsonl", MBPP))[0].stops
    program = "import re\n\ndef f():\n    return g()\n\ndef g():\n    return 1\n"
    assert cut_at_stop(program + '\nassert f() == 1\n"""\nNext', stops) == program
    assert cut_at_stop(program + '"""\nNext task', stops) == program[:-1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty; it holds one problem"),
        (["text"], r"neither HumanEval .* nor MBPP .*: its first line has no keys"),
        ([{"question": 1, "answer": 2}], "its first line has question, answer"),
        (
            [HUMANEVAL[0], MBPP[0]],
            r"the format humaneval: problem 2: .*entry_point: Field required; test: Field",
        ),
        ([{**MBPP[0], "test_list": []}], r"format mbpp: problem 1: test_list: List should have at least 1 item"),
        ([{**MBPP[0], "test_list": "assert"}, {**MBPP[1], "text": 3}], r"(?s)mbpp:.*1: test_list: .*2: text: .*string"),
        ([MBPP[0], MBPP[1], MBPP[0]], "task_id '601' occurs 2 times"),
    ],
)
def test_each_mistake_is_reported(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_problems(write_jsonl(tmp_path / "p.jsonl", rows))
    assert str(tmp_path / "p.jsonl") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("p.jsonl", b'{"task_id": 1}\n{"task', "line 2 is not JSON"),
        ("p.jsonl", b"caf\xe9", "is not UTF-8 text"),
        ("p.jsonl.gz", b"plain", "cannot be read: .*gzip"),
        ("p.jsonl.gz", gzip.compress(b"x" * 1000, mtime=0)[:-20], "cannot be read"),
        ("p.jsonl", None, "cannot be read: No such file"),
    ],
)
def test_unreadable_files_are_reported(tmp_path: Path, name: str, contents: bytes | None, message: str) -> None:
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    with pytest.raises(UserError, match=message):
        load_problems(tmp_path / name)


def test_mbppplus_is_tested_by_its_program(tmp_path: Path) -> None:
    row = {**SANITIZED_MBPP[0], "test": "import numpy as np\nassert np.isclose(hypotenuse(5, 12), 13)"}
    (problem,) = load_problems(write_jsonl(tmp_path / "p.jsonl", [row]))
    assert "(5, 12)" in problem.checks
    assert "(3, 4)" not in problem.checks
    assert "(3, 4)" in problem.prompt
    assert problem.packages == ("numpy",)
    assert problem.reference == row["code"]
    assert load_problems(write_jsonl(tmp_path / "p.jsonl", SANITIZED_MBPP))[0].packages == ()


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_an_array_and_a_byte_order_mark_are_read(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "sanitized-mbpp.json").write_bytes(start + json.dumps(SANITIZED_MBPP, indent=2).encode())
    lines = write_jsonl(tmp_path / "p.jsonl", SANITIZED_MBPP)
    lines.write_bytes(start + lines.read_bytes())
    assert load_problems(tmp_path / "sanitized-mbpp.json") == load_problems(lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plus_input": [[1]], "base_input": []}, "is a file of evalplus's own file"),
        ({"task_id": "JavaScript/0", "declaration": "f", "buggy_solution": ""}, "is a file of HumanEvalPack"),
        ({"task_id": "CPP/0", "declaration": "f"}, "is a file of HumanEval-X"),
        ({"complete_prompt": ""}, "is a file of BigCodeBench"),
        ({"language": "javascript"}, "the problems are in 'javascript'; programs are run as Python"),
        ({"entry_point": "f) or print(1"}, "entry_point: .* 'f. or print.1' is not the name of a function"),
        ({"entry_point": "import"}, "entry_point: .* 'import' is not the name of a function"),
        ({"test": "def check(f):\n    assert 'a\0'"}, "test: .* it holds a NUL character"),
        ({"prompt": "def f():\0"}, "prompt: .* it holds a NUL character"),
    ],
)
def test_what_only_looks_like_humaneval_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_problems(write_jsonl(tmp_path / "p.jsonl", [HUMANEVAL[0], {**HUMANEVAL[1], **changes}]))


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "_MOST_BYTES", 1 << 20)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(bytes(2 << 20)))
    with pytest.raises(UserError, match="it unpacks to more than 1,048,576 bytes"):
        load_problems(tmp_path / "p.jsonl.gz")
