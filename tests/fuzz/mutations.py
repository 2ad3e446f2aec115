"""Changes of files that hold JSON, lines of JSON, YAML, words or bytes: of single values, of the text, and of both."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import strategies as st

Changes = Callable[[bytes], st.SearchStrategy[bytes]]

# Values that some reader may not expect where it finds them.
_NUMBERS = [0, -1, 1, 2, 2**31, 2**63 - 1, 2**64, 10**30, 1.5, -0.5, 1e308, 5e-324, math.inf, math.nan]
_TEXTS = ["", "x", "x" * 5000, "../x", "/etc/hostname", "a\0b", "\x1b[31m", "\u202e", "1e5", "NaN", "train", "s3://b/x"]
_CONTAINERS: list[Any] = [[], {}, [[]], {"": None}, [0] * 100, {"a": {"b": [1]}}]
HOSTILE = st.sampled_from([None, True, False, *_NUMBERS, *_TEXTS, *_CONTAINERS]).map(copy.deepcopy) | st.integers(
    -300, 300
)
_STRETCHES = [b"\0", b"\xff", b"\n", b'"', b"{", b"}", b": ", b"- ", b"\xef\xbb\xbf", b"[" * 3000, b"9" * 5000]
_BYTES = st.sampled_from(_STRETCHES)


@st.composite
def json_values(draw: st.DrawFn, example: Any) -> Any:
    """Return a value with one to three of its parts replaced, removed, repeated or added."""
    value = copy.deepcopy(example)
    for _ in range(draw(st.integers(1, 3))):
        value = _changed_somewhere(draw, value)
    return value


def _changed_somewhere(draw: st.DrawFn, value: Any) -> Any:
    """Go down into a value for a number of steps, and change what is there."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 3)) == 0:
        return draw(HOSTILE)
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    action = draw(st.sampled_from(["down", "down", "down", "remove", "add"]))
    if action == "down":
        value[key] = _changed_somewhere(draw, value[key])
    elif action == "remove":
        del value[key]
    elif isinstance(value, dict):
        value[draw(st.sampled_from(_TEXTS))] = draw(HOSTILE)
    else:
        value.insert(key, draw(HOSTILE | st.just(value[key])))
    return value


@st.composite
def binary(draw: st.DrawFn, example: bytes) -> bytes:
    """Return bytes with one to three stretches replaced, removed, repeated or added."""
    contents = example
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(contents)))
        stop = min(len(contents), start + draw(st.sampled_from([0, 1, 2, 4, 8, 100, len(contents)])))
        stretch = contents[start:stop]
        new = draw(st.sampled_from([b"", 2 * stretch, bytes(stop - start), b"\xff" * (stop - start)]) | _BYTES)
        contents = contents[:start] + new + contents[stop:]
    return contents


def json_file(example: bytes) -> st.SearchStrategy[bytes]:
    """Return changes of a JSON file, of which YAML is a superset."""
    values = json_values(json.loads(example))
    return values.map(lambda value: json.dumps(value).encode()) | binary(example)


@st.composite
def json_lines(draw: st.DrawFn, example: bytes) -> bytes:
    """Return changes of a file with one JSON value on each line."""
    lines = example.splitlines(keepends=True)
    number = draw(st.integers(0, len(lines) - 1))
    lines[number] = draw(json_file(lines[number])) + b"\n"
    order = draw(st.sampled_from(["kept", "reversed", "repeated"]))
    return b"".join({"kept": lines, "reversed": lines[::-1], "repeated": 2 * lines}[order])


def yaml_file(example: bytes) -> st.SearchStrategy[bytes]:
    """Return changes of a YAML file."""
    values = json_values(yaml.safe_load(example))
    return values.map(lambda value: yaml.safe_dump(value).encode()) | binary(example)


@st.composite
def words_of_a_command(draw: st.DrawFn, example: bytes) -> bytes:
    """Return changes of lines KEY=VALUE: a value is replaced by another or by text that is none, or bytes change."""
    lines = example.splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    key = lines[number].partition(b"=")[0]
    texts = st.sampled_from(
        ["", "nan", "inf", "1e999", "9" * 5000, "[" * 3000, "!!float x", "2026-02-31", "*a", "&a [*a]"]
    )
    value = draw(HOSTILE.map(lambda value: str(value).encode()) | HOSTILE.map(_as_json) | texts.map(str.encode))
    lines[number] = draw(st.sampled_from([key, b"x." + key, key.upper(), b""])) + b"=" + value
    changed = b"\n".join(lines)
    return draw(st.just(changed) | binary(changed)).replace(b"\0", b"")  # which no word of a command line can hold


def _as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def packed(changes: Changes, *, unpack: Callable[[bytes], bytes], pack: Callable[[bytes], bytes]) -> Changes:
    """Return changes of a compressed file: of its content, and of its own bytes."""
    return lambda example: changes(unpack(example)).map(pack) | binary(example)


def safetensors_header(example: bytes) -> st.SearchStrategy[bytes]:
    """Return changes of the JSON at the start of a safetensors file, whose length comes before it."""
    size = int.from_bytes(example[:8], "little")
    changed = json_file(example[8 : 8 + size])
    return changed.map(lambda header: len(header).to_bytes(8, "little") + header + example[8 + size :])
