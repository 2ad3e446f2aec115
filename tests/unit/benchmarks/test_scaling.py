"""docs/scaling.md is what the plan says."""

from benchmarks.scaling import table
from tests.conftest import REPOSITORY


def test_the_document_has_the_table_of_today() -> None:
    assert table() in (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
