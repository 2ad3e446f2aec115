"""Evaluations of a tiny model with the whole command: counts, kills and continuations, refusals."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.command_line import UserError
from common.tokenizers import ByteTokenizer
from pipeline import evaluate
from pipeline.inference.decoding.text import cut_at_stop
from pipeline.inference.evaluation.problems import load_problems
from pipeline.inference.evaluation.sandbox import Isolation, Limits, run_program
from tests.conftest import REPOSITORY, run_module
from tests.helpers.exports import exported
from tests.helpers.held import Hold, wait_until
from tests.helpers.hostile import needs_namespaces
from tests.helpers.own_problems import HUMANEVAL, MBPP, SANITIZED_MBPP, write_jsonl
from tests.helpers.references import naive_greedy, tiny_model
from tests.helpers.scripted import scripted_model

pytestmark = needs_namespaces

# The completion is a comment until the model writes a line end, or a byte that is not allowed in source code.
EASY = [
    {
        "task_id": f"Easy/{number}",
        "prompt": f"def number():\n    return {number}  #",
        "entry_point": "number",
        "test": f"def check(candidate):\n    assert candidate() == {number}\n",
    }
    for number in range(3)
]
IMPOSSIBLE = {**EASY[0], "task_id": "Impossible", "test": "def check(candidate):\n    assert candidate() == 1\n"}


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random byte-level model with four heads."""
    return exported(tmp_path_factory.mktemp("models") / "bytes_4", tiny_model(vocab_size=ByteTokenizer.vocab_size))


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("problems") / "easy.jsonl", [*EASY, IMPOSSIBLE])


