"""The reference of every field of a recipe and of every key of the DeepSpeed JSON, made from their declarations.

A field's meaning is the docstring below it, and what it may be comes from its type and bounds (`values.described`), so
the pages say what the checks do. docs/recipe.md and docs/deepspeed_json.md are these texts; `write_pages` renews them.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.deepspeed_keys import Key, Status, rows
from pipeline.config.schema import SECTIONS
from pipeline.config.values import declarations, described, shown

DOCS = Path(__file__).resolve().parents[2] / "docs"
_USE = """\
A recipe is a YAML file of sections with fields. It holds what differs from the defaults:

    optim:
      lr: 1.0e-3

On the command line, `section.field=value` overrides the recipe. The value is YAML too; quote for the shell what it
would split or replace:

    optim.lr=1.0e-3 data.shards=~/shards log.wandb=null profile.steps='[10, 12]' log.prompts='["def ", "class "]'
"""
_OF_JSON = """\
The DeepSpeed JSON (`--deepspeed_config`) sets the ZeRO stage, precision, offload and buckets; `ds_configs/` has the
usual ones. It may have these keys of DeepSpeed 0.19.8 and no others; a dot stands for a section, so that
`zero_optimization.stage` is

    {"zero_optimization": {"stage": 2}}

A key that is left out has DeepSpeed's own default. This list is made from the code.
"""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of the page about the JSON: the keys with one status."""

    heading: str
    about: str
    columns: tuple[str, ...]


_PARTS: dict[Status, _Part] = {
    "supported": _Part(
        heading="Supported",
        about="DeepSpeed does what the key says. Training, saving, resuming and converting are tested with each.",
        columns=("key", "may be", "what it does"),
    ),
    "recipe": _Part(
        heading="Set by the recipe",
        about='Leave these out, or write `"auto"`.',
        columns=("key", "field of the recipe"),
    ),
    "refused": _Part(
        heading="Refused",
        about="Leave these out. The values in the second column are accepted, because they change nothing.",
        columns=("key", "accepted", "why it is refused, or what to do instead"),
    ),
    "no effect": _Part(
        heading="Without effect",
        about="Accepted with any value, and named in the log.",
        columns=("key", "why it has no effect"),
    ),
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
    lines = [_USE.replace("`", ""), "Each field below: its default, what it may be, and its meaning.", ""]
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
        "# The fields of a recipe", "", _USE,
        "`python -m pipeline.train --list_fields` prints this list, which is made from the code. Recipes are in"
        " `pipeline/recipes/`.",
    ]  # fmt: skip
    for section, declared in SECTIONS.items():
        lines += ["", f"## {section}", "", _summary(declared), "", *_head("field", "may be", "default", "meaning")]
        lines += [_row(f"`{e.name}`", e.accepts, f"`{e.default}`", e.meaning) for e in entries(section)]
    return "\n".join(lines) + "\n"


def deepspeed_page() -> str:
    """Return docs/deepspeed_json.md."""
    lines = ["# The keys of the DeepSpeed JSON", "", _OF_JSON.rstrip()]
    for status, part in _PARTS.items():
        lines += ["", f"## {part.heading}", "", part.about, "", *_head(*part.columns)]
        lines += [_row(f"`{name}`", *_cells(row)) for name, row in rows() if row.status == status]
    return "\n".join(lines) + "\n"


def _cells(row: Key) -> tuple[str, ...]:
    """Return what the page says of a key."""
    if row.status == "refused":
        return ", ".join(f"`{json.dumps(value)}`" for value in row.off), row.why
    return (row.accepts, row.why) if row.status == "supported" else (row.why,)


def _head(*columns: str) -> tuple[str, str]:
    return _row(*columns), "|---" * len(columns) + "|"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write_pages() -> None:
    """Write both pages."""
    (DOCS / "recipe.md").write_text(recipe_page(), encoding="utf-8")
    (DOCS / "deepspeed_json.md").write_text(deepspeed_page(), encoding="utf-8")
