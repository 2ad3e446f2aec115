"""Token streams to overlapping windows; pure.

Documents, with what marks their ends, are joined into one stream. Window `k` is
`stream[k * seq_len : (k + 1) * seq_len + lookahead]`: windows start every `seq_len` tokens and overlap by `lookahead`,
so that each of the `seq_len` positions of a window has all its `lookahead` targets. Only the tail of a stream, too
short for one more window, is left out.

A second stream, cut in the same way, may say of each token which document it belongs to. Within a window, documents
count from 0: attention is masked by `ids[query] == ids[key]`, and a position that is more than the one before begins a
document, which is what variable-length attention wants to know. A document's EOS is its last token, BOS its first.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TokenArray = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class WindowShape:
    """Positions per window, and how many tokens each sees beyond it."""

    seq_len: int
    lookahead: int

    @property
    def length(self) -> int:
        """Tokens in one stored window."""
        return self.seq_len + self.lookahead

    def count(self, n_tokens: int) -> int:
        """Return how many windows a stream of `n_tokens` holds."""
        return max(0, (n_tokens - self.lookahead) // self.seq_len)


def windows_of(stream: TokenArray, shape: WindowShape) -> TokenArray:
    """Return the windows of `stream` (tokens,) as a view (windows, seq_len + lookahead)."""
    if shape.count(len(stream)) == 0:
        return np.empty((0, shape.length), dtype=stream.dtype)
    return np.lib.stride_tricks.sliding_window_view(stream, shape.length)[:: shape.seq_len]


def documents_in_windows(numbers: TokenArray) -> TokenArray:
    """Return for each token its document within its window (windows, seq_len + lookahead), counted from 0.

    Args:
        numbers: the documents' numbers modulo 2**16, increasing by one; differences are right modulo 2**16 too.
    """
    return numbers - numbers[:, :1]


class WindowPacker:
    """Cuts a stream that arrives in pieces; the cut does not depend on how the stream was cut into pieces."""

    def __init__(self, shape: WindowShape) -> None:
        self._shape = shape
        self._rest = np.empty(0, dtype=np.uint16)
        self._overlap = 0  # tokens at the start of `_rest` that the last window already holds

    def add(self, tokens: list[TokenArray]) -> TokenArray:
        """Append arrays (n,) to the stream; return the windows (windows, seq_len + lookahead) now complete."""
        stream = np.concatenate([self._rest, *tokens])
        windows = windows_of(stream, self._shape)
        if len(windows):
            self._overlap = self._shape.lookahead
            # a copy, or the rest would keep the whole stream alive
            stream = stream[len(windows) * self._shape.seq_len :].copy()
        self._rest = stream
        return windows

    @property
    def tail_tokens(self) -> int:
        """Tokens of the stream so far that no window holds."""
        return len(self._rest) - self._overlap
