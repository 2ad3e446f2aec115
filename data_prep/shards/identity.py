"""Identities: does a folder hold the shards that this run would write?

An *identity* is everything that determines the written bytes: format, arguments, tokenizer, sources. It is stored in
the JSON files of a folder (plan.json, metadata.json). A folder keeps one identity; a run with another one is refused.
"""

import argparse
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from common.command_line import UserError
from common.files import sha256_of_file
from common.s3 import S3Path

Identity = dict[str, Any]
_COMPARED = {"format_version", "tokenizer", "sources", "listing", "arguments"}  # all other entries follow from these
_MOST_SHOWN = 6  # differences; one more file in the input shifts all parts after it
_LONGEST_VALUE = 160  # characters of a value that are shown whole


def identifying_arguments(arguments: argparse.Namespace, *, ignored: Collection[str]) -> dict[str, Any]:
    """Return the arguments that determine the written bytes: all but the `ignored` ones.

    Benchmark files (--decontaminate) count by their content, not by their name alone.
    """
    named = {name: value for name, value in vars(arguments).items() if name not in ignored}
    if arguments.decontaminate:
        named["decontaminate"] = {path: sha256_of_file(Path(path)) for path in arguments.decontaminate}
    return named


def read_json(path: Path | S3Path) -> dict[str, Any] | None:
    """Return the object in a JSON file that an earlier run wrote, or None if there is no such file.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    try:
        value: Any = json.loads(stored)
        if not isinstance(value, dict):
            raise ValueError(f"{str(value)[:40]!r} is not an object")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete the folder, or choose another one") from error
    return value


def refuse_difference(found: dict[str, Any], wanted: dict[str, Any], *, out: Path | S3Path, state: str) -> None:
    """Compare two identities, or two plans.

    Args:
        found: the one stored in the folder `out`.
        wanted: the one of this run.
        out: the folder, for the message.
        state: the state of the folder for the message, such as "was finished".

    Raises:
        UserError: they differ; the message says where.
    """
    differences = sorted(
        f"{key} {_short(old)} there, {_short(new)} now"
        for name in wanted.keys() & _COMPARED
        for key, old, new in _differences(name, found.get(name), wanted[name])
    )
    if differences:
        more = f"; and {len(differences) - _MOST_SHOWN} more" if len(differences) > _MOST_SHOWN else ""
        raise UserError(
            f"{out} {state} with other arguments: {'; '.join(differences[:_MOST_SHOWN])}{more}; choose another --out,"
            " or delete it"
        )


def _differences(name: str, found: Any, wanted: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name and both values of each difference, one level into objects."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                yield f"{name}.{key}" if name != "arguments" else f"--{key}", found.get(key), wanted.get(key)
    elif found != wanted:
        yield name, found, wanted


def _short(value: Any) -> str:
    text, half = json.dumps(value), _LONGEST_VALUE // 2 - 3
    return text if len(text) <= _LONGEST_VALUE else f"{text[:half]}...{text[-half:]}"
