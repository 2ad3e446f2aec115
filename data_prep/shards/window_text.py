"""A window of tokens as people can read it: its text, with a visible mark where a document ends.

In colour, neighbouring tokens have different shades, so that one sees what each of them is. Special ones have no text,
but a mark: BOS, EOS, and the sentinels of documents whose middle is last.
"""

from collections.abc import Mapping
from itertools import cycle
from typing import Literal

import numpy as np

from common.tokenizers import BYTES, Tokenizer
from data_prep.tokens.packing import TokenArray

BOS_MARK, EOS_MARK = "⟦BOS⟧", "⟦EOS⟧"
Style = Literal["plain", "colour"]
_SHADES = ("\x1b[97;48;5;24m", "\x1b[97;48;5;238m")  # white on dark blue, and on grey
_MARK, _RESET = "\x1b[30;43m", "\x1b[0m"


def marked_text(
    window: TokenArray, tokenizer: Tokenizer, *, sentinels: Mapping[str, int] | None = None, style: Style = "plain"
) -> str:
    """Return the text of a window (seq_len + lookahead,), with a visible mark for each special token.

    Args:
        window: token ids.
        tokenizer: of the shards.
        sentinels: of fill-in-the-middle, by name, as metadata.json has them.
        style: plain, or each token in a shade of its own.
    """
    marks = {tokenizer.bos_id: BOS_MARK, tokenizer.eos_id: EOS_MARK}
    marks |= {token: f"⟦{name.upper()}⟧" for name, token in (sentinels or {}).items()}
    shown = []
    for run in np.split(window, np.flatnonzero(np.isin(window, list(marks)))):
        ids = run.tolist()
        if ids and ids[0] in marks:
            special = ids.pop(0)
            mark = marks[special] if style == "plain" else f"{_MARK}{marks[special]}{_RESET}"
            shown.append(f"{mark}\n" if special == tokenizer.eos_id else mark)
        shown.append(tokenizer.decode(ids) if style == "plain" else _shaded(ids, tokenizer))
    return "".join(shown)


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
