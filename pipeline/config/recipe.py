"""Reads a recipe into a checked `Config`.

Precedence, lowest first: the defaults in `schema.py`, the recipe file, `section.field=value` on the command line.
All problems of a recipe are reported at once. Checks that also need the world size, the shards or the DeepSpeed JSON
are in `ranks.py`, `shard_folder.py` and `deepspeed.py`; `inputs.py` reports them together with those of the recipe.
"""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from common.command_line import UserError, one_line, raise_if_any
from pipeline.config.model import model_problems, resolve_model
from pipeline.config.schema import Config

_ADAPTER = TypeAdapter(Config)


def load_config(recipe: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe, apply `section.field=value` overrides, and check the result.

    Raises:
        UserError: the recipe cannot be read, or a key or value is wrong; lists all problems.
    """
    config, problems = read_config(recipe, overrides)
    raise_if_any(problems, heading=f"recipe {recipe}")
    return config


def read_config(recipe: Path, overrides: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """Do the same as `load_config`, but return the problems, for callers that have more to add.

    The config holds the default of every field that has a problem.

    Raises:
        UserError: the recipe cannot be read at all.
    """
    values = _read_recipe(recipe)
    problems = _override(values, overrides)
    config, invalid = _validated(values)
    config = dataclasses.replace(config, model=resolve_model(config.model))
    return config, problems + invalid + _inconsistencies(config, given=values)


def _read_recipe(recipe: Path) -> dict[str, dict[str, Any]]:
    try:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {recipe} cannot be read ({error}); see pipeline/recipes/") from error
    except yaml.YAMLError as error:
        raise UserError(f"recipe {recipe} is not YAML: {one_line(error)}") from error
    if not isinstance(values, dict) or not all(isinstance(section, dict) for section in values.values()):
        raise UserError(f"recipe {recipe} must map sections (model, data, train, ...) to their fields")
    return values


def _override(values: dict[str, dict[str, Any]], overrides: Sequence[str]) -> list[str]:
    """Write `section.field=value` overrides into `values`; return one line for each that cannot be parsed."""
    problems = []
    for override in overrides:
        key, separator, text = override.partition("=")
        section, dot, field = key.partition(".")
        if not (separator and dot and field):
            problems.append(f"{override!r} must have the form section.field=value")
            continue
        try:
            values.setdefault(section, {})[field] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            problems.append(f"the value of {override!r} is not YAML: {one_line(error)}")
    return problems


def _validated(values: dict[str, dict[str, Any]]) -> tuple[Config, list[str]]:
    """Build the config from plain values; return it with one line per unusable value, whose field keeps its default."""
    try:
        return _ADAPTER.validate_python(values), []
    except ValidationError as error:
        errors = error.errors()
    bad_keys = {tuple(details["loc"][:2]) for details in errors}
    usable = {
        section: {key: value for key, value in fields.items() if (section, key) not in bad_keys}
        for section, fields in values.items()
        if (section,) not in bad_keys
    }
    return _ADAPTER.validate_python(usable), [_sentence(details) for details in errors]


def _inconsistencies(config: Config, *, given: dict[str, dict[str, Any]]) -> list[str]:
    """Return the contradictions between fields that are valid on their own, one line each."""
    problems = []
    own = given.get("model", {})
    sized = ("dim", "n_layers", "n_heads")
    clash = [name for name in sized if own.get(name, 0) not in (0, getattr(config.model, name))]
    if config.model.size and clash:
        problems.append(
            f"model.size={config.model.size!r} already sets {', '.join(clash)} to another value; give one or the other"
        )
    problems += model_problems(config.model)
    if "total_tokens" not in given.get("train", {}):
        problems.append("train.total_tokens is missing: the token budget of the run")
    if "shards" not in given.get("data", {}):
        problems.append("data.shards is missing: the folder that data_prep.write_shards wrote")
    first, last = config.profile.steps or (1, 1)
    if not first <= last <= config.total_steps:
        problems.append(
            f"profile.steps=[{first}, {last}] must be the first and the last step to record, within the run's"
            f" {config.total_steps} steps"
        )
    if "total_tokens" in given.get("train", {}) and config.optim.warmup_steps >= config.total_steps:
        problems.append(
            f"optim.warmup_steps={config.optim.warmup_steps} must be below the run's {config.total_steps} steps"
        )
    if config.log.wandb and importlib.util.find_spec("wandb") is None:
        problems.append(
            f"log.wandb={config.log.wandb!r} needs the package wandb: pip install wandb, or leave this key out"
        )
    return problems


def _sentence(details: Any) -> str:
    """Return one of pydantic's errors as `section.field=value: message`."""
    location = ".".join(str(part) for part in details["loc"])
    if details["type"] == "unexpected_keyword_argument":
        section = details["loc"][0] if len(details["loc"]) > 1 else None
        known = [field.name for field in dataclasses.fields(getattr(Config(), section) if section else Config)]
        return f"unknown key {location}; {section or 'a recipe'} has {', '.join(known)}"
    return f"{location}={details['input']!r}: {details['msg']}"
