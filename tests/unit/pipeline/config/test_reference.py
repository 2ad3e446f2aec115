"""The reference pages are what the code says, and name every field and key."""

import pytest

from pipeline.config.deepspeed_keys import rows
from pipeline.config.reference import DOCS, deepspeed_page, entries, field_list, recipe_page
from pipeline.config.schema import Config
from tests.conftest import run_module

RENEW = "renew it: .venv/bin/python -c 'from pipeline.config.reference import write_pages; write_pages()'"


def test_the_pages_are_what_the_code_says() -> None:
    assert (DOCS / "recipe.md").read_text(encoding="utf-8") == recipe_page(), RENEW
    assert (DOCS / "deepspeed_json.md").read_text(encoding="utf-8") == deepspeed_page(), RENEW


@pytest.mark.parametrize("section", list(Config().as_dict()))
def test_every_field_has_a_meaning_and_a_range(section: str) -> None:
    found = list(entries(section))
    assert [entry.name for entry in found] == [f"{section}.{name}" for name in Config().as_dict()[section]]
    for entry in found:
        assert entry.meaning.endswith((".", ")")), entry.name
        assert entry.accepts
        assert f"`{entry.name}`" in recipe_page()
        assert entry.name in field_list()


def test_every_key_of_the_json_is_on_its_page() -> None:
    page = deepspeed_page()
    assert [name for name, _ in rows() if page.count(f"| `{name}` |") != 1] == []


@pytest.mark.parametrize("command", ["pipeline.train", "pipeline.plan"])
def test_the_commands_list_all_fields_without_other_arguments(command: str) -> None:
    done = run_module(command, "--list_fields")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == field_list() + "\n"
