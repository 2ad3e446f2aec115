"""Fast encoding with gigatoken, which produces SentencePiece's ids about ten times as fast as SentencePiece.

gigatoken gets the model's pieces and merges (`sentencepiece_model`) as a tokenizer.json. This module writes that file
instead of gigatoken's own converter, for two reasons: text is not searched for special tokens (`</s>` in a text is four
ordinary characters, as for SentencePiece), and nothing is merged into the name of a byte or of a special token. Models
that cannot be reproduced in this form are refused with the reason (`EngineUnavailable`), and every encoder is compared
with SentencePiece on difficult texts before it is returned.

gigatoken caches every word it has encoded and never frees the cache, which takes about as much memory as there was
code, and several times as much for random text. Therefore it is rebuilt (0.3 s) after every `_CHARACTERS_CACHED`.
"""

import importlib.metadata
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from common.sentencepieces.sentencepiece_model import PROBES, SPACE, merges, obstacles, parsed

NAME = "gigatoken"
IdArray = npt.NDArray[np.integer[Any]]

_CHARACTERS_CACHED = 1 << 28


class EngineUnavailable(Exception):
    """gigatoken cannot replace SentencePiece for a model; the message says why."""


def version() -> str:
    """Return the version of the installed gigatoken.

    Raises:
        EngineUnavailable: it is not installed.
    """
    try:
        return importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError as error:
        raise EngineUnavailable(f"{NAME} is not installed") from error


def fast_encoder(model: bytes) -> Callable[[str], IdArray]:
    """Return a function that encodes a text as its ids, shape (tokens,), in the SentencePiece model `model`.

    Raises:
        EngineUnavailable: gigatoken is not installed, does not support the model, or produces different ids.
    """
    try:
        import gigatoken
    except ImportError as error:
        raise EngineUnavailable(f"{NAME} is not installed, or cannot be imported: {error}") from error
    proto = parsed(model)
    if problems := obstacles(proto):
        raise EngineUnavailable(f"{NAME} does not support this model: {', '.join(problems)}")
    encode = _Encoder(json.dumps(tokenizer_json(proto)), gigatoken.Tokenizer.from_json)
    try:
        _compare(encode, sentencepiece.SentencePieceProcessor(model_proto=model))
    except (ValueError, RuntimeError) as error:
        raise EngineUnavailable(f"{NAME} refuses this model: {error}") from error
    return encode


class _Encoder:
    """Encodes with gigatoken, and rebuilds it from time to time to free its cache."""

    def __init__(self, tokenizer_json: str, build: Callable[[str], Any]) -> None:
        self._tokenizer_json, self._build = tokenizer_json, build
        self._encode: Callable[[str], IdArray] | None = None
        self._n_characters = 0

    def __call__(self, text: str) -> IdArray:
        if self._encode is None or self._n_characters > _CHARACTERS_CACHED:
            self._encode = None  # free the old tokenizer before the new one is built
            self._encode = self._build(self._tokenizer_json).encode
            self._n_characters = 0
        self._n_characters += len(text)
        return self._encode(text)


def first_difference(ids: IdArray, expected: IdArray) -> int | None:
    """Return the first position at which two arrays of ids differ, or the shorter one ends; None if they are equal."""
    shared = min(len(ids), len(expected))
    different = np.flatnonzero(ids[:shared] != expected[:shared])
    if len(different):
        return int(different[0])
    return None if len(ids) == len(expected) else shared


def tokenizer_json(proto: Any) -> dict[str, Any]:
    """Return the tokenizer.json for gigatoken, without special tokens."""
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    if proto.normalizer_spec.add_dummy_prefix:  # a space before every text
        steps.insert(0, {"type": "Prepend", "prepend": SPACE})
    return {
        "version": "1.0",
        "added_tokens": [],  # tokens in this list would be searched for in text
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "vocab": {piece.piece: index for index, piece in enumerate(proto.pieces)},
            "merges": merges(proto),
            "unk_token": proto.pieces[proto.trainer_spec.unk_id].piece,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
        },
    }


def _compare(encode: Callable[[str], IdArray], reference: sentencepiece.SentencePieceProcessor) -> None:
    """Compare the ids of the probes, and of one text made of all pieces.

    Raises:
        EngineUnavailable: the ids differ.
    """
    pieces = "".join(reference.id_to_piece(index) for index in range(reference.vocab_size()))
    for text in (*PROBES, pieces):
        if first_difference(encode(text), reference.encode(text, out_type="numpy")) is not None:
            raise EngineUnavailable(f"{NAME} {version()} gives other ids than sentencepiece for {text[:40]!r}")
