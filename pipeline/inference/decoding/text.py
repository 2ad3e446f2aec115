"""The text of a completion while its tokens come: the part that is final, and where a stop text ends it.

A token may be only part of a character, and SentencePiece decodes a piece differently at the beginning of a text. So
new tokens are decoded together with some tokens before them, and an unfinished character waits for the next token.
"""

from collections.abc import Iterable, Sequence

from common.tokenizers import Tokenizer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # tokenizers decode part of a character to this


class CompletionText:
    """The text that tokens add to a prompt, up to the first stop text.

    Attributes:
        token_ids: the tokens so far; if a stop text ended the completion, the last token completed the stop text.
        is_stopped: whether a stop text ended the completion.
        text: the text of the tokens, without the stop text.
    """

    def __init__(self, prompt_ids: Sequence[int], tokenizer: Tokenizer, *, stops: Sequence[str] = ()) -> None:
        self.token_ids: list[int] = []
        self.is_stopped = False
        self.text = ""
        self._tokenizer, self._stops = tokenizer, stops
        self._before = ""  # text of the tokens before the pending ones
        self._pending: list[int] = []
        # pending tokens are decoded after this context, whose text has n_context characters
        self._context, self._n_context = list(prompt_ids), len(tokenizer.decode(list(prompt_ids)))

    def extend(self, token_ids: Iterable[int]) -> bool:
        """Add tokens until one completes a stop text; return whether one did."""
        for token_id in token_ids:
            if self.is_stopped:
                break
            self._take(token_id)
        return self.is_stopped

    @property
    def settled(self) -> str:
        """The part of `text` that is final: without an unfinished character or a possible stop text at its end."""
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
            is_blank = not pending.strip()  # decoders may drop leading blanks, so blanks alone are no context
            self._context, self._n_context = (ids, len(decoded)) if is_blank else (self._pending, len(pending))
            self._before, self._pending = text, []


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop text in it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places, default=None)]


def _begun(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop text."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
