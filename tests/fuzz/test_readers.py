"""Every reader of `READERS` gives a value or one message for any file, soon and in little memory."""

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.reader import Reader
from tests.fuzz.readers import READERS

MOST_S, MOST_BYTES = 5.0, 500 << 20
every_reader = pytest.mark.parametrize("name", READERS)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Reader], Path]:
    """Return a function that gives the folder of a reader's example, which is made once."""
    made: dict[Callable[[Path], object], Path] = {}

    def folder_of(reader: Reader) -> Path:
        if reader.make not in made:
            made[reader.make] = tmp_path_factory.mktemp("example")
            reader.make(made[reader.make])
        return made[reader.make]

    return folder_of


@pytest.fixture
def folder(examples: Callable[[Reader], Path], name: str, tmp_path: Path) -> Path:
    """A copy of the reader's example."""
    shutil.copytree(examples(READERS[name]), tmp_path / "copy")
    return tmp_path / "copy"


def _read(reader: Reader, folder: Path) -> None:
    """Read, and fail if that takes too long or too much memory, or raises what is not allowed."""
    before_bytes = _largest_memory()
    started_s = time.process_time()  # which does not depend on what else the machine does
    with suppress(*reader.allowed):
        reader.read(folder)
    assert time.process_time() - started_s < MOST_S
    assert _largest_memory() - before_bytes < MOST_BYTES


def _largest_memory() -> int:
    """Return the most memory that this process had since the last call, also outside of Python's own."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


@every_reader
def test_the_example_itself_is_read(name: str, folder: Path) -> None:
    code: object = 0
    try:
        READERS[name].read(folder)
    except SystemExit as ended:
        code = ended.code
    assert code == 0


@every_reader
def test_a_changed_file_is_a_value_or_one_message(name: str, folder: Path, request: pytest.FixtureRequest) -> None:
    reader, n_examples = READERS[name], request.config.getoption("--fuzz_examples")
    path = folder / reader.file
    original = path.read_bytes()

    @settings(
        max_examples=n_examples or reader.examples, derandomize=n_examples is None, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(reader.changes(original))
    def check(contents: bytes) -> None:
        path.write_bytes(contents)
        _read(reader, folder)

    check()


@every_reader
@pytest.mark.parametrize("kind", ["missing", "empty", "folder", "FIFO", "device", "sparse"])
def test_what_is_no_such_file_is_a_value_or_one_message(name: str, kind: str, folder: Path) -> None:
    path = folder / READERS[name].file
    path.unlink()
    match kind:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "sparse":
            path.touch()
            os.truncate(path, READERS[name].most_bytes)
    _read(READERS[name], folder)
