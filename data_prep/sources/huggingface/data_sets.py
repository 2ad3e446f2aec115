"""The pieces of Hugging Face data sets: hf:PATH_OR_NAME[:CONFIG][@SPLIT].

A path is a folder of data files, or a folder that `save_to_disk` wrote; a name is a data set of the Hub. The library
says which files belong to the configuration and the split, in which order. Files of JSON records and Parquet become
pieces like those of a folder, read by our own readers: only the wanted fields, each record by itself. Other files are
read through the library (`library`), as a shard that cannot be cut.
"""

import functools
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command_line import UserError
from data_prep.sources.documents import Piece, Selection
from data_prep.sources.formats.cutting import pieces_of_file
from data_prep.sources.formats.opening import is_url
from data_prep.sources.formats.recognition import format_of_file
from data_prep.sources.huggingface.cards import check_card, check_inside
from data_prep.sources.huggingface.library import (
    PREFIX,
    builder_of,
    files_of_split,
    other_files,
    parse,
    saved_files,
    saved_folder,
    streamed,
)
from data_prep.sources.records import DATASET, FILE
from data_prep.sources.trees import extension_of, in_words

_DEFAULTS: dict[str, dict[str, Any]] = {
    "json": {"field": None, "encoding": "utf-8", "encoding_errors": None},
    "parquet": {"columns": None, "filters": None},
}
"""The options of the library's modules with which our own readers read what they do."""


@dataclass(frozen=True)
class ListedDataSet:
    """A data set with its pieces."""

    pieces: list[Piece]
    fingerprint: str
    """Changes when the data change."""
    left_out: str = ""
    """The files of the split that are not read, in words."""


def list_data_set(path: str, *, selection: Selection, text_field: str, piece_bytes: int) -> ListedDataSet:
    """Return the pieces of a data set.

    Raises:
        UserError: the data set, its configuration or its split cannot be loaded, or it names files outside of it.
    """
    name = parse(path)[0]
    if not name:
        raise UserError(f"input {path!r} names no data set; write {PREFIX}PATH_OR_NAME[:CONFIG][@SPLIT]")
    if os.path.isfile(name):
        raise UserError(f"input {path!r} is a file; give it without {PREFIX}")
    if folder := saved_folder(path):
        return _saved(path, folder, selection)
    if os.path.isdir(name):
        check_card(Path(name))
    builder = builder_of(path)
    files = files_of_split(path, builder)
    others = other_files(path, builder, files) if files else []
    check_inside(str(builder.base_path or name), [*files, *others], said_by="README.md")
    recognised = _Recognition(text_field)
    formats = [recognised(file) if _is_plain(builder) else FILE for file in files]
    found_beside = {file: recognised(file) for file in others}
    unread = Counter(extension_of(os.path.basename(file)) for file, format_ in found_beside.items() if format_ == FILE)
    pieces: list[Piece] = []
    if (FILE in formats or not files) and (n_shards := streamed(path).num_shards) != len(files):
        pieces = [Piece(DATASET, path, shard, shard + 1, 0, selection) for shard in range(n_shards)]
    else:
        found_beside = dict(zip(files, formats, strict=True)) | found_beside
    for shard, (file, format_) in enumerate(found_beside.items()):
        size = _size_of(file)
        if format_ != FILE:
            pieces += pieces_of_file(file, size, format_=format_, piece_bytes=piece_bytes, selection=selection)
        elif file in files:
            pieces.append(Piece(DATASET, path, shard, shard + 1, size, selection))
    return ListedDataSet(pieces, str(builder.hash), in_words(unread))


@functools.cache  # once in each process
def local_files(path: str) -> tuple[str, ...]:
    """Return the files of a data set that lie on this machine; empty if they lie elsewhere."""
    if folder := saved_folder(path):
        return tuple(str(folder / file) for file in saved_files(folder)[0])
    return tuple(file for file in files_of_split(path, builder_of(path)) if not is_url(file))


def _saved(path: str, folder: Path, selection: Selection) -> ListedDataSet:
    files, fingerprint = saved_files(folder)
    check_inside(str(folder), [str(folder / file) for file in files], said_by="state.json")
    n_shards = streamed(path).num_shards
    size = sum(_size_of(str(folder / file)) for file in files)
    ends = [size * shard // n_shards for shard in range(n_shards + 1)]
    pieces = [Piece(DATASET, path, i, i + 1, ends[i + 1] - ends[i], selection) for i in range(n_shards)]
    return ListedDataSet(pieces, fingerprint)


def _is_plain(builder: Any) -> bool:
    """Return whether our own readers read a data set's files as the library does."""
    defaults = _DEFAULTS.get(builder.name)
    return defaults is not None and all(getattr(builder.config, key) == value for key, value in defaults.items())


class _Recognition:
    """Recognises the format of files; of distant ones, those with one extension are all like the first of them."""

    def __init__(self, text_field: str) -> None:
        self._text_field = text_field
        self._distant: dict[str, str] = {}

    def __call__(self, file: str) -> str:
        if not is_url(file):
            return format_of_file(file, text_field=self._text_field, is_named=True)
        extension = extension_of(os.path.basename(file))
        if extension not in self._distant:
            self._distant[extension] = format_of_file(file, text_field=self._text_field, is_named=True)
        return self._distant[extension]


def _size_of(file: str) -> int:
    """Return the size of a data file in any file system of fsspec; 0 if it is unknown."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(file)
        return int(system.info(path)["size"])
    except Exception:  # of any file system
        return 0
