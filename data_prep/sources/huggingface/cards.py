"""The card of a data set, checked before the library follows it: its files lie inside of its folder.

A README.md may name data files by patterns, and a saved data set lists its files. Both may come from a stranger. So a
pattern that leads outside is refused before it is resolved, and a file that lies elsewhere, by a link, before it is
read.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from common.command_line import UserError
from common.small_files import parse_yaml, read_json, read_small_file
from data_prep.sources.formats.opening import is_url

_CARD, _MORE_YAML, _INFOS = "README.md", ".huggingface.yaml", "dataset_infos.json"
_MOST_BYTES = 4 << 20
_FENCE = b"---"


def check_card(folder: Path) -> None:
    """Check the files of a data set's folder in which it says what its data files are.

    Raises:
        UserError: one of them is damaged, or names files outside of the folder.
    """
    for name in (_CARD, _MORE_YAML):
        path = folder / name
        if not path.is_file():
            continue
        contents = read_small_file(path, most_bytes=_MOST_BYTES)
        if name == _CARD:
            contents = _front_matter(contents)
        outside = [pattern for pattern in _patterns(parse_yaml(contents, name=path)) if _leads_outside(pattern)]
        if outside:
            raise _outside(folder, outside, said_by=path.name)
    if (folder / _INFOS).is_file():
        read_json(folder / _INFOS)  # which the library would read whatever its size


def check_inside(root: str, files: Iterable[str], *, said_by: str) -> None:
    """Check that files lie in a data set's folder, or at its address, also where they are links.

    A snapshot in Hugging Face's cache consists of links into the folder `blobs` beside `snapshots`.

    Raises:
        UserError: a file lies elsewhere.
    """
    outside = [file for file in files if not (_is_below(file, root) if is_url(root) else _is_inside(file, root))]
    if outside:
        raise _outside(root, outside, said_by=said_by)


def _outside(folder: object, names: list[str], *, said_by: str) -> UserError:
    return UserError(
        f"{said_by} of the data set {folder} names data outside of it: {', '.join(map(repr, names[:3]))}; if you trust"
        " it, copy the data into its folder, or give them as an input of their own"
    )


def _front_matter(contents: bytes) -> bytes:
    """Return the YAML at the start of a data set's README.md, between two lines of hyphens."""
    lines = contents.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
    if not lines or lines[0].strip() != _FENCE:
        return b""
    end = next((number for number, line in enumerate(lines[1:], start=1) if line.strip() == _FENCE), 0)
    return b"".join(lines[1:end])


def _patterns(card: Any) -> Iterator[str]:
    """Yield the patterns of data files, and the folders, in the configurations of a card."""
    configs = card.get("configs") if isinstance(card, dict) else None
    for config in configs if isinstance(configs, list) else ():
        if isinstance(config, dict):
            yield from _texts_in([config.get("data_files"), config.get("data_dir")])


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(inner)


def _leads_outside(pattern: str) -> bool:
    """Return whether a pattern is an address, an absolute path, or goes up; `::` opens files within files."""
    return is_url(pattern) or "::" in pattern or pattern.startswith(("/", "~")) or ".." in PurePosixPath(pattern).parts


def _is_below(file: str, root: str) -> bool:
    return file.startswith(f"{root.rstrip('/')}/") and ".." not in PurePosixPath(file).parts and "::" not in file


def _is_inside(file: str, root: str) -> bool:
    folder = Path(os.path.realpath(root))
    allowed = [folder, folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else [folder]
    return not is_url(file) and any(Path(os.path.realpath(file)).is_relative_to(each) for each in allowed)
