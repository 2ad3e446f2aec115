"""SentencePiece models for tests: of any settings, and changed afterwards."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from common.sentencepiece_model import parsed


def trained(path: Path, lines: Sequence[str], **options: Any) -> Path:
    """Write a SentencePiece model with Llama 2's settings but for `options`."""
    settings: dict[str, Any] = {
        "model_type": "bpe", "vocab_size": 1000, "character_coverage": 0.99995, "byte_fallback": True,
        "split_digits": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True, "minloglevel": 2,
    } | options  # fmt: skip
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **settings)
    path.write_bytes(model.getvalue())
    return path


def changed(path: Path, change: Callable[[Any], None]) -> Path:
    """Write a copy of the model at `path` after `change` of its protocol buffer."""
    proto = parsed(path.read_bytes())
    change(proto)
    copy = path.with_name("changed.model")
    copy.write_bytes(proto.SerializeToString())
    return copy