@pytest.fixture
def command(ckpt_dir: Path, problems: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Return the arguments of a fast evaluation; later flags override earlier ones."""

    def with_flags(*flags: object) -> list[str]:
        usual = ["--ckpt_dir", ckpt_dir, "--tokenizer_path", "bytes", "--problems", problems, "--device", "cpu"]
        usual += ["--output", tmp_path / "out", "--n_samples", 6, "--k", 1, 5, "--max_gen_len", 12, "--max_seq_len", 64]
        usual += ["--max_batch_size", 5, "--num_workers", 2, "--timeout_s", 20]
        return [str(flag) for flag in (*usual, *flags)]

    return with_flags


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def by_id(path: Path) -> dict[tuple[str, float, int], dict[str, Any]]:
    rows = lines(path)
    found = {(row["task_id"], row["temperature"], row["number"]): row for row in rows}
    assert len(found) == len(rows)  # no completion occurs twice
    return found


@pytest.mark.parametrize(
    ("rows", "right", "wrong"),
    [
        (HUMANEVAL, "canonical_solution", "wrong_solution"),
        (MBPP, "code", "wrong"),
        (SANITIZED_MBPP, "code", "wrong"),
    ],
)
def test_right_solutions_pass_and_wrong_ones_fail(
    tmp_path: Path, rows: list[dict[str, Any]], right: str, wrong: str
) -> None:
    for problem, row in zip(load_problems(write_jsonl(tmp_path / "p.jsonl", rows)), rows, strict=True):
        for solution, outcome in ((row[right], "passed"), (row[wrong], "failed"), ("", "failed")):
            for rest in ("", "\nprint(1 / 0)", "\nif True:\n  x = '''"):
                program = problem.head + cut_at_stop(solution + rest, problem.stops)
                result = run_program(program, problem.checks, isolation=Isolation.FULL, limits=Limits(timeout_s=30))
                assert result.outcome == outcome, result


def test_the_report_counts_what_was_executed(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main(command("--temperatures", 1, 0.5))
    out, err = capsys.readouterr()
    assert "isolation of generated programs: network, files, processes" in err
    completions, results = by_id(tmp_path / "out" / "samples.jsonl"), by_id(tmp_path / "out" / "results.jsonl")
    tasks = [problem["task_id"] for problem in [*EASY, IMPOSSIBLE]]
    assert set(completions) == set(results) == set(itertools.product(tasks, (0.5, 1.0), range(6)))

    report = json.loads((tmp_path / "out" / "results.json").read_text())
    for temperature in (0.5, 1.0):
        passed = {
            task: [results[task, temperature, number]["outcome"] == "passed" for number in range(6)] for task in tasks
        }
        assert report["n_passed"][str(temperature)] == {task: sum(of_task) for task, of_task in passed.items()}
        assert passed["Impossible"] == [False] * 6
        for k in (1, 5):  # by counting choices instead of with the formula
            shares = []
            for of_task in passed.values():
                choices = [any(choice) for choice in itertools.combinations(of_task, k)]
                shares.append(sum(choices) / len(choices))
            assert report["pass_at_k"][str(temperature)][str(k)] == pytest.approx(sum(shares) / len(shares))
        cut = [row["ended"] == "length" for (_, at, _), row in completions.items() if at == temperature]
        assert report["cut_by_max_gen_len"][str(temperature)] == sum(cut)
    assert 0 < report["outcomes"]["1.0"]["passed"] < 24
    best = max(report["pass_at_k"][temperature]["1"] for temperature in ("0.5", "1.0"))
    assert report["best"]["1"]["pass_at_k"] == best
    assert out.splitlines()[-1].split() == ["best", *(f"{100 * report['best'][k]['pass_at_k']:.1f}" for k in "15")]

    evaluate.main(command("--temperatures", 0.5, 1, "--k", 2))  # from the existing completions
    out, err = capsys.readouterr()
    assert "pass@2" in out
    assert "loading" not in err


@pytest.mark.parametrize("decoding", ["autoregressive", "self_speculative"])
def test_greedy_completions_are_the_models(command: Callable[..., list[str]], tmp_path: Path, decoding: str) -> None:
    evaluate.main(command("--temperatures", 0, "--n_samples", 2, "--k", 1, "--decoding", decoding))
    model = tiny_model(vocab_size=ByteTokenizer.vocab_size)
    completions = by_id(tmp_path / "out" / "samples.jsonl")
    for row in [*EASY, IMPOSSIBLE]:
        prompt_ids = [ByteTokenizer.eos_id, *row["prompt"].encode()]
        expected = naive_greedy(model, prompt_ids, n_tokens=12)
        for number in range(2):
            assert completions[row["task_id"], 0.0, number]["completion"] == ByteTokenizer().decode(expected)


@pytest.mark.parametrize("decoding", ["autoregressive", "self_speculative"])
def test_weights_too_large_for_their_logits_end_with_an_error(
    command: Callable[..., list[str]], tmp_path: Path, decoding: str
) -> None:
    model = tiny_model(vocab_size=ByteTokenizer.vocab_size)
    with torch.no_grad():
        for weight in model.heads.parameters():
            weight.fill_(1e30)
    folder = exported(tmp_path / "export", model)
    with pytest.raises(UserError, match=r"logits that are not finite in fp32, for prompt 'def number\(\)"):
        evaluate.main(command("--ckpt_dir", folder, "--decoding", decoding))


def test_a_completion_ends_at_its_stop_string(command: Callable[..., list[str]], tmp_path: Path) -> None:
    model = exported(tmp_path / "export", scripted_model(" 7\n#..."))
    right = {**EASY[0], "prompt": "def number():\n    return ", "test": "def check(f):\n    assert f() == 7"}
    wrong = {**right, "task_id": "Wrong", "test": "def check(f):\n    assert f() == 8"}
    unfinished = {**right, "task_id": "Unfinished", "prompt": "def number():\n    return 7\n\n#"}
    problems = write_jsonl(tmp_path / "p.jsonl", [right, wrong, unfinished])
    flags = ["--ckpt_dir", model, "--problems", problems, "--temperatures", 0, "--n_samples", 1, "--k", 1]
    evaluate.main(command(*flags))
    completions, results = by_id(tmp_path / "out" / "samples.jsonl"), by_id(tmp_path / "out" / "results.jsonl")
    assert [(row["completion"], row["ended"]) for row in completions.values()] == [("7", "stop")] * 2 + [
        ("." * 12, "length")
    ]
    outcomes = {task_id: row["outcome"] for (task_id, _, _), row in results.items()}
    assert outcomes == {"Easy/0": "passed", "Wrong": "failed", "Unfinished": "passed"}
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["best"]["1"]["pass_at_k"] == pytest.approx(2 / 3)
    assert report["cut_by_max_gen_len"] == {"0.0": 1}


def killed_when(log: Path, n_lines: int, *arguments: str, at: str, after: int) -> None:
    """Start the evaluation, and kill -9 it when it waits at a call and a log has `n_lines` lines."""
    hold = Hold(command="pipeline.evaluate", at=at, after=after, file=log.with_name("held"))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.held", *arguments], cwd=REPOSITORY, env={**os.environ, **hold.variables}
    )
    hold.reached(process)
    wait_until(lambda: len(lines_so_far(log)) >= n_lines, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hold.release()
    assert len(lines_so_far(log)) == n_lines


def test_a_killed_evaluation_continues_as_if_it_had_not_been_killed(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    flags = ["--n_samples", 20, "--temperatures", 0.9, "--max_gen_len", 30, "--max_batch_size", 3]
    evaluate.main(command(*flags, "--output", tmp_path / "whole"))

    out = tmp_path / "out"
    in_completions = "pipeline.inference.evaluation.completion_log:CompletionLog.add"
    killed_when(out / "samples.jsonl", 9, *command(*flags), at=in_completions, after=3)  # of 80, in batches of 3
    assert not lines_so_far(out / "results.jsonl")
    executing, alone = "pipeline.inference.evaluation.sandbox:run_program", ("--num_workers", 1)
    # the first execution checks the isolation
    killed_when(out / "results.jsonl", 4, *command(*flags, *alone), at=executing, after=5)
    assert not (out / "results.json").exists()
    done = run_module("pipeline.evaluate", *command(*flags))
    assert done.returncode == 0, done.stderr
    assert "loading" not in done.stderr
    for name in ("samples.jsonl", "results.jsonl"):
        assert by_id(out / name) == by_id(tmp_path / "whole" / name)
    assert (out / "results.json").read_text() == (tmp_path / "whole" / "results.json").read_text()


def lines_so_far(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def test_a_torn_batch_is_completed_with_the_same_draws(command: Callable[..., list[str]], tmp_path: Path) -> None:
    flags = ["--temperatures", 0.9]
    evaluate.main(command(*flags))
    out = tmp_path / "out"
    whole = {name: by_id(out / name) for name in ("samples.jsonl", "results.jsonl")}
    rows = (out / "samples.jsonl").read_bytes().splitlines(keepends=True)
    # 2 of the first batch of 5 are lost, the last line is torn
    (out / "samples.jsonl").write_bytes(b"".join([*rows[:1], *rows[3:-1], rows[-1][:40]]))
    rows = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
    (out / "results.jsonl").write_bytes(b"".join(rows[:7]) + rows[7][:1])
    evaluate.main(command(*flags))
    assert {name: by_id(out / name) for name in whole} == whole


def test_logs_of_something_else_are_refused(command: Callable[..., list[str]], tmp_path: Path) -> None:
    flags = ["--temperatures", 0.5]
    evaluate.main(command(*flags))
    for name in ("samples.jsonl", "results.jsonl"):
        path = tmp_path / "out" / name
        whole = path.read_text()
        for field, value in (("task_id", "Other/1"), ("temperature", 0.7), ("number", 6), ("number", -1)):
            path.write_text(whole + json.dumps({**json.loads(whole.splitlines()[0]), field: value}) + "\n")
            with pytest.raises(UserError, match=rf"{name} holds .*which is no completion of this evaluation"):
                evaluate.main(command(*flags))
        path.write_text(whole)


def test_wrong_reference_solutions_end_it_before_the_model_is_loaded(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {**EASY[0], "canonical_solution": "\n    return 8\n", "prompt": "def number():"}
    problems = write_jsonl(tmp_path / "p.jsonl", [row])
    flags = ["--problems", problems, "--n_samples", 1, "--k", 1, "--temperatures", 0]
    with pytest.raises(UserError, match=r"1 of 1 reference solutions .* Easy/0: failed \(AssertionError\)"):
        evaluate.main(command(*flags))
    assert "loading" not in capsys.readouterr().err
    evaluate.main(command(*flags, "--no-check_references"))


def test_other_settings_are_refused_by_name(command: Callable[..., list[str]], ckpt_dir: Path, tmp_path: Path) -> None:
    evaluate.main(command("--n_samples", 5, "--temperatures", 0.5))
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    other = ["--n_samples", 6, "--temperatures", 0.5, 0.7, "--seed", 2, "--timeout_s", 21]
    with pytest.raises(UserError, match="holds an evaluation with other settings; give another folder") as caught:
        evaluate.main(command(*other))
    assert "- n_samples was 5, and is now 6" in str(caught.value)
    assert "- temperatures was [0.5], and is now [0.5, 0.7]" in str(caught.value)
    assert str(caught.value).count("\n") == 4

    copy = tmp_path / "export"
    shutil.copytree(ckpt_dir, copy)
    flags = ["--n_samples", 5, "--temperatures", 0.5, "--ckpt_dir", copy, "--output", tmp_path / "of_copy"]
    evaluate.main(command(*flags))
    os.utime(copy / "consolidated.pth", (0, 0))  # as if it had been written again
    with pytest.raises(UserError, match=r"files was .*consolidated.pth.* and is now .*1970-01-01"):
        evaluate.main(command(*flags))
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--k", 7], "--k 7 cannot be estimated from --n_samples 6; draw at least 7"),
        (["--k", 0], "--k must be a whole number from 1 to 100,000, not 0"),
        (
            ["--n_samples", 0, "--num_workers", 0],
            r"(?s)--n_samples must be a whole number from 1.*--num_workers must be a whole number from 1",
        ),
        (["--temperatures", "0.1", "-1"], "--temperatures must be a number at least 0 .* not -1"),
        (["--temperatures", "nan"], "--temperatures must be .* not nan"),
        (["--top_p", 0], "--top_p must be a number above 0"),
        (["--timeout_s", 0], "--timeout_s must be a number above 0 and at most 86,400, not 0"),
        (["--timeout_s", "1e10"], "--timeout_s must be a number above 0 and at most 86,400, not 1e10"),
        (["--n_samples", "1e9"], "--n_samples must be a whole number from 1 to 100,000, not 1e9"),
        (
            ["--n_samples", "1e5", "--temperatures", *(str(number) for number in range(30))],
            "--n_samples 100000 for 4 problems and 30 temperatures is 12,000,000 completions; 2,000,000 is the most",
        ),
        (["--problems", "nowhere.jsonl"], "--problems nowhere.jsonl cannot be read"),
        (["--problems", "{tmp}/empty.jsonl"], "empty.jsonl is empty"),
        (["--problems", "{tmp}/twice.jsonl"], "task_id 'Easy/0' occurs 2 times"),
        (["--format", "mbpp"], "is not in the format mbpp"),
        (["--tokenizer_path", "{vocabulary}"], "has 512 ids, but the model has vocab_size 258"),
        (["--ckpt_dir", "{tmp}/nowhere"], "nowhere does not exist"),
        (["--max_gen_len", 40], r"prompt, 'Easy/0', has 30 tokens.*than --max_seq_len 64; raise --max_seq_len to 70"),
        (["--n_heads_used", 5], "--n_heads_used 5 must be 1 to 4"),
        (["--output", "{tmp}/empty.jsonl"], "empty.jsonl cannot be written"),
        (["--output", "{tmp}"], "holds 'empty.jsonl', but no evaluation"),
        (["--device", "abacus"], "--device abacus cannot be used"),
    ],
)
def test_each_mistake_is_reported(
    command: Callable[..., list[str]],
    sentencepiece_model: Path,
    tmp_path: Path,
    flags: list[object],
    message: str,
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    write_jsonl(tmp_path / "twice.jsonl", [EASY[0], EASY[0]])
    places = {"{tmp}": str(tmp_path), "{vocabulary}": str(sentencepiece_model)}
    given = [str(flag) for flag in flags]
    for place, path in places.items():
        given = [flag.replace(place, path) for flag in given]
    with pytest.raises(UserError, match=message):
        evaluate.main(command(*given))


def test_a_mistake_is_one_line_before_torch_is_imported(command: Callable[..., list[str]]) -> None:
    result = run_module("pipeline.evaluate", *command("--k", 7), PYTHONPROFILEIMPORTTIME="1")
    told = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert result.returncode == 2
    assert len(told) == 1
    assert told[0].startswith("pipeline.evaluate: error: bad arguments: --k 7 ")
    assert "| torch" not in result.stderr
