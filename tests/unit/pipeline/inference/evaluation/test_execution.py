"""Reference solutions before an evaluation: right ones pass, and problems that they contradict are refused."""

from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from pipeline.inference.evaluation.execution import check_references, execute
from pipeline.inference.evaluation.problems import load_problems
from pipeline.inference.evaluation.sandbox import Isolation, Limits
from tests.helpers.hostile import needs_namespaces
from tests.helpers.own_problems import HUMANEVAL, MBPP, SANITIZED_MBPP, write_jsonl

pytestmark = needs_namespaces
LIMITS = Limits(timeout_s=60)
PLUS = {**SANITIZED_MBPP[0], "test": "import numpy as np\nassert np.isclose(hypotenuse(5, 12), 13)"}
NUMPY = {**HUMANEVAL[0], "test": "import numpy as np\n" + HUMANEVAL[0]["test"]}


def check(path: Path, rows: list[dict[str, Any]]) -> None:
    problems = load_problems(write_jsonl(path / "p.jsonl", rows))
    check_references(problems, isolation=Isolation.FULL, limits=LIMITS, n_workers=2)


@pytest.mark.parametrize("rows", [[*HUMANEVAL, NUMPY | {"task_id": "n"}], MBPP, SANITIZED_MBPP, [PLUS]])
def test_right_references_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]]) -> None:
    check(tmp_path, rows)
    assert f"reference solutions that pass their checks: {len(rows)}\n" in capsys.readouterr().err


def test_wrong_references_are_listed(tmp_path: Path) -> None:
    rows = [HUMANEVAL[0], {**HUMANEVAL[1], "canonical_solution": HUMANEVAL[1]["wrong_solution"]}]
    with pytest.raises(UserError, match=r"1 of 2 reference solutions .*: Own/1: failed \(ValueError"):
        check(tmp_path, rows)


def test_a_wrong_solution_fails_the_program_of_mbppplus(tmp_path: Path) -> None:
    wrong = {**PLUS, "code": "def hypotenuse(a, b):\n    return 5"}  # passes test_list, not test
    (problem,) = load_problems(write_jsonl(tmp_path / "p.jsonl", [wrong]))
    assert execute(problem, wrong["code"], isolation=Isolation.FULL, limits=LIMITS).outcome == "failed"


def test_problems_without_references_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(tmp_path, [{key: value for key, value in HUMANEVAL[0].items() if key != "canonical_solution"}])
    assert capsys.readouterr().err == "problems without a reference solution, whose checks are not checked: 1\n"
