"""The text of a window of tokens, as people can read it.

Special tokens have no text of their own. They are shown as marks: BOS, EOS, and the sentinels of fill-in-the-middle. In
color, neighbouring tokens have different shades, so that each token can be told from the next. What a terminal would
obey is escaped.
"""

from collections.abc import Mapping
from itertools import cycle
from typing import Literal

import numpy as np

from common.tokenizers import BYTES, Tokenizer
from common.wording import escaped
from data_prep.tokens.packing import TokenArray

BOS_MARK, EOS_MARK = "⟦BOS⟧", "⟦EOS⟧"
Style = Literal["plain", "color"]
_SHADES = ("\x1b[97;48;5;24m", "\x1b[97;48;5;238m")  # white on dark blue, and on grey
_MARK, _RESET = "\x1b[30;43m", "\x1b[0m"
_LONGEST_CHARACTER = 4  # bytes of UTF-8, each of which may be a token


def marked_text(
    window: TokenArray, tokenizer: Tokenizer, *, sentinels: Mapping[str, int] | None = None, style: Style = "plain"
) -> str:
    """Return the text of a window (seq_len + lookahead,), with a visible mark for each special token.

    Args:
        window: token ids.
        tokenizer: the tokenizer of the shards.
        sentinels: ids of the sentinels of fill-in-the-middle by name, from metadata.json.
        style: plain text, or neighbouring tokens in different shades.
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
        shown.append(escaped(tokenizer.decode(ids)) if style == "plain" else _shaded(ids, tokenizer))
    return "".join(shown)


def _shaded(ids: list[int], tokenizer: Tokenizer) -> str:
    """Return the text of some tokens, with alternating shades.

    Tokens share a shade while their text ends within a character, because its bytes may be several tokens.
    """
    shades, shown, start = cycle(_SHADES), [], 0
    for stop in range(1, len(ids) + 1):
        text = _text_of(ids, start, stop, tokenizer)
        if text.endswith("\ufffd") and stop < len(ids) and stop - start < _LONGEST_CHARACTER:
            continue
        # reset the color at the end of a line, or the terminal fills the rest of the line with it
        shown.append(next(shades) + escaped(text).replace("\n", f"↵{_RESET}\n") + _RESET)
        start = stop
    return "".join(shown)


def _text_of(ids: list[int], start: int, stop: int, tokenizer: Tokenizer) -> str:
    """Return the text of ids[start:stop], decoded after the token before them, so that a first space is kept."""
    if start == 0 or tokenizer.kind == BYTES:
        return tokenizer.decode(ids[start:stop])
    before = tokenizer.decode(ids[start - 1 : start])
    return tokenizer.decode(ids[start - 1 : stop])[len(before) :]
