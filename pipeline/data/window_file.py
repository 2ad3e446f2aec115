"""Reads the tokens of one window from an MDS file, and believes nothing that the file says.

    n, offset 0, ..., offset n    uint32: the number of windows, and where each begins
    a header                      JSON, which is not read
    window 0, ..., window n-1     all columns of a window, one after the other, each an array of uint16

All windows of a split have the same columns (`common.shard_format`), so their size and the place of the tokens in them
are known before a file is opened. Streaming's own reader allocates what the offsets ask for, and decodes all columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.wording import counted

_PIECE_BYTES = 1 << 20


class BadWindowError(ValueError):
    """A file does not hold a window where it says, or holds ids beyond the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class WindowLayout:
    """The place of a window's tokens."""

    window_bytes: int
    """Bytes of all columns of a window."""
    tokens_start: int
    """Bytes of the columns before the tokens."""
    n_tokens: int
    """Tokens of a window."""


def layout_of(names: Sequence[str], sizes: Sequence[int]) -> WindowLayout:
    """Return the layout of windows, given the names of their columns and their sizes in bytes."""
    place = list(names).index("tokens")
    return WindowLayout(window_bytes=sum(sizes), tokens_start=sum(sizes[:place]), n_tokens=sizes[place] // 2)


def fault_of_windows(path: Path, *, n_windows: int, layout: WindowLayout, vocab_size: int) -> str | None:
    """Return what is wrong with the windows of a file, in one line, or None; it is read piece by piece.

    Raises:
        OSError: the file cannot be read.
    """
    wrong = f"{path} does not hold {counted(n_windows, 'window')} of {layout.window_bytes} bytes"
    with open(path, "rb") as file:
        stored = file.read(4 * (n_windows + 2))
        if len(stored) != 4 * (n_windows + 2):
            return wrong
        table = np.frombuffer(stored, np.uint32).astype(np.int64)
        if table[0] != n_windows or (np.diff(table[1:]) != layout.window_bytes).any():
            return wrong
        file.seek(int(table[1]))
        at_once, first = max(1, _PIECE_BYTES // layout.window_bytes), layout.tokens_start // 2
        for start in range(0, n_windows, at_once):
            n_bytes = min(at_once, n_windows - start) * layout.window_bytes
            stored = file.read(n_bytes)
            if len(stored) != n_bytes:
                return wrong
            windows = np.frombuffer(stored, np.uint16).reshape(-1, layout.window_bytes // 2)
            largest = int(windows[:, first : first + layout.n_tokens].max())
            if largest >= vocab_size:
                return f"{path} holds the id {largest}, but there are only {vocab_size} ids"
    return None


def read_window(path: Path, index: int, *, layout: WindowLayout, vocab_size: int) -> NDArray[np.uint16]:
    """Return the tokens of a window, shape (n_tokens,), by its index in a file.

    Raises:
        BadWindowError: it is not there, or holds an id beyond the vocabulary.
        OSError: the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        file.seek(4 * (1 + index))
        offsets = file.read(8)
        start, stop = int.from_bytes(offsets[:4], "little"), int.from_bytes(offsets[4:], "little")
        if len(offsets) != 8 or stop - start != layout.window_bytes:
            raise BadWindowError(f"window {index} does not have {layout.window_bytes} bytes")
        file.seek(start + layout.tokens_start)
        stored = file.read(2 * layout.n_tokens)
    if len(stored) != 2 * layout.n_tokens:
        raise BadWindowError(f"window {index} lies beyond the end of the file")
    tokens_W = np.frombuffer(stored, np.uint16)
    if (largest := int(tokens_W.max())) >= vocab_size:
        raise BadWindowError(f"window {index} holds the id {largest}, but there are only {vocab_size} ids")
    return tokens_W
