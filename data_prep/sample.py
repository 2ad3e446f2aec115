"""A window of tokens as people can read it: its text, with a visible mark where a document ends.

In colour, neighbouring tokens have different shades, so that one sees what each of them is; special ones, which have no
text, are left out of the text and only EOS is marked.
"""

from itertools import cycle
from typing import Literal

import numpy as np

from common.tokenizers import BYTES, Tokenizer
from data_prep.packing import TokenArray

EOS_MARK = "⟦EOS⟧"
Style = Literal["plain", "colour"]
_SHADES = ("\x1b[97;48;5;24m", "\x1b[97;48;5;238m")  # white on dark blue, and on grey
_MARK, _RESET = "\x1b[30;43m", "\x1b[0m"


def marked_text(window: TokenArray, tokenizer: Tokenizer, *, style: Style = "plain") -> str:
    """Return the text of a window (seq_len + lookahead,), with a visible mark where a document ends."""
    runs = np.split(window, np.flatnonzero(window == tokenizer.eos_id))
    ids = [[int(i) for i in run if i != tokenizer.eos_id] for run in runs]
    if style == "plain":
        return f"{EOS_MARK}\n".join(tokenizer.decode(of_run) for of_run in ids)
    return f"{_MARK}{EOS_MARK}{_RESET}\n".join(_shaded(of_run, tokenizer) for of_run in ids)


def _shaded(ids: list[int], tokenizer: Tokenizer) -> str:
    """Return the text of some tokens with a shade for each piece that can be shown by itself.

    A piece ends where the text so far does not end within a character: its bytes may be several tokens.
    """
    shades, shown, start = cycle(_SHADES), [], 0
    for stop in range(1, len(ids) + 1):
        text = _text_of(ids, start, stop, tokenizer)
        if text.endswith("\ufffd") and stop < len(ids) and stop - start < _LONGEST_CHARACTER:
            continue
        # a line's colour ends with it, or the terminal fills the rest of the line
        shown.append(next(shades) + text.replace("\n", f"↵{_RESET}\n") + _RESET)
        start = stop
    return "".join(shown)


def _text_of(ids: list[int], start: int, stop: int, tokenizer: Tokenizer) -> str:
    """Return what tokens say after the one before them, by which SentencePiece knows of their first space."""
    if start == 0 or tokenizer.kind == BYTES:
        return tokenizer.decode(ids[start:stop])
    before = tokenizer.decode(ids[start - 1 : start])
    return tokenizer.decode(ids[start - 1 : stop])[len(before) :]


_LONGEST_CHARACTER = 4  # bytes of UTF-8, each of which may be a token
