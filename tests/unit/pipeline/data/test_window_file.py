"""One window of an MDS file, and the check of all of them, on files of streaming's writer and on files that lie."""

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.window_file import BadWindowError, fault_of_windows, layout_of, read_window

N_WINDOWS, LENGTH = 5, 6
TOKENS = np.arange(10, 10 + N_WINDOWS * LENGTH, dtype=np.uint16).reshape(N_WINDOWS, LENGTH)
COLUMNS = (["tokens"], ["document_ids", "tokens"], ["tokens", "zeta"])


def written(folder: Path, names: list[str]) -> Path:
    """Write the windows with streaming; all columns but the tokens hold 60,000."""
    from common.mds import streaming

    columns = dict.fromkeys(names, f"ndarray:uint16:{LENGTH}")
    with streaming.MDSWriter(out=str(folder), columns=columns, compression=None) as writer:
        for tokens_W in TOKENS:
            writer.write(dict.fromkeys(names, np.full(LENGTH, 60_000, np.uint16)) | {"tokens": tokens_W})
    return folder / "shard.00000.mds"


@pytest.mark.parametrize("names", COLUMNS)
def test_windows_are_those_that_were_written(names: list[str], tmp_path: Path) -> None:
    path, layout = written(tmp_path / "split", names), layout_of(names, [2 * LENGTH] * len(names))
    read = [read_window(path, index, layout=layout, vocab_size=1000).tolist() for index in range(N_WINDOWS)]
    assert read == TOKENS.tolist()
    assert fault_of_windows(path, n_windows=N_WINDOWS, layout=layout, vocab_size=1000) is None


def test_an_id_beyond_the_vocabulary_is_named(tmp_path: Path) -> None:
    path, layout = written(tmp_path / "split", ["tokens"]), layout_of(["tokens"], [2 * LENGTH])
    largest = int(TOKENS.max())
    fault = fault_of_windows(path, n_windows=N_WINDOWS, layout=layout, vocab_size=largest)
    assert fault == f"{path} holds the id {largest}, but there are only {largest} ids"
    with pytest.raises(BadWindowError, match=f"window 4 holds the id {largest}, but there are only {largest} ids"):
        read_window(path, 4, layout=layout, vocab_size=largest)
    assert read_window(path, 3, layout=layout, vocab_size=largest).tolist() == TOKENS[3].tolist()


def _offset(number: int, value: int) -> Callable[[bytearray], bytes]:
    return lambda stored: bytes(stored[: 4 * number] + struct.pack("<I", value) + stored[4 * number + 4 :])


@pytest.mark.parametrize(
    "change",
    [
        _offset(0, 9),  # the number of windows
        _offset(3, 2**32 - 1),
        _offset(3, 0),
        lambda stored: bytes(stored[:-1]),
        lambda stored: bytes(stored[:9]),
        lambda stored: b"",
        lambda stored: b"\xff" * len(stored),
    ],
)
def test_what_a_file_says_of_itself_is_not_believed(change: Callable[[bytearray], bytes], tmp_path: Path) -> None:
    path, layout = written(tmp_path / "split", ["tokens"]), layout_of(["tokens"], [2 * LENGTH])
    path.write_bytes(change(bytearray(path.read_bytes())))
    fault = fault_of_windows(path, n_windows=N_WINDOWS, layout=layout, vocab_size=1000)
    assert fault == f"{path} does not hold {N_WINDOWS} windows of {2 * LENGTH} bytes"
    for index in range(N_WINDOWS + 3):
        with suppress(BadWindowError):
            assert read_window(path, index, layout=layout, vocab_size=1000).tolist() == TOKENS[index].tolist()
