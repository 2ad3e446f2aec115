"""The content of a SentencePiece model, for converting it into another tokenizer that produces the same ids.

SentencePiece merges the two neighbours that form the piece with the highest score, and the leftmost of equals. Other
tokenizers rank pairs of neighbours (`merges`). We rank a pair by the score of the piece that it forms; if several pairs
form the same piece, their order is arbitrary. The ids are the same nevertheless, because only one of these pairs can
ever occur: as long as the characters of a piece are merged only with each other, they are merged in the same order as
without surrounding text. This requires that no two pieces have the same score, and that nothing is merged into the name
of a byte or of a special token (`<0x0A>`, `</s>`), which transformers' own converter allows. `obstacles` lists
everything else that could make a difference.
"""

from typing import Any

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space
# Texts that tokenizers disagree about: spaces, line ends, names of special tokens and bytes, marks, long runs.
PROBES = (
    "", " ", "a", " a", "a ", "   a  b   ", "\n", "\r\n\t\t x\n\n", "def f(x):\n    return x  # é\n", "\0", SPACE,
    f"{SPACE}{SPACE} {SPACE}a", "<s>", "a</s>b <unk>", "<0x0A><0x00>", "\u0301e\u0301", "\U0001f468\u200d\U0001f469",
    "数\u00a0\u2028\ufeff\ufb01\u2460", "=" * 777, "ab" * 333, " " * 99 + "\n" * 99 + "\t" * 99, "3.14e-10 . don 't",
)  # fmt: skip


MODEL_HEAD = b"\n\x0e\n\x05<unk>"
"""What the file of a model begins with whose first piece is <unk>, as of ours and Llama's."""


def parsed(model: bytes) -> Any:
    """Return the protocol buffer of a serialized model."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]


def obstacles(proto: Any) -> list[str]:
    """Return the properties of a model that ranked merges cannot reproduce exactly, one line each."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    types = {piece.type for piece in proto.pieces}
    scores = [piece.score for piece in proto.pieces if piece.type == piece.NORMAL]
    found = {
        f"model_type is {trainer.ModelType.Name(trainer.model_type)}, not BPE": trainer.model_type != trainer.BPE,
        "byte_fallback is off, so unknown characters are lost": not trainer.byte_fallback,
        f"normalization_rule_name is {normalizer.name}, not identity": bool(normalizer.precompiled_charsmap),
        "remove_extra_whitespaces is on": normalizer.remove_extra_whitespaces,
        "escape_whitespaces is off": not normalizer.escape_whitespaces,
        "treat_whitespace_as_suffix is on": trainer.treat_whitespace_as_suffix,
        "decoding changes the text as well": bool(proto.denormalizer_spec.precompiled_charsmap),
        "it has user_defined_symbols": proto.SentencePiece.USER_DEFINED in types,
        "it has unused pieces": proto.SentencePiece.UNUSED in types,
        "two pieces have the same score": len(set(scores)) < len(scores),
    }
    return [obstacle for obstacle, is_there in found.items() if is_there]


def merges(proto: Any) -> list[tuple[str, str]]:
    """Return every pair of pieces that forms a piece, in descending order of that piece's score."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    return [
        (whole[:cut], whole[cut:])
        for whole in sorted(scores, key=scores.__getitem__, reverse=True)
        for cut in range(1, len(whole))
        if whole[:cut] in scores and whole[cut:] in scores
    ]
