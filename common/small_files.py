"""Small files that a person or another program hands over: recipes, JSON, metadata, manifests, lines of records.

None of them is trusted. A file must be a regular file of at most a stated size. A value may be nested only so deep, may
not repeat a key, and its numbers must be finite and fit into 64 bits. Anything else is one `BadFileError`, which names
the file and says what is wrong; the caller adds what to do about it.
"""

import json
import math
import os
import stat
from collections.abc import Hashable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import yaml

from common.command_line import UserError

MOST_BYTES = 16 << 20
MOST_YAML_BYTES = 256 << 10  # PyYAML reads some 200 kB/s
MOST_LEVELS = 64
_READ_AT_ONCE = 1 << 20
MOST_YAML_VALUES = 100_000  # with every alias written out
_INTEGERS = range(-(1 << 63), 1 << 64)
_SKIPPED_AT_ONCE = 1 << 14  # bytes of a line that is too long


class BadFileError(UserError):
    """A small file cannot be used; the message names it and says why."""


def read_small_file(path: Path, *, what: str = "", most_bytes: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: the file. A FIFO is not waited for, and a device is not read.
        what: what the file is to the reader, for the message, such as "recipe".
        most_bytes: the size above which the file is refused unread.

    Raises:
        BadFileError: it cannot be read, is not a regular file, or is too large.
    """
    name = f"{what} {path}".strip()
    with open_regular_file(path, name=name) as file:
        try:
            is_too_large = os.fstat(file.fileno()).st_size > most_bytes
            contents = b"" if is_too_large else b"".join(_chunks(file, most_bytes=most_bytes))
        except OSError as error:
            raise BadFileError(f"{name} cannot be read: {error.strerror}") from error
    if is_too_large or len(contents) > most_bytes:
        raise BadFileError(f"{name} cannot be read: it has more than {most_bytes:,} bytes")
    return contents


def open_regular_file(path: Path, *, name: object) -> BufferedReader:
    """Return a regular file, open for reading. A FIFO is not waited for, and a device is not read.

    Raises:
        BadFileError: it cannot be opened, or is not a regular file; the message calls it `name`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadFileError(f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a name that holds NUL
        raise BadFileError(f"{name!r} cannot be read: {error}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise BadFileError(f"{name} cannot be read: it is {_kind(mode)}, not a file")
    return open(descriptor, "rb")


def _chunks(file: BufferedReader, *, most_bytes: int) -> Iterator[bytes]:
    """Yield the content of a file, and of a longer one some more than `most_bytes`."""
    n_bytes = 0  # a single read would allocate all that it asks for
    while n_bytes <= most_bytes and (chunk := file.read(min(_READ_AT_ONCE, most_bytes + 1 - n_bytes))):
        n_bytes += len(chunk)
        yield chunk


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a device or a socket"


def parse_json(contents: bytes, *, name: object, finite: bool = True) -> Any:
    """Return the value of a JSON text (UTF-8, with or without a byte order mark).

    Args:
        contents: the text.
        name: the file, as messages call it.
        finite: refuse NaN and infinities; lines of metrics may hold them.

    Raises:
        BadFileError: it is not JSON, repeats a key, is nested too deep, or holds a number that cannot be used.
    """
    try:
        value = json.loads(contents.decode("utf-8-sig"), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise BadFileError(f"{name} is nested deeper than {MOST_LEVELS} levels") from None
    except ValueError as error:
        raise BadFileError(f"{name} is not JSON: {_one_line(error)}") from error
    _check_value(value, name=name, finite=finite)
    return value


def parse_yaml(contents: bytes, *, name: object) -> Any:
    """Return the value of a YAML text (UTF-8), which PyYAML's safe loader makes of it.

    Raises:
        BadFileError: it is not YAML, repeats a key, is nested too deep, is too large once its aliases are written out,
            or holds a number that cannot be used.
    """
    try:
        value = yaml.load(contents.decode("utf-8-sig"), Loader=_Loader)
    except RecursionError:
        raise BadFileError(f"{name} is nested deeper than {MOST_LEVELS} levels") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:  # dates and floats that do not exist, too
        raise BadFileError(f"{name} is not YAML: {_one_line(error)}") from error
    _check_value(value, name=name, finite=True, most_values=MOST_YAML_VALUES)
    return value


def read_json(path: Path, *, what: str = "", most_bytes: int = MOST_BYTES) -> Any:
    """Return the value in a JSON file; see `read_small_file` and `parse_json`."""
    return parse_json(read_small_file(path, what=what, most_bytes=most_bytes), name=f"{what} {path}".strip())


def read_yaml(path: Path, *, what: str = "", most_bytes: int = MOST_YAML_BYTES) -> Any:
    """Return the value in a YAML file; see `read_small_file` and `parse_yaml`."""
    return parse_yaml(read_small_file(path, what=what, most_bytes=most_bytes), name=f"{what} {path}".strip())


def read_lines(path: Path, *, what: str = "", most_bytes: int = MOST_BYTES) -> Iterator[bytes | None]:
    """Yield the lines of a regular file with their line ends; None stands for one longer than `most_bytes`.

    Memory stays within `most_bytes`, whatever the file holds.

    Raises:
        BadFileError: it cannot be read, or is not a regular file.
    """
    name = f"{what} {path}".strip()
    with open_regular_file(path, name=name) as file:
        lines = (line for line, _ in measured_lines(file, most_bytes=most_bytes))
        while True:
            try:
                line = next(lines, b"")
            except OSError as error:
                raise BadFileError(f"{name} cannot be read: {error.strerror}") from error
            if line == b"":
                return
            yield line


def measured_lines(file: IO[bytes], *, most_bytes: int = MOST_BYTES) -> Iterator[tuple[bytes | None, int]]:
    """Yield the lines of an open file, as `read_lines` does, each with its length in bytes."""
    while line := file.readline(most_bytes + 1):
        n_bytes = len(line)
        if n_bytes <= most_bytes:
            yield line, n_bytes
            continue
        while not line.endswith(b"\n") and (line := file.readline(_SKIPPED_AT_ONCE)):
            n_bytes += len(line)
        yield None, n_bytes


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses a key that stands twice in a mapping, and deep nesting at once.

    The time that PyYAML takes grows with the square of the depth.
    """

    _level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._level += 1
        if self._level > MOST_LEVELS + 1:  # the innermost value is no level
            raise RecursionError
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in mapping if keys.count(key) > 1)
        raise ValueError(f"the key {repeated[:100]!r} stands twice")
    return mapping


def _check_value(value: Any, *, name: object, finite: bool, most_values: float = math.inf) -> None:
    """Refuse a value that is nested too deep, is too large with its aliases written out, or has a bad number."""
    measured: dict[int, tuple[int, int]] = {}  # size and height of each container, by its identity

    def measure(value: Any, level: int) -> tuple[int, int]:
        if isinstance(value, float) and finite and not math.isfinite(value):
            raise BadFileError(f"{name} holds {value}, which is not a finite number")
        if isinstance(value, int) and value not in _INTEGERS:
            raise BadFileError(f"{name} holds an integer of {value.bit_length()} bits; 64 is the most")
        if not isinstance(value, dict | list | set | tuple):
            return 1, 0
        _, height = measured.get(id(value), (0, 0))
        if level + height >= MOST_LEVELS:
            raise BadFileError(f"{name} is nested deeper than {MOST_LEVELS} levels")
        if id(value) not in measured:
            parts = [*value, *value.values()] if isinstance(value, dict) else [*value]
            inner = [measure(part, level + 1) for part in parts]
            size, height = 1 + sum(size for size, _ in inner), 1 + max((height for _, height in inner), default=0)
            if size > most_values:
                raise BadFileError(f"{name} holds more than {most_values:,} values, with its aliases written out")
            measured[id(value)] = size, height
        return measured[id(value)]

    measure(value, 0)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
