"""Programming problems as HumanEval and MBPP publish them: what the model is shown, where it stops, what checks it.

HumanEval (Chen et al. 2021): the prompt is a function's head, the completion its body, and `check` tests the function.
MBPP (Austin et al. 2021), zero-shot: the prompt is a docstring of the task and its first test, which is InCoder's
(Fried et al. 2022) as the BigCode evaluation harness has it; the completion is a program, which the whole `test_list`
tests; challenge tests do not count. The stop strings are Codex's and that harness's.
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

_MOST_TOLD = 10  # mistakes of one file


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem.

    task_id: its name, as text.
    prompt: what the model continues.
    stops: a completion ends before the first of these.
    head: what precedes the completion in the program: the prompt, or nothing where that is a mere comment.
    checks: code that raises, run after the program, unless that is right.
    """

    task_id: str
    prompt: str
    stops: tuple[str, ...]
    head: str
    checks: str


class _HumanEval(BaseModel):
    """A line of HumanEval.jsonl; other keys do not matter."""

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
    """A line of mbpp.jsonl, or of its sanitized version, which has `prompt` and `test_imports`."""

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
    """Return the problems of a .jsonl or .jsonl.gz file, whose format is told by its first line's keys if not given.

    Raises:
        UserError: the file cannot be read or is empty, a line is no problem of that format, or two are the same.
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
            told = [f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors()]
            mistakes.append(f"problem {number}: {'; '.join(told)}")
    raise_if_any(mistakes[:_MOST_TOLD], heading=f"--problems {path} is not in the format {problem_format}")
    n_times = Counter(problem.task_id for problem in problems)
    repeated = [f"task_id {task_id!r} occurs {n} times" for task_id, n in n_times.items() if n > 1]
    raise_if_any(repeated[:_MOST_TOLD], heading=f"--problems {path}")
    return problems


def _rows(path: Path) -> list[Any]:
    """Return the JSON values of a file's lines."""
    try:
        contents = path.read_bytes()
        text = (gzip.decompress(contents) if path.suffix == ".gz" else contents).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--problems {path} is not UTF-8 text ({error.reason})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"--problems {path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would split inside strings, at U+2028
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"--problems {path}: line {number} is not JSON ({error})") from error
    return rows


def _detected(row: Any, path: Path) -> str:
    """Return the format that the keys of a row tell."""
    if isinstance(row, dict) and "entry_point" in row:
        return "humaneval"
    if isinstance(row, dict) and "test_list" in row:
        return "mbpp"
    raise UserError(
        f"--problems {path} is neither HumanEval (entry_point, test) nor MBPP (test_list): its first line has "
        f"{', '.join(row) if isinstance(row, dict) else 'no keys'}"
    )
