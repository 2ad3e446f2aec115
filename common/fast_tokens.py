"""gigatoken, which gives SentencePiece's ids about ten times as fast as SentencePiece, made safe to rely on.

It gets the model's pieces and merges as a tokenizer.json, written here rather than by its own converter, for two
reasons: special tokens are not looked for in text (there, `</s>` is four characters like any others, as in
SentencePiece), and nothing is joined into the name of a byte or of a special token.

SentencePiece joins the neighbours that make the piece of the highest score, gigatoken the pair of the lowest rank. That
is the same as long as no two pieces have one score. What else of a model could make a difference is refused by name
(`EngineUnavailable`), and every encoder is compared with SentencePiece on hostile texts before it is returned.

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

NAME = "gigatoken"
IdArray = npt.NDArray[np.integer[Any]]

_CHARACTERS_REMEMBERED = 1 << 28
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space
# What tokenizers disagree about: spaces, line ends, what looks special, bytes, marks, long runs.
_PROBES = (
    "", " ", "a", " a", "a ", "   a  b   ", "\n", "\r\n\t\t x\n\n", "def f(x):\n    return x  # é\n", "\0", _SPACE,
    f"{_SPACE}{_SPACE} {_SPACE}a", "<s>", "a</s>b <unk>", "<0x0A><0x00>", "\u0301e\u0301", "\U0001f468\u200d\U0001f469",
    "数\u00a0\u2028\ufeff\ufb01\u2460", "=" * 777, "ab" * 333, " " * 99 + "\n" * 99 + "\t" * 99, "3.14e-10 . don 't",
)  # fmt: skip


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
    from sentencepiece import sentencepiece_model_pb2

    try:
        import gigatoken
    except ImportError as error:
        raise EngineUnavailable(f"{NAME} is not installed, or does not import ({error})") from error
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    if obstacles := _obstacles(proto):
        raise EngineUnavailable(f"{NAME} cannot do this model: {', '.join(obstacles)}")
    encode = _Encoder(json.dumps(_tokenizer_json(proto)), gigatoken.Tokenizer.from_json)
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


def _obstacles(proto: Any) -> list[str]:
    """Return what of a SentencePiece model ranked merges cannot reproduce exactly."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    types = {piece.type for piece in proto.pieces}
    scores = [piece.score for piece in proto.pieces if piece.type == piece.NORMAL]
    found = {
        f"it is {trainer.ModelType.Name(trainer.model_type)}, not BPE": trainer.model_type != trainer.BPE,
        "byte_fallback is off": not trainer.byte_fallback,
        f"it normalizes text ({normalizer.name})": bool(normalizer.precompiled_charsmap),
        "remove_extra_whitespaces is on": normalizer.remove_extra_whitespaces,
        "escape_whitespaces is off": not normalizer.escape_whitespaces,
        "treat_whitespace_as_suffix is on": trainer.treat_whitespace_as_suffix,
        "it has user_defined_symbols": proto.SentencePiece.USER_DEFINED in types,
        "it has unused pieces": proto.SentencePiece.UNUSED in types,
        "two pieces have one score": len(set(scores)) < len(scores),
    }
    return [obstacle for obstacle, is_there in found.items() if is_there]


def _tokenizer_json(proto: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    if proto.normalizer_spec.add_dummy_prefix:  # a space before every text
        steps.insert(0, {"type": "Prepend", "prepend": _SPACE})
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
            "merges": _merges(proto),
            "unk_token": proto.pieces[proto.trainer_spec.unk_id].piece,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
        },
    }


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Return every pair of pieces that makes a piece, those that make the highest score first."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    return [
        (whole[:cut], whole[cut:])
        for whole in sorted(scores, key=scores.__getitem__, reverse=True)
        for cut in range(1, len(whole))
        if whole[:cut] in scores and whole[cut:] in scores
    ]


def _compare(encode: Callable[[str], IdArray], reference: sentencepiece.SentencePieceProcessor) -> None:
    """Compare on the probes, and on all pieces as one text.

    Raises:
        EngineUnavailable: ids differ.
    """
    pieces = "".join(reference.id_to_piece(index) for index in range(reference.vocab_size()))
    for text in (*_PROBES, pieces):
        if first_difference(encode(text), reference.encode(text, out_type="numpy")) is not None:
            raise EngineUnavailable(f"{NAME} {version()} gives other ids than sentencepiece, to {text[:40]!r}")
