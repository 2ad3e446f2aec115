"""Identities: does a folder hold the shards that this run would write?

An *identity* is everything that determines the written bytes: format, arguments, tokenizer, sources. It is stored in
the JSON files of a folder (plan.json, metadata.json). A folder keeps one identity; a run with another one is refused.
"""

import argparse
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from common.command_line import UserError
from common.files import json_text, sha256_of_file
from common.s3 import S3Path
from common.shard_format import FORMAT_VERSION
from common.small_files import BadFileError, parse_json, read_small_file

Identity = dict[str, Any]
# All other entries follow from these.
_COMPARED = {"format_version", "tokenizer", "sources", "listing", "arguments", "near_method"}
_MOST_SHOWN = 6  # differences; one more file in the input shifts all parts after it
_LONGEST_VALUE = 160  # characters of a value that are shown whole
_MOST_BYTES = 256 << 20  # of a plan, which has an entry for each part
_DELETE = "delete the folder, or choose another one"


def identifying_arguments(arguments: argparse.Namespace, *, ignored: Collection[str]) -> dict[str, Any]:
    """Return the arguments that determine the written bytes: all but the `ignored` ones.

    Benchmark files (--decontaminate) count by their content, not by their name alone.
    """
    named = {name: value for name, value in vars(arguments).items() if name not in ignored}
    if arguments.decontaminate:
        named["decontaminate"] = {path: sha256_of_file(Path(path)) for path in arguments.decontaminate}
    return named


def read_json(path: Path | S3Path, *, advice: str = _DELETE) -> dict[str, Any] | None:
    """Return the object in a JSON file that an earlier run wrote, or None if there is no such file.

    Raises:
        UserError: the file is damaged, is a link, or cannot be read; a damaged file's message ends with the `advice`.
    """
    try:
        if isinstance(path, S3Path):
            stored = path.read_bytes(most_bytes=_MOST_BYTES)
        else:
            path.lstat()
            refuse_link(path)
            stored = read_small_file(path, most_bytes=_MOST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        value = parse_json(stored, name="it")
    except BadFileError as error:
        raise UserError(f"{path} is damaged: {error}; {advice}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged ({str(value)[:40]!r} is not an object); {advice}")
    return value


def refuse_link(path: Path) -> None:
    """Refuse a link inside a shard folder: whoever wrote the folder may mean another file of this machine.

    Raises:
        UserError: `path` is a symbolic link.
    """
    if path.is_symlink():
        raise UserError(f"{path} is a link, which is not followed; put a copy of the file in its place")


def checked_plan(plan: dict[str, Any], *, path: Path) -> dict[str, Any]:
    """Return a plan that has the shape of those that write_shards writes; `path` is its name in the message.

    Raises:
        UserError: it has another shape.
    """
    try:
        _Plan.model_validate(plan)
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {shape_fault(error)}; {_DELETE}") from error
    return plan


def shape_fault(error: ValidationError) -> str:
    """Return the first reason why a value does not have the shape that it should have, in one line."""
    first = error.errors(include_url=False)[0]
    place, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{place}: {reason}" if place else reason


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
    wanted = json.loads(json_text(wanted))  # so that both are as they were written
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


def _listed_parts(listing: dict[str, str]) -> dict[str, str]:
    if list(listing) != [f"part-{index:05}" for index in range(len(listing))]:
        raise ValueError("the names are not those of consecutive parts")
    return listing


Length = Annotated[int, Field(strict=True, ge=1, le=1 << 29)]


class _Tokenizer(BaseModel):
    kind: str
    sha256: str
    bos_id: Annotated[int, Field(strict=True)]
    eos_id: Annotated[int, Field(strict=True)]


class _Arguments(BaseModel):
    input: list[str] | None
    mix: list[str] | None
    seq_len: Length
    lookahead: Length
    val_fraction: Annotated[float, Field(strict=True, ge=0, lt=1)]
    compression: str | None

    @model_validator(mode="after")
    def _name_sources(self) -> "_Arguments":
        if not self.input and not self.mix:
            raise ValueError("neither input nor mix names a source")
        return self


class _Plan(BaseModel):
    """The entries of a plan that the last step uses."""

    format_version: Annotated[int, Field(strict=True, ge=FORMAT_VERSION, le=FORMAT_VERSION)]
    seq_len: Length
    lookahead: Length
    vocab_size: Annotated[int, Field(strict=True, ge=1, le=1 << 16)]
    tokenizer: _Tokenizer
    document_ends: str
    document_ids: Annotated[bool, Field(strict=True)]
    fim: dict[str, Any] | None
    shuffle_seed: int | None
    sources: list[dict[str, Any]]
    arguments: _Arguments
    listing: Annotated[dict[str, str], Field(min_length=1), AfterValidator(_listed_parts)]
    names: list[str]
    skipped: list[tuple[str, str, str]]
    versions: dict[str, str]

    @model_validator(mode="after")
    def _agree(self) -> "_Plan":
        if (self.seq_len, self.lookahead) != (self.arguments.seq_len, self.arguments.lookahead):
            raise ValueError("seq_len and lookahead are not those of the arguments")
        return self
