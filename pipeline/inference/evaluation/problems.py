"""Programming problems in the formats of HumanEval and MBPP: the prompt, the stop texts, and the tests.

HumanEval (Chen et al. 2021): the prompt is the head of a function, the completion is its body, and `check` tests it.
MBPP (Austin et al. 2021), zero-shot: the prompt is a docstring with the task and its first test. This is the prompt of
InCoder (Fried et al. 2022) as in the BigCode evaluation harness. The completion is a program, tested by the whole
`test_list`; challenge tests do not count. The stop texts are those of Codex and of that harness.
"""

import gzip
import json
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from common.command_line import UserError, raise_if_any

_MAX_REPORTED = 10  # mistakes of one file


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One programming problem."""

    task_id: str
    """The problem's name."""
    prompt: str
    """The text that the model continues."""
    stops: tuple[str, ...]
    """A completion ends before the first of these texts."""
    head: str
    """The text before the completion in the program: the prompt, or nothing if the prompt is only a comment."""
    checks: str
    """Code that runs after the program, and raises if the program is wrong."""


class _HumanEval(BaseModel):
    """A line of HumanEval.jsonl; other keys are ignored."""

    task_id: str
    prompt: str
    entry_point: str
    test: str

    def problem(self) -> Problem:
        return Problem(
            task_id=self.task_id,
            prompt=self.prompt,
            stops=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
            head=self.prompt,
            checks=f"{self.test}\ncheck({self.entry_point})",
        )


class _Mbpp(BaseModel):
    """A line of mbpp.jsonl, or of the sanitized version, which has `prompt` and `test_imports`."""

    task_id: int | str
    text: str = Field(validation_alias=AliasChoices("text", "prompt"))
    test_list: Annotated[list[str], Field(min_length=1)]
    test_setup_code: str = ""
    test_imports: list[str] = []

    def problem(self) -> Problem:
        return Problem(
            task_id=str(self.task_id),
            prompt=f'"""\n{self.text}\n{self.test_list[0]}\n"""\n',
            stops=("\nclass", "\nassert", '\n"""', "\nprint", "\nif"),
            head="",
            checks="\n".join([*self.test_imports, self.test_setup_code, *self.test_list]),
        )


_FORMATS: dict[str, type[_HumanEval] | type[_Mbpp]] = {"humaneval": _HumanEval, "mbpp": _Mbpp}
FORMATS = tuple(_FORMATS)


def load_problems(path: Path, *, problem_format: str | None = None) -> list[Problem]:
    """Return the problems of a .jsonl or .jsonl.gz file.

    Args:
        path: the file.
        problem_format: one of `FORMATS`; None recognises the format by the keys of the first line.

    Raises:
        UserError: the file cannot be read or is empty, a line is not a problem in that format, or a task_id repeats.
    """
    rows = _rows(path)
    if not rows:
        raise UserError(f"--problems {path} is empty; it holds one problem, a JSON object, per line")
    problem_format = problem_format or _detected(rows[0], path)
    problems, mistakes = [], []
    for number, row in enumerate(rows, start=1):
        try:
            problems.append(_FORMATS[problem_format].model_validate(row).problem())
        except ValidationError as error:
            reasons = [f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors()]
            mistakes.append(f"problem {number}: {'; '.join(reasons)}")
    raise_if_any(mistakes[:_MAX_REPORTED], heading=f"--problems {path} is not in the format {problem_format}")
    n_times = Counter(problem.task_id for problem in problems)
    repeated = [f"task_id {task_id!r} occurs {n} times" for task_id, n in n_times.items() if n > 1]
    raise_if_any(repeated[:_MAX_REPORTED], heading=f"--problems {path}")
    return problems


def _rows(path: Path) -> list[Any]:
    """Return the JSON values of the lines of a file.

    Raises:
        UserError: the file cannot be read, or a line is not JSON.
    """
    try:
        contents = path.read_bytes()
        text = (gzip.decompress(contents) if path.suffix == ".gz" else contents).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--problems {path} is not UTF-8 text ({error.reason})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"--problems {path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split at U+2028, inside strings
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"--problems {path}: line {number} is not JSON ({error})") from error
    return rows


def _detected(row: Any, path: Path) -> str:
    """Return the format that has the keys of a row.

    Raises:
        UserError: no format has them.
    """
    if isinstance(row, dict) and "entry_point" in row:
        return "humaneval"
    if isinstance(row, dict) and "test_list" in row:
        return "mbpp"
    raise UserError(
        f"--problems {path} is neither HumanEval (entry_point, test) nor MBPP (test_list): its first line has "
        f"{', '.join(row) if isinstance(row, dict) else 'no keys'}"
    )
