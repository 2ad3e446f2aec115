"""Reads a recipe into a checked `Config`.

Precedence, lowest first: the defaults in `schema.py`, the recipe file, `section.field=value` on the command line.
All problems of a recipe are reported at once. Checks that also need the world size, the shards or the DeepSpeed JSON
are in `ranks.py`, `shard_folder.py` and `deepspeed.py`; `inputs.py` reports them together with those of the recipe.
"""

import dataclasses
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from common.command_line import UserError, raise_if_any
from common.small_files import BadFileError, parse_yaml, read_yaml
from common.wording import counted
from pipeline.config.model import model_problems, resolve_model
from pipeline.config.schema import SECTIONS, Config
from pipeline.config.values import declarations, shown, shown_key, suggestion, wrong

_ADAPTER = TypeAdapter(Config)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe as it was read."""

    config: Config
    """Resolved; a field that has a problem keeps its default."""
    problems: list[str]
    """One line for each."""
    unusable: frozenset[str]
    """The sections in which a value could not be used; checks of their fields would find what is not there."""


def load_config(recipe: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe, apply `section.field=value` overrides, and check the result.

    Raises:
        UserError: the recipe cannot be read, or a key or value is wrong; lists all problems.
    """
    found = read_config(recipe, overrides)
    raise_if_any(found.problems, heading=f"recipe {recipe}")
    return found.config


def read_config(recipe: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Do the same as `load_config`, but return the problems, for callers that have more to add.

    Raises:
        UserError: the recipe cannot be read at all.
    """
    values = _read_recipe(recipe)
    problems = _override(values, overrides)
    usable: dict[str, dict[str, Any]] = {}
    unusable = set()
    for section, fields in values.items():
        usable[section], invalid = _usable_fields(section, fields)
        problems += invalid
        unusable |= {section} if invalid else set()
    config = _ADAPTER.validate_python({section: fields for section, fields in usable.items() if section in SECTIONS})
    config = dataclasses.replace(config, model=resolve_model(config.model))
    problems += _missing(values) + _inconsistencies(config, given=usable, unusable=unusable)
    return Recipe(config=config, problems=problems, unusable=frozenset(unusable))


def _read_recipe(recipe: Path) -> dict[str, Any]:
    try:
        values = read_yaml(recipe, what="recipe") or {}
    except BadFileError as error:
        raise UserError(f"{error}; see pipeline/recipes/") from error
    if not isinstance(values, dict):
        raise UserError(f"recipe {recipe} must map sections (model, data, train, ...) to their fields")
    return {str(section): fields for section, fields in values.items()}


def _override(values: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Write `section.field=value` overrides into `values`; return one line for each that cannot be used."""
    problems = []
    for override in overrides:
        key, separator, text = override.partition("=")
        section, dot, field = key.partition(".")
        if not (separator and dot and field):
            problems.append(f"{shown(override)} must have the form section.field=value")
        elif isinstance(fields := values.setdefault(section, {}), dict):
            try:
                fields[field] = parse_yaml(text.encode(errors="surrogateescape"), name=f"the value of {shown_key(key)}")
            except BadFileError as error:
                problems.append(str(error))
    return problems


def _usable_fields(section: str, fields: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a section that can be used, and one line for each other one."""
    if section not in SECTIONS:
        return {}, [f"unknown section {shown_key(section)}; {_advice(section, SECTIONS)}"]
    if not isinstance(fields, dict):
        return {}, [f"{section}={shown(fields)} must map fields to values; leave the section out if it has none"]
    known, usable, problems = declarations(SECTIONS[section]), {}, []
    for field, value in fields.items():
        if field in known:
            usable[field] = value
        else:
            elsewhere = [f"{name}.{field}" for name, of_other in SECTIONS.items() if field in declarations(of_other)]
            advice = _advice(field, known, prefix=f"{section}.") if not elsewhere else f"did you mean {elsewhere[0]}?"
            problems.append(f"unknown key {section}.{shown_key(field)}; {advice}")
    try:
        TypeAdapter(SECTIONS[section]).validate_python(usable)
    except ValidationError as error:
        bad = dict.fromkeys(str(details["loc"][0]) for details in error.errors())
        problems += [wrong(f"{section}.{field}", usable.pop(field), known[field]) for field in bad]
    return usable, problems


def _advice(word: object, known: Iterable[str], *, prefix: str = "") -> str:
    """Return advice about an unknown name: the nearest known one, or all of them."""
    near = suggestion(word, known)
    return f"did you mean {prefix}{near}?" if near else f"there are {', '.join(known)}"


def _missing(values: dict[str, Any]) -> list[str]:
    """Return which fields without a default are missing, one line each."""
    required = (
        ("train", "total_tokens", "the token budget of the run"),
        ("data", "shards", "the folder that data_prep.write_shards wrote"),
    )
    return [
        f"{section}.{field} is missing: {what}"
        for section, field, what in required
        if isinstance(fields := values.get(section, {}), dict) and field not in fields
    ]


def _inconsistencies(config: Config, *, given: dict[str, dict[str, Any]], unusable: set[str]) -> list[str]:
    """Return the contradictions between fields that are valid on their own, one line each."""
    problems = []
    if "model" not in unusable:
        own = given.get("model", {})
        sized = ("dim", "n_layers", "n_heads")
        clash = [name for name in sized if own.get(name, 0) not in (0, getattr(config.model, name))]
        if config.model.size and clash:
            problems.append(
                f"model.size={config.model.size!r} already sets {', '.join(clash)} to another value; give one or the"
                " other"
            )
        problems += model_problems(config.model)
    first, last = config.profile.steps or (1, 1)
    knows_steps = "train" not in unusable and "total_tokens" in given.get("train", {})
    if knows_steps and not first <= last <= config.total_steps:
        problems.append(
            f"profile.steps=[{first}, {last}] must be the first and the last step to record, within the run's"
            f" {counted(config.total_steps, 'step')}"
        )
    if knows_steps and "optim" not in unusable and config.optim.warmup_steps >= config.total_steps:
        problems.append(
            f"optim.warmup_steps={config.optim.warmup_steps} must be below the run's "
            f"{counted(config.total_steps, 'step')}"
        )
    if config.log.wandb and importlib.util.find_spec("wandb") is None:
        problems.append(
            f"log.wandb={config.log.wandb!r} needs the package wandb: pip install wandb, or leave this key out"
        )
    return problems
