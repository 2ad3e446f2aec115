"""Programming problems in the formats of HumanEval and MBPP: the prompt, the stop texts, and the tests.

HumanEval (Chen et al. 2021): the prompt is the head of a function, the completion is its body, and `check` tests it.
HumanEval+ of the Hub (Liu et al. 2023) has the same keys and more tests.
MBPP (Austin et al. 2021), zero-shot: the prompt is a docstring with the task and its first test. This is the prompt of
InCoder (Fried et al. 2022) as in the BigCode evaluation harness. The completion is a program, tested by the whole
`test_list`; challenge tests do not count. MBPP+ of the Hub has a program `test` instead, with many inputs and results.
The stop texts are those of Codex and of that harness.

Files of other benchmarks that look alike are refused by name, because their scores would mean nothing.
"""

import gzip
import io
import keyword
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BaseModel, Field, ValidationError

from common.command_line import UserError, raise_if_any
from common.small_files import parse_json, read_small_file

_MAX_REPORTED = 10  # mistakes of one file
_MOST_BYTES = 256 << 20
_NUMPY = re.compile(r"^\s*(?:import|from)\s+numpy\b", re.MULTILINE)


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
    reference: str | None
    """A completion that is right, if the file has one."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages beside the standard library that the problem itself imports."""
        return ("numpy",) if any(map(_NUMPY.search, (self.head, self.checks))) else ()


def _source(text: str) -> str:
    if "\0" in text:
        raise ValueError("it holds a NUL character, which no Python source may")
    return text


def _name(text: str) -> str:
    if not text.isidentifier() or keyword.iskeyword(text):
        raise ValueError(f"{text[:60]!r} is not the name of a function")
    return text


Source = Annotated[str, AfterValidator(_source)]


class _HumanEval(BaseModel):
    """A line of HumanEval.jsonl, or of HumanEval+; other keys are ignored."""

    task_id: str
    prompt: Source
    entry_point: Annotated[str, AfterValidator(_name)]
    test: Source
    canonical_solution: Source | None = None

    def problem(self) -> Problem:
        return Problem(
            task_id=self.task_id,
            prompt=self.prompt,
            stops=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
            head=self.prompt,
            checks=f"{self.test}\ncheck({self.entry_point})",
            reference=self.canonical_solution,
        )


class _Mbpp(BaseModel):
    """A line of mbpp.jsonl, or of the sanitized version, which has `prompt` and `test_imports`."""

    task_id: int | str
    text: Source = Field(validation_alias=AliasChoices("text", "prompt"))
    test_list: Annotated[list[Source], Field(min_length=1)]
    test_setup_code: Source = ""
    test_imports: list[Source] = []
    code: Source | None = None

    def problem(self) -> Problem:
        return Problem(
            task_id=str(self.task_id),
            prompt=f'"""\n{self.text}\n{self.test_list[0]}\n"""\n',
            stops=("\nclass", "\nassert", '\n"""', "\nprint", "\nif"),
            head="",
            checks=self._checks(),
            reference=self.code,
        )

    def _checks(self) -> str:
        return "\n".join([*self.test_imports, self.test_setup_code, *self.test_list])


class _MbppPlus(_Mbpp):
    """A line of MBPP+ as the Hub has it: `test` is the program that counts."""

    test: Source

    def _checks(self) -> str:
        return "\n".join([*self.test_imports, self.test_setup_code, self.test])


_FORMATS: dict[str, type[_HumanEval] | type[_Mbpp]] = {"humaneval": _HumanEval, "mbpp": _Mbpp, "mbppplus": _MbppPlus}
FORMATS = tuple(_FORMATS)
_KEYS = {  # a row is in a format if it has all of the first keys and none of the second
    "humaneval": ({"entry_point", "test"}, set()),
    "mbpp": ({"test_list"}, {"test"}),
    "mbppplus": ({"test_list", "test"}, set()),
}
_FOREIGN = (  # keys that only another benchmark has
    ({"plus_input"}, "evalplus's own file, whose inputs only evalplus runs; use the Hub's humanevalplus or mbppplus"),
    ({"buggy_solution"}, "HumanEvalPack, whose languages are not only Python; use HumanEval"),
    ({"declaration"}, "HumanEval-X or HumanEvalPack, whose languages are not only Python; use HumanEval"),
    ({"stop_tokens", "tests"}, "MultiPL-E, whose languages are not Python; use HumanEval or MBPP"),
    ({"complete_prompt"}, "BigCodeBench, whose tests are unittest's and need many packages; use HumanEval or MBPP"),
    ({"input_output"}, "APPS, whose programs read standard input; use HumanEval or MBPP"),
)


def load_problems(path: Path, *, problem_format: str | None = None) -> list[Problem]:
    """Return the problems of a file: one JSON object per line, or one JSON array, also compressed (.gz).

    Args:
        path: the file.
        problem_format: one of `FORMATS`; None recognises the format by the keys of the first problem.

    Raises:
        UserError: the file cannot be read or is empty, it is another benchmark's, its format is in doubt, an entry is
            not a problem in that format, or a task_id repeats.
    """
    rows = _rows(path)
    if not rows:
        raise UserError(f"--problems {path} is empty; it holds one problem, a JSON object, per line")
    for row in rows:
        _refuse_foreign(row, path)
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
    """Return the JSON values of the lines of a file, or of its array.

    Raises:
        UserError: the file cannot be read, or is not JSON.
    """
    contents = read_small_file(path, what="--problems", most_bytes=_MOST_BYTES)
    try:
        if path.suffix == ".gz":
            contents = gzip.GzipFile(fileobj=io.BytesIO(contents)).read(_MOST_BYTES + 1)
            if len(contents) > _MOST_BYTES:
                raise UserError(f"--problems {path} cannot be read: it unpacks to more than {_MOST_BYTES:,} bytes")
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"--problems {path} is not UTF-8 text: {error.reason}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"--problems {path} cannot be read: {error}") from error
    if text.lstrip().startswith("["):
        return list(parse_json(text.encode(), name=f"--problems {path}"))
    lines = enumerate(text.split("\n"), start=1)  # splitlines would also split at U+2028, inside strings
    return [
        parse_json(line.encode(), name=f"--problems {path}: line {number}", finite=False)
        for number, line in lines
        if line.strip()
    ]


def _refuse_foreign(row: Any, path: Path) -> None:
    """Refuse a row of a benchmark that only looks like one of the formats.

    Raises:
        UserError: names the benchmark, or the language of the row.
    """
    if not isinstance(row, dict):
        return
    for keys, name in _FOREIGN:
        if keys <= row.keys():
            raise UserError(f"--problems {path} is a file of {name}")
    language = str(row.get("language") or "python")
    if not language.lower().startswith(("python", "py")):
        raise UserError(f"--problems {path}: the problems are in {language[:40]!r}; programs are run as Python")


def _detected(row: Any, path: Path) -> str:
    """Return the only format that has the keys of a row.

    Raises:
        UserError: no format has them, or more than one.
    """
    keys = set(row) if isinstance(row, dict) else set()
    fitting = [name for name, (has, lacks) in _KEYS.items() if has <= keys and not lacks & keys]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(f"--problems {path} could be {' or '.join(fitting)}; say which it is with --format")
    raise UserError(
        f"--problems {path} is neither HumanEval (entry_point, test) nor MBPP (test_list): its first line has "
        f"{', '.join(map(str, row)) if isinstance(row, dict) else 'no keys'}"
    )
