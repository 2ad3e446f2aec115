"""Files that cannot be trusted: whatever they hold, the answer is a value or one message, fast and in little memory."""

import io
import json
import os
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from common.small_files import (
    MOST_LEVELS,
    BadFileError,
    measured_lines,
    parse_json,
    parse_yaml,
    read_json,
    read_small_file,
)

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(bytes(1001))
    long_name = tmp_path / ("x" * 300)
    for path, message in (
        (tmp_path / "none", f"recipe {tmp_path}/none cannot be read: No such file or directory"),
        (tmp_path, f"recipe {tmp_path} cannot be read: it is a folder, not a file"),
        (tmp_path / "fifo", f"recipe {tmp_path}/fifo cannot be read: it is a FIFO, not a file"),
        (Path("/dev/zero"), "recipe /dev/zero cannot be read: it is a device or a socket, not a file"),
        (tmp_path / "large", f"recipe {tmp_path}/large cannot be read: it has more than 1,000 bytes"),
        (Path("a\0b"), "'recipe a\\x00b' cannot be read: embedded null byte"),
        (long_name, f"recipe {long_name} cannot be read: File name too long"),
    ):
        with pytest.raises(BadFileError) as caught:
            read_small_file(path, what="recipe", most_bytes=1000)
        assert str(caught.value) == message
    assert len(read_small_file(tmp_path / "large", most_bytes=1001)) == 1001


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r is not JSON: Expecting value"),
        ("{", "r is not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "r is not JSON: the key 'a' stands twice"),
        ('[{"a": {"b": 1, "b": 1}}]', "the key 'b' stands twice"),
        ("[NaN]", "r holds nan, which is not a finite number"),
        ("-Infinity", "r holds -inf"),
        ("1e999", "r holds inf"),
        (str(10**30), "r holds an integer of 100 bits; 64 is the most"),
        ("9" * 5000, "r is not JSON: Exceeds the limit"),
        ("[" * 100_000, f"nested deeper than {MOST_LEVELS} levels"),
        ("[" * 65 + "]" * 65, f"nested deeper than {MOST_LEVELS} levels"),
    ],
)
def test_json_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadFileError, match=message):
        parse_json(text.encode(), name="r")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "r is not YAML"),
        ("a: 1\na: 2", "r is not YAML: the key 'a' stands twice"),
        ("a: {b: 1, b: 2}", "the key 'b' stands twice"),
        ("a: .inf", "r holds inf"),
        ("a: .nan", "r holds nan"),
        ("a: 2024-13-41", "r is not YAML: month must be in 1..12"),
        ("a: !!float abc", "r is not YAML: could not convert string"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: " + "9" * 400, "r holds an integer of"),
        ("a: " + "9" * 5000, "r is not YAML: Exceeds the limit"),
        ("[" * 500 + "]" * 500, f"nested deeper than {MOST_LEVELS} levels"),
        ("".join(f"{'  ' * i}a:\n" for i in range(500)), f"nested deeper than {MOST_LEVELS} levels"),
        ("a: &a [*a]", f"nested deeper than {MOST_LEVELS} levels"),
        (BOMB, "values, with its aliases written out"),
        ("? [a, b]\n: 1\n? {c: d}\n: 2", "r is not YAML: .*unhashable key"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadFileError, match=message):
        parse_yaml(text.encode(), name="r")


def test_what_is_read_is_what_the_libraries_read(tmp_path: Path) -> None:
    text = "a: &x {lr: 3.0e-4, steps: [1, 2]}\nb: {<<: *x, lr: 1.0}\n"
    assert parse_yaml(text.encode(), name="r") == yaml.safe_load(text)
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + b'{"a": [1, 2.5, null]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None]}
    assert parse_json(b"[NaN]", name="r", finite=False)[0] != 0
    assert parse_json(b"[" * 64 + b"]" * 64, name="r")


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_any_value_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value).encode(), name="r") == value


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_one_message(contents: bytes) -> None:
    for parse in (parse_json, parse_yaml):
        with suppress(BadFileError):
            parse(contents, name="r")


def test_a_long_line_takes_no_more_memory_than_its_limit() -> None:
    file = io.BytesIO(b"short\n" + bytes(50_000_000) + b"\nlast")
    tracemalloc.start()
    lines = list(measured_lines(file, most_bytes=1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lines == [(b"short\n", 6), (None, 50_000_001), (b"last", 4)]
    assert peak < 100_000
