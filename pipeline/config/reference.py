"""The reference of every field of a recipe and of every key of the DeepSpeed JSON, made from their declarations.

A field's meaning is the docstring below it, and what it may be comes from its type and bounds (`values.described`), so
the pages say what the checks do. docs/recipe.md and docs/deepspeed_json.md are these texts; `write_pages` renews them.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.deepspeed_keys import Status, rows
from pipeline.config.schema import SECTIONS
from pipeline.config.values import declarations, described, shown

DOCS = Path(__file__).resolve().parents[2] / "docs"
_HEADINGS: dict[Status, str] = {
    "supported": "Supported: DeepSpeed does what the key says",
    "recipe": 'The recipe has the value: write "auto", or leave the key out',
    "refused": "Refused, unless the value switches it off",
    "no effect": "Without effect: accepted, and named in the log",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A field of a recipe."""

    name: str
    """`section.field`."""
    accepts: str
    """What it may be, in words."""
    default: str
    meaning: str


def entries(section: str) -> Iterator[Entry]:
    """Yield the fields of a section in their order."""
    declared, meanings = SECTIONS[section], _meanings(SECTIONS[section])
    for name, field in declarations(declared).items():
        yield Entry(
            name=f"{section}.{name}", accepts=described(field), default=_shown_default(field.default),
            meaning=meanings[name],
        )  # fmt: skip


def _shown_default(value: Any) -> str:
    return shown(list(value) if isinstance(value, tuple) else value)


def _meanings(section: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value).replace("\n", " ")
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def field_list() -> str:
    """Return every field of a recipe, for a terminal."""
    lines = []
    for section, declared in SECTIONS.items():
        lines += [f"{section}: {_summary(declared)}", ""]
        for entry in entries(section):
            lines.append(f"  {entry.name}={entry.default}    {entry.accepts}")
            lines += [*textwrap.wrap(entry.meaning, 110, initial_indent=" " * 6, subsequent_indent=" " * 6), ""]
    return "\n".join(lines).rstrip()


def _summary(section: type) -> str:
    return inspect.getdoc(section) or ""


def recipe_page() -> str:
    """Return docs/recipe.md."""
    lines = [
        "# The fields of a recipe", "",
        "A recipe is a YAML file that maps sections to fields. On the command line, `section.field=value` overrides a"
        " field. `python -m pipeline.train --list_fields` prints this list. It is made from the code.",
    ]  # fmt: skip
    for section, declared in SECTIONS.items():
        lines += ["", f"## {section}", "", _summary(declared), "", "| field | may be | default | meaning |"]
        lines.append("|---|---|---|---|")
        lines += [_row(f"`{e.name}`", e.accepts, f"`{e.default}`", e.meaning) for e in entries(section)]
    return "\n".join(lines) + "\n"


def deepspeed_page() -> str:
    """Return docs/deepspeed_json.md."""
    lines = [
        "# The keys of the DeepSpeed JSON", "",
        "A JSON may have these keys of DeepSpeed 0.19.8 and no others. Supported keys are tested to train, save, resume"
        " and convert. This list is made from the code.",
    ]  # fmt: skip
    for status, heading in _HEADINGS.items():
        lines += ["", f"## {heading}", "", "| key | may be | what it is |", "|---|---|---|"]
        lines += [_row(f"`{name}`", row.accepts, row.why) for name, row in rows() if row.status == status]
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write_pages() -> None:
    """Write both pages."""
    (DOCS / "recipe.md").write_text(recipe_page(), encoding="utf-8")
    (DOCS / "deepspeed_json.md").write_text(deepspeed_page(), encoding="utf-8")
