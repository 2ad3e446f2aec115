import json
from pathlib import Path

import pytest

from common.files import sha256_of_file, write_json, write_text, written_whole


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_text(path, "old")

    def fail_half_way() -> None:
        with written_whole(path) as partial:
            partial.write_text("half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with written_whole(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.parent == path.parent  # a rename is atomic within one file system only
    assert path.read_text() == "half"
    assert list(tmp_path.iterdir()) == [path]


def test_json_and_text_read_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "é": "☃"}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
    write_text(tmp_path / "a.txt", "é☃\n")
    assert (tmp_path / "a.txt").read_bytes() == "é☃\n".encode()


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the first test vector of FIPS 180
    assert sha256_of_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
