"""What a SentencePiece model is made of, for those that make another tokenizer of the same ids of it.

SentencePiece joins the neighbours that make the piece of the highest score, and of equals the leftmost. Others rank
pairs of neighbours (`merges`): by the score of what they make, and arbitrarily where several make the same piece. The
ids are the same nevertheless, since only one of such pairs ever meets: while a piece's characters are joined among
themselves, they go the way that they go without surroundings. It takes that no two pieces have one score, and that
nothing is joined into the name of a byte or of a special token (`<0x0A>`, `</s>`), as can happen with transformers' own
converter. What else could make a difference, `obstacles` names.
"""

from typing import Any

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space
# What tokenizers disagree about: spaces, line ends, what looks special, bytes, marks, long runs.
PROBES = (
    "", " ", "a", " a", "a ", "   a  b   ", "\n", "\r\n\t\t x\n\n", "def f(x):\n    return x  # é\n", "\0", SPACE,
    f"{SPACE}{SPACE} {SPACE}a", "<s>", "a</s>b <unk>", "<0x0A><0x00>", "\u0301e\u0301", "\U0001f468\u200d\U0001f469",
    "数\u00a0\u2028\ufeff\ufb01\u2460", "=" * 777, "ab" * 333, " " * 99 + "\n" * 99 + "\t" * 99, "3.14e-10 . don 't",
)  # fmt: skip


def parsed(model: bytes) -> Any:
    """Return the protocol buffer of a serialized model."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]


def obstacles(proto: Any) -> list[str]:
    """Return what of a model ranked merges cannot reproduce exactly, one line each."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    types = {piece.type for piece in proto.pieces}
    scores = [piece.score for piece in proto.pieces if piece.type == piece.NORMAL]
    found = {
        f"model_type is {trainer.ModelType.Name(trainer.model_type)}, not BPE": trainer.model_type != trainer.BPE,
        "byte_fallback is off, so that unknown characters are lost": not trainer.byte_fallback,
        f"normalization_rule_name is {normalizer.name}, not identity": bool(normalizer.precompiled_charsmap),
        "remove_extra_whitespaces is on": normalizer.remove_extra_whitespaces,
        "escape_whitespaces is off": not normalizer.escape_whitespaces,
        "treat_whitespace_as_suffix is on": trainer.treat_whitespace_as_suffix,
        "it changes text in decoding, too": bool(proto.denormalizer_spec.precompiled_charsmap),
        "it has user_defined_symbols": proto.SentencePiece.USER_DEFINED in types,
        "it has unused pieces": proto.SentencePiece.UNUSED in types,
        "two pieces have one score": len(set(scores)) < len(scores),
    }
    return [obstacle for obstacle, is_there in found.items() if is_there]


def merges(proto: Any) -> list[tuple[str, str]]:
    """Return every pair of pieces that makes a piece, those that make the highest score first."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    return [
        (whole[:cut], whole[cut:])
        for whole in sorted(scores, key=scores.__getitem__, reverse=True)
        for cut in range(1, len(whole))
        if whole[:cut] in scores and whole[cut:] in scores
    ]
