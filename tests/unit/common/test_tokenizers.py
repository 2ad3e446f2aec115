"""Tokenizers compared with bytes, and with the sentencepiece library called directly."""

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from common.command_line import UserError
from common.tokenizers import ByteTokenizer, load_tokenizer

TEXTS = ["", "a", "def f(x):\n\treturn x  # é☃\n", "  two  spaces  ", "</s><s>\0", "\r\n\n", "数" * 50]


def _model(path: Path, **options: Any) -> str:
    model = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 290,
        "byte_fallback": True,
        "minloglevel": 2,
    } | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["def f(x): return x + 1", "hello world " * 9]), model_writer=model, **settings
    )
    path.write_bytes(model.getvalue())
    return str(path)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_encoded_as_themselves_and_decoded_again(text: str) -> None:
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.encode_array(text).tolist() == list(text.encode())
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]) == text


def test_special_ids_of_bytes_come_after_the_bytes() -> None:
    assert (ByteTokenizer.bos_id, ByteTokenizer.eos_id, ByteTokenizer.vocab_size) == (256, 257, 258)
    assert ByteTokenizer().decode([0xC3, 0x28]) == "\N{REPLACEMENT CHARACTER}("


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_ids_are_sentencepieces(text: str, tmp_path: Path) -> None:
    name = _model(tmp_path / "tokenizer.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=name)
    tokenizer = load_tokenizer(name)
    assert tokenizer.encode(text) == reference.encode(text, out_type=int)
    assert tokenizer.encode_array(text).tolist() == reference.encode(text, out_type=int)
    assert tokenizer.decode(tokenizer.encode(text)) == reference.decode(reference.encode(text, out_type=int))
    assert tokenizer.eos_id not in tokenizer.encode("</s>")  # control tokens are not parsed from text
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == ("sentencepiece", 290, 1, 2)


def test_a_file_that_is_no_tokenizer_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a model")
    (tmp_path / "nothing").touch()
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    for path, message in [
        (tmp_path / "missing", "cannot be read: No such file or directory; give a SentencePiece model or the word 'b"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long; give a SentencePiece model"),
        (tmp_path, "cannot be read: it is a folder, not a file; give a SentencePiece model or the word 'bytes'"),
        (Path("/dev/zero"), "cannot be read: it is a device or a socket, not a file"),
        (tmp_path / "text", "is not a SentencePiece model; give a SentencePiece model or the word 'bytes'$"),
        (tmp_path / "nothing", "is empty; give a SentencePiece model"),
        (tmp_path / "tokenizer.json", "is JSON, as a tokenizer.json of Hugging Face, .*; give the tokenizer.model"),
    ]:
        with pytest.raises(UserError, match=message):
            load_tokenizer(str(path))
    model = _model(tmp_path / "tokenizer.model")
    with pytest.raises(UserError, match=f"it is a folder, not a file; give {model}$"):
        load_tokenizer(str(tmp_path))
    without_eos = _model(tmp_path / "without_eos", eos_id=-1)
    with pytest.raises(UserError, match="has no EOS id"):
        load_tokenizer(without_eos)
    damaged = tmp_path / "damaged"  # SentencePiece names the piece, which is no text, in its error
    damaged.write_bytes(Path(model).read_bytes() + b"\x0a\x0b\x0a\x02<\xff\x15\x00\x00\x00\x00\x18\x06")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        load_tokenizer(str(damaged))


def test_ids_of_a_padded_vocabulary_have_no_text(sentencepiece_model: Path) -> None:
    tokenizer = load_tokenizer(str(sentencepiece_model))
    ids = tokenizer.encode("import json")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, tokenizer.vocab_size + 63]) == tokenizer.decode(ids)
