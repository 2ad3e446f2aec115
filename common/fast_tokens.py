"""gigatoken, which gives SentencePiece's ids about ten times as fast as SentencePiece, made safe to rely on.

It gets the model's pieces and merges (`sentencepiece_model`) as a tokenizer.json, written here rather than by its own
converter, for two reasons: special tokens are not looked for in text (there, `</s>` is four characters like any others,
as in SentencePiece), and nothing is joined into the name of a byte or of a special token. Models that are not the same
in this form are refused by name (`EngineUnavailable`), and every encoder is compared with SentencePiece on hostile
texts before it is returned.

gigatoken remembers every word that it has met, for good: about as much memory as there was code, several times that
for random text. So it is built anew (0.3 s) after each `_CHARACTERS_REMEMBERED`.
"""

import importlib.metadata
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from common.sentencepiece_model import PROBES, SPACE, merges, obstacles, parsed

NAME = "gigatoken"
IdArray = npt.NDArray[np.integer[Any]]

_CHARACTERS_REMEMBERED = 1 << 28


class EngineUnavailable(Exception):
    """gigatoken cannot stand in for SentencePiece; the message says why."""


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
    """Return a function from a text to its ids (tokens,), those of the SentencePiece model `model`.

    Raises:
        EngineUnavailable: gigatoken is not installed, the model is of a kind that it cannot do, or ids differ.
    """
    try:
        import gigatoken
    except ImportError as error:
        raise EngineUnavailable(f"{NAME} is not installed, or does not import ({error})") from error
    proto = parsed(model)
    if problems := obstacles(proto):
        raise EngineUnavailable(f"{NAME} cannot do this model: {', '.join(problems)}")
    encode = _Encoder(json.dumps(tokenizer_json(proto)), gigatoken.Tokenizer.from_json)
    try:
        _compare(encode, sentencepiece.SentencePieceProcessor(model_proto=model))
    except (ValueError, RuntimeError) as error:
        raise EngineUnavailable(f"{NAME} refuses this model ({error})") from error
    return encode


class _Encoder:
    """Encodes with gigatoken, and has it forget what it remembers from time to time."""

    def __init__(self, tokenizer_json: str, build: Callable[[str], Any]) -> None:
        self._tokenizer_json, self._build = tokenizer_json, build
        self._encode: Callable[[str], IdArray] | None = None
        self._n_characters = 0

    def __call__(self, text: str) -> IdArray:
        if self._encode is None or self._n_characters > _CHARACTERS_REMEMBERED:
            self._encode = None  # the old one is freed before there is a new one
            self._encode = self._build(self._tokenizer_json).encode
            self._n_characters = 0
        self._n_characters += len(text)
        return self._encode(text)


def first_difference(ids: IdArray, expected: IdArray) -> int | None:
    """Return the first position at which two arrays of ids differ, one being the longer included; None if equal."""
    shared = min(len(ids), len(expected))
    different = np.flatnonzero(ids[:shared] != expected[:shared])
    if len(different):
        return int(different[0])
    return None if len(ids) == len(expected) else shared


def tokenizer_json(proto: Any) -> dict[str, Any]:
    """Return what gigatoken gets: a tokenizer.json without special tokens."""
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    if proto.normalizer_spec.add_dummy_prefix:  # a space before every text
        steps.insert(0, {"type": "Prepend", "prepend": SPACE})
    return {
        "version": "1.0",
        "added_tokens": [],  # what is listed here would be looked for in text
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
    """Compare on the probes, and on all pieces as one text.

    Raises:
        EngineUnavailable: ids differ.
    """
    pieces = "".join(reference.id_to_piece(index) for index in range(reference.vocab_size()))
    for text in (*PROBES, pieces):
        if first_difference(encode(text), reference.encode(text, out_type="numpy")) is not None:
            raise EngineUnavailable(f"{NAME} {version()} gives other ids than sentencepiece, to {text[:40]!r}")
