"""The text of a completion while its tokens come: what is certain of it, and where it ends.

A token may be a part of a character, and SentencePiece decodes a piece differently at the beginning of a text. So new
tokens are decoded after some that precede them, and text that ends in an unfinished character waits for the next one.
"""

from collections.abc import Iterable, Sequence

from common.tokenizers import Tokenizer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what tokenizers decode a part of a character to


class CompletionText:
    """The text that tokens add to a prompt, up to the first of some stop texts.

    token_ids: the tokens taken; where a stop text ended the completion, the last completed it.
    is_stopped: whether one did.
    text: all of them as text so far, without the stop text.
    """

    def __init__(self, prompt_ids: Sequence[int], tokenizer: Tokenizer, *, stops: Sequence[str] = ()) -> None:
        self.token_ids: list[int] = []
        self.is_stopped = False
        self.text = ""
        self._tokenizer, self._stops = tokenizer, stops
        self._before = ""  # the text of the tokens before the pending ones
        self._pending: list[int] = []
        # new tokens are decoded after these, whose text has so many characters
        self._context, self._n_context = list(prompt_ids), len(tokenizer.decode(list(prompt_ids)))

    def extend(self, token_ids: Iterable[int]) -> bool:
        """Take tokens one by one, until one completes a stop text; return whether one has."""
        for token_id in token_ids:
            if self.is_stopped:
                break
            self._take(token_id)
        return self.is_stopped

    @property
    def settled(self) -> str:
        """What no further token can change or cut: `text` but for an unfinished character or stop text at its end."""
        if self.is_stopped:
            return self.text
        text = self.text.rstrip(_UNFINISHED)
        return text[: len(text) - _begun(text, self._stops)]

    def _take(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self._pending.append(token_id)
        decode, ids = self._tokenizer.decode, self._context + self._pending
        decoded = decode(ids)
        text = self._before + decoded[self._n_context :]
        self.text = cut_at_stop(text, self._stops)
        self.is_stopped = self.text != text
        if not text.endswith(_UNFINISHED):
            pending = decode(self._pending)
            is_blank = not pending.strip()  # and what a text begins with may be dropped
            self._context, self._n_context = (ids, len(decoded)) if is_blank else (self._pending, len(pending))
            self._before, self._pending = text, []


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text up to the first of the stop texts."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places, default=None)]


def _begun(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of a text may turn out to be a stop text's beginning."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
