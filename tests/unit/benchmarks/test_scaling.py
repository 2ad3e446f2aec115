"""docs/scaling.md has the table of the plan."""

from benchmarks.scaling import table
from tests.conftest import REPOSITORY


def test_the_document_has_the_current_table() -> None:
    assert table() in (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
