"""Files that appear whole or not at all, lines on a full disk, and locks that end with their process."""

import datetime
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.json
import pytest

from common.command_line import UserError
from common.files import (
    PatientFile,
    hold_lock,
    json_text,
    remove_leftovers,
    sha256_of_file,
    write_json,
    write_text,
    written_whole,
)
from tests.conftest import REPOSITORY
from tests.helpers.full_disk import file_size_limit


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


def test_the_file_does_not_exist_before_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with written_whole(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.parent == path.parent  # a rename is atomic only within one file system
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
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="it is a FIFO, not a file"):  # which would be waited for
        sha256_of_file(tmp_path / "fifo")


def test_what_a_full_disk_refuses_is_written_later(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    file = PatientFile(lambda: path)
    assert file.write(b"first\n") is None
    with file_size_limit(8):
        refused = [file.write(line) for line in (b"second\n", b"third\n")]
    assert [type(error) for error in refused] == [OSError, OSError]
    assert path.read_text() == "first\nse"
    assert file.write(b"fourth\n") is None
    assert path.read_text() == "first\nsecond\nthird\nfourth\n"
    assert file.close() is None


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "FIFO"])
def test_what_cannot_be_opened_yet_is_written_later(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "lines"
    make(path)
    file = PatientFile(lambda: path)
    assert isinstance(file.write(b"first\n"), OSError)
    assert isinstance(file.write(b"second\n"), OSError)
    path.rename(tmp_path / "elsewhere")
    assert file.write(b"third\n") is None
    assert file.close() is None
    assert path.read_text() == "first\nsecond\nthird\n"


HOLDER = """
import os, sys, time
from pathlib import Path
from common.files import hold_lock
holder = hold_lock(Path(sys.argv[1]))
if os.fork():
    print(holder, flush=True)
time.sleep(600)
"""


def test_a_lock_is_held_until_its_process_ends(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "None\n"
        assert hold_lock(path) == f"process {holder.pid} on {os.uname().nodename}"
        holder.kill()
        holder.wait()  # its child is still alive
        assert hold_lock(path) is None
        os.killpg(holder.pid, signal.SIGKILL)


WRITER = """
import sys, time
from pathlib import Path
from common.files import partial_path, written_whole
folder = Path(sys.argv[1])
partial_path(folder / "export").mkdir()
(folder / "export2").mkdir()
with written_whole(folder / ("model" * 50)) as partial:
    partial.write_text("half")
    print(partial.name, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        left = tmp_path / killed.stdout.readline().strip()
        foreign = [tmp_path / name for name in (".model.partial", ".model.partial-12345", left.name.replace("-", "-x"))]
        other_machine = tmp_path / re.sub(r"partial-\w+", "partial-01234567", left.name)
        kept = {*foreign, other_machine, tmp_path / "export2"}
        for path in (*foreign, other_machine):
            path.touch()
        assert len(left.name.encode()) < 200
        before = set(tmp_path.iterdir())
        remove_leftovers(tmp_path)
        assert set(tmp_path.iterdir()) == before  # it is still running
        killed.kill()
    remove_leftovers.cache_clear()  # as in another process
    write_text(tmp_path / "new", "")
    assert set(tmp_path.iterdir()) == {*kept, tmp_path / "new"}


def test_other_readers_accept_json_of_any_values(tmp_path: Path) -> None:
    """pyarrow refuses lone surrogates, and the standard of JSON numbers that are not finite."""
    when = datetime.datetime(2026, 11, 29, tzinfo=datetime.UTC)
    value = {"path\ud800": "caf\u00e9 \udc80\ud83d", "list": [math.nan, {"a": -math.inf}], "b": b"\xff", "t": when}
    expected = {
        "path\\ud800": "caf\u00e9 \\udc80\\ud83d", "list": [None, {"a": None}], "b": "\\xff",
        "t": "2026-11-29 00:00:00+00:00",
    }  # fmt: skip
    assert json.loads(json_text(value)) == expected
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == expected
    lines = f"{json_text(value | {'list': None})}\n".encode()
    (row,) = pyarrow.json.read_json(io.BytesIO(lines)).to_pylist()
    assert row["path\\ud800"] == expected["path\\ud800"]
    assert json.loads(json_text("\\udc80 \U0001f600")) == "\\udc80 \U0001f600"
