"""export.json: what an export records about itself beside the weights; written last, so that its folder is whole.

    {"format_version": 1, "first_token": "eos", "seq_len": 4096, "files": {"config.json": 812, ...}}

The formats of other tools have no place for the token before each document in training, or a wrong one, so it travels
in this file through every format. The names and sizes of the files tell an export, which a later one may replace, from
anything that a person has put there or changed.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from common.command_line import UserError
from common.files import write_json
from common.small_files import read_json

FirstToken = Literal["bos", "eos", "none"]
FIRST_TOKENS: tuple[FirstToken, ...] = get_args(FirstToken)
RECORD = "export.json"
_FORMAT_VERSION = 1
_LONGEST = 2**31


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """The known facts about an export."""

    first_token: FirstToken
    """The token before each document in training."""
    seq_len: int | None = None
    """Length of the training sequences in tokens; None if it is not known."""
    files: dict[str, int] = field(default_factory=dict)
    """Size in bytes of each file of the export except this one, by its name in the folder."""


def files_in(folder: Path) -> dict[str, int]:
    """Return the size of everything below `folder` that is no folder, by its relative name; links are not followed."""
    return {str(path.relative_to(folder)): path.lstat().st_size for path in _entries(folder)}


def write_record(folder: Path, *, first_token: FirstToken, seq_len: int | None) -> None:
    """Write the record of a finished export."""
    record = ExportRecord(first_token=first_token, seq_len=seq_len, files=files_in(folder))
    write_json(folder / RECORD, {"format_version": _FORMAT_VERSION, **asdict(record)})


def read_record(folder: Path) -> ExportRecord | None:
    """Return the record of an export, or None if the folder has none.

    Raises:
        UserError: there is a file of this name that was not written here.
    """
    path = folder / RECORD
    if not os.path.lexists(path):
        return None
    values = read_json(path)
    problem = _problem(values)
    if problem is not None:
        raise UserError(f"{path} was not written by this version of pipeline.convert: {problem}")
    return ExportRecord(first_token=values["first_token"], seq_len=values.get("seq_len"), files=values["files"])


def _problem(values: Any) -> str | None:
    if not isinstance(values, dict):
        return "it holds no JSON object"
    if values.get("format_version") != _FORMAT_VERSION:
        return f"its format_version is {values.get('format_version')!r}, not {_FORMAT_VERSION}"
    if values.get("first_token") not in FIRST_TOKENS:
        return f"its first_token is {values.get('first_token')!r}, not one of {', '.join(FIRST_TOKENS)}"
    seq_len, files = values.get("seq_len"), values.get("files")
    if seq_len is not None and not (type(seq_len) is int and 0 < seq_len <= _LONGEST):
        return f"its seq_len is {seq_len!r}"
    if not isinstance(files, dict) or not all(type(size) is int for size in files.values()):
        return "its files are not sizes by name"
    return None


def _entries(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)
        yield from (path for name in folders if (path := Path(parent, name)).is_symlink())
