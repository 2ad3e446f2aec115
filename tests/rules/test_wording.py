"""Messages have one form: why something failed stands behind a colon, as in "PATH cannot be read: REASON; ADVICE"."""

import re

from tests.conftest import REPOSITORY

CODE = [path for name in ("common", "data_prep", "pipeline") for path in sorted((REPOSITORY / name).rglob("*.py"))]
IN_BRACKETS = re.compile(
    r"\b(?:cannot|could not) be [a-z]+ \((?:\{|%|[A-Z])"  # X cannot be read ({error.strerror})
    r"|\S \(\{[^{}]*(?:error|reason|failure|damage|why)\b[^{}]*\}\)"  # X is damaged ({error})
)


def test_the_reason_of_a_failure_stands_behind_a_colon() -> None:
    lines = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in CODE
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if IN_BRACKETS.search(line)
    ]
    assert lines == []
