"""The tokens of one document: the ids of its text, with the middle last or not, between BOS and EOS.

Any engine must give SentencePiece's ids. Every text of a document that is checked is also encoded by SentencePiece, and
a difference ends the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.command_line import UserError
from common.sentencepieces.fast_tokens import IdArray, first_difference
from common.tokenizers import Engine, Tokenizer, load_tokenizer
from data_prep.sources.documents import Document
from data_prep.tokens.fim import FimOptions, Segment, fim_segments, load_fim_tokenizer
from data_prep.tokens.options import DocumentEnds
from data_prep.tokens.packing import TokenArray


class WrongIdsError(UserError):
    """The fast tokenizer does not give SentencePiece's ids, so nothing that it has written can be trusted."""


@dataclass(frozen=True)
class Encoded:
    """The tokens of one document, with BOS and EOS, (tokens,) uint16, and whether its middle is last."""

    tokens: TokenArray
    is_filled: bool


class DocumentEncoder:
    """Encodes documents with one tokenizer and one set of options."""

    def __init__(self, name: str, *, engine: Engine, ends: DocumentEnds, fim: FimOptions | None) -> None:
        self._fim = None if fim is None else (load_fim_tokenizer(name, engine=engine), fim)
        self._tokenizer = load_tokenizer(name, engine=engine) if self._fim is None else self._fim[0].start
        self._before = [self._tokenizer.bos_id] if ends in ("bos", "both") else []
        self._after = [self._tokenizer.eos_id] if ends in ("eos", "both") else []

    def encode(self, document: Document, document_digest: bytes, *, may_fill: bool, is_checked: bool) -> Encoded:
        """Return the tokens of a document.

        Args:
            document: the document.
            document_digest: its hash, which chooses the documents that have their middle last.
            may_fill: whether the document may have its middle last.
            is_checked: whether to compare the ids with SentencePiece's.

        Raises:
            WrongIdsError: the ids of a checked document differ from SentencePiece's.
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
    """Compare the ids of a text of `document` with SentencePiece's.

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
        f"({versions}); the shards written so far may have wrong ids, too: write all of them into another --out, with "
        "--tokenizer_engine sentencepiece"
    )
