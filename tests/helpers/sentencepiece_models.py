"""SentencePiece models for tests, trained with given settings or changed after training."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from common.sentencepieces.sentencepiece_model import parsed


def trained(path: Path, lines: Sequence[str], **options: Any) -> Path:
    """Train a SentencePiece model with Llama 2's settings, except for `options`; return `path`."""
    settings: dict[str, Any] = {
        "model_type": "bpe", "vocab_size": 1000, "character_coverage": 0.99995, "byte_fallback": True,
        "split_digits": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True, "minloglevel": 2,
    } | options  # fmt: skip
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **settings)
    path.write_bytes(model.getvalue())
    return path


def small_code_model(path: Path, **options: Any) -> str:
    """Train a model of 320 pieces on a little code, without sentinels unless `options` add them; return its name."""
    settings: dict[str, Any] = {
        "vocab_size": 320, "unk_id": 0, "bos_id": 1, "eos_id": 2, "required_chars": "☺<>PRESUFMIDEOT",
    } | options  # fmt: skip
    lines = ["def f(x):\n    return x + 1\n", "hello world " * 9, "for i in range(10): total"] * 3
    return str(trained(path, lines, **settings))


def changed(path: Path, change: Callable[[Any], None]) -> Path:
    """Write a copy of the model at `path` with its protocol buffer changed by `change`; return the copy's path."""
    proto = parsed(path.read_bytes())
    change(proto)
    copy = path.with_name("changed.model")
    copy.write_bytes(proto.SerializeToString())
    return copy
