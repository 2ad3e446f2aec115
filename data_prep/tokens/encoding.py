"""One document to its tokens: the ids of its text, filled in the middle or not, between what marks its ends.

Ids are SentencePiece's, whatever computes them: every text of a document that is to be checked is encoded by
SentencePiece too, and a difference ends the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.command_line import UserError
from common.fast_tokens import IdArray, first_difference
from common.tokenizers import Engine, Tokenizer, load_tokenizer
from data_prep.sources.documents import Document
from data_prep.tokens.fim import FimOptions, Segment, fim_segments, load_fim_tokenizer
from data_prep.tokens.options import DocumentEnds
from data_prep.tokens.packing import TokenArray


class WrongIdsError(UserError):
    """The fast tokenizer does not give SentencePiece's ids; nothing that it has written can be trusted."""


@dataclass(frozen=True)
class Encoded:
    """Tokens of one document, ends included, (tokens,) uint16; and whether its middle is last."""

    tokens: TokenArray
    is_filled: bool


class DocumentEncoder:
    """Encodes documents with one tokenizer, always in the same way."""

    def __init__(self, name: str, *, engine: Engine, ends: DocumentEnds, fim: FimOptions | None) -> None:
        self._fim = None if fim is None else (load_fim_tokenizer(name, engine=engine), fim)
        self._tokenizer = load_tokenizer(name, engine=engine) if self._fim is None else self._fim[0].start
        self._before = [self._tokenizer.bos_id] if ends in ("bos", "both") else []
        self._after = [self._tokenizer.eos_id] if ends in ("eos", "both") else []

    def encode(self, document: Document, document_digest: bytes, *, may_fill: bool, is_checked: bool) -> Encoded:
        """Return the tokens of a document, with its middle last if it may and its hash says so.

        Raises:
            WrongIdsError: it is checked, and its ids are not those of the reference.
        """
        segments = None
        if may_fill and self._fim is not None:
            segments = fim_segments(document.text, document_digest, *self._fim)
        pieces: list[IdArray | Sequence[int]] = [self._before]
        for segment in [Segment((), document.text, self._tokenizer)] if segments is None else segments:
            ids = segment.tokenizer.encode_array(segment.text)
            if is_checked:
                _check_ids(document, segment.text, ids, segment.tokenizer)
            pieces += [segment.sentinels, ids]
        return Encoded(_joined([*pieces, self._after]), is_filled=segments is not None)


def _joined(pieces: Sequence[IdArray | Sequence[int]]) -> TokenArray:
    tokens = np.empty(sum(map(len, pieces)), dtype=np.uint16)
    start = 0
    for piece in pieces:
        tokens[start : start + len(piece)] = piece
        start += len(piece)
    return tokens


def _check_ids(document: Document, text: str, ids: IdArray, tokenizer: Tokenizer) -> None:
    """Compare the ids of a text of `document` with those of the reference.

    Raises:
        WrongIdsError: they differ.
    """
    if tokenizer.is_reference:
        return
    expected = np.asarray(tokenizer.encode(text))
    position = first_difference(ids, expected)
    if position is None:
        return
    found, wanted = (str(of[position]) if position < len(of) else "no id" for of in (ids, expected))
    versions = ", ".join(f"{name} {number}" for name, number in tokenizer.versions.items())
    raise WrongIdsError(
        f"{document.source}: at token {position} the fast tokenizer gives {found}, sentencepiece {wanted} "
        f"({versions}); all that was written is removed: run it again with --tokenizer_engine sentencepiece"
    )
