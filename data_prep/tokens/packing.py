"""From a stream of tokens to overlapping windows; pure functions, and a packer for streams that arrive in pieces.

Documents, with their BOS or EOS, are joined into one stream. Window `k` is
`stream[k * seq_len : (k + 1) * seq_len + lookahead]`: windows start every `seq_len` tokens and overlap by `lookahead`
tokens, so that each of the `seq_len` positions of a window has all its `lookahead` targets. Only the tail of a stream,
which is too short for another window, is left out.

A second stream, cut in the same way, may give the document of each token. Within a window, documents are numbered from
0. Attention is masked by `ids[query] == ids[key]`, and a document begins where the number increases, which
variable-length attention needs to know. A document's EOS is its last token, and BOS its first.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TokenArray = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class WindowShape:
    """The positions per window, and the number of further tokens that their targets need."""

    seq_len: int
    lookahead: int

    @property
    def length(self) -> int:
        """The number of tokens in one stored window."""
        return self.seq_len + self.lookahead

    def count(self, n_tokens: int) -> int:
        """Return the number of windows in a stream of `n_tokens`."""
        return max(0, (n_tokens - self.lookahead) // self.seq_len)


def windows_of(stream: TokenArray, shape: WindowShape) -> TokenArray:
    """Return the windows of `stream` (tokens,) as a view (windows, seq_len + lookahead)."""
    if shape.count(len(stream)) == 0:
        return np.empty((0, shape.length), dtype=stream.dtype)
    return np.lib.stride_tricks.sliding_window_view(stream, shape.length)[:: shape.seq_len]


def documents_in_windows(numbers: TokenArray) -> TokenArray:
    """Return the document of each token within its window (windows, seq_len + lookahead), numbered from 0.

    Args:
        numbers: the documents' numbers (windows, seq_len + lookahead), increasing by one, modulo 2**16. The differences
            are right modulo 2**16 too.
    """
    return numbers - numbers[:, :1]


class WindowPacker:
    """Cuts a stream that arrives in pieces; the windows do not depend on the pieces."""

    def __init__(self, shape: WindowShape) -> None:
        self._shape = shape
        self._rest = np.empty(0, dtype=np.uint16)
        self._overlap = 0  # tokens at the start of `_rest` that are also in the last window

    def add(self, tokens: list[TokenArray]) -> TokenArray:
        """Append arrays (n,) to the stream; return the windows now complete, (windows, seq_len + lookahead)."""
        stream = np.concatenate([self._rest, *tokens])
        windows = windows_of(stream, self._shape)
        if len(windows):
            self._overlap = self._shape.lookahead
            # a copy, because a view would keep the whole stream in memory
            stream = stream[len(windows) * self._shape.seq_len :].copy()
        self._rest = stream
        return windows

    @property
    def tail_tokens(self) -> int:
        """The number of tokens of the stream so far that are in no window."""
        return len(self._rest) - self._overlap
