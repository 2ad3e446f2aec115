"""Reading and encoding prompts, finding the tokenizer of a model, and the mistakes that are reported."""

import io
import os
import shutil
import sys
from pathlib import Path

import pytest

from common.command_line import UserError
from common.tokenizers import ByteTokenizer, load_tokenizer
from pipeline.inference.decoding.prompts import (
    STANDARD_INPUT,
    check_lengths,
    encode_prompts,
    matching_tokenizer,
    read_prompts,
)
from tests.helpers.references import tiny_config


@pytest.mark.parametrize(
    ("name", "contents", "prompts"),
    [
        ("p.txt", b"one\n\n  two words \r\n  \nthree", ["one", "  two words ", "three"]),
        ("p.txt", "a\u2028b\n".encode(), ["a\u2028b"]),
        ("p.txt", b"\xef\xbb\xbfone\ntwo\n", ["one", "two"]),
        ("p.jsonl", b'\xef\xbb\xbf{"prompt": "one"}\n', ["one"]),
        ("p.jsonl", b'{"prompt": "one"}\n\n{"prompt": "def f():\\n", "id": 2}', ["one", "def f():\n"]),
        ("p.jsonl", '{"prompt": "a\u2028b"}'.encode(), ["a\u2028b"]),
    ],
)
def test_files_hold_a_prompt_per_line(tmp_path: Path, name: str, contents: bytes, prompts: list[str]) -> None:
    (tmp_path / name).write_bytes(contents)
    assert read_prompts(tmp_path / name) == prompts


def piped(monkeypatch: pytest.MonkeyPatch, contents: bytes) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(contents)))
    return read_prompts(STANDARD_INPUT)


def test_standard_input_is_one_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    assert piped(monkeypatch, b"def f(x):\n\n    return\n") == ["def f(x):\n\n    return"]
    assert piped(monkeypatch, b"  x\n\n") == ["  x\n"]
    assert piped(monkeypatch, b"\xef\xbb\xbfx\n") == ["x"]


@pytest.mark.parametrize(
    ("contents", "message"), [(b"", "standard input is empty"), (b"\n", "is empty"), (b"caf\xe9", "is not UTF-8 text")]
)
def test_unusable_standard_input_is_reported(monkeypatch: pytest.MonkeyPatch, contents: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        piped(monkeypatch, contents)


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("p.txt", b" \n\n", "p.txt is empty"),
        ("p.txt", b"caf\xe9", "p.txt is not UTF-8 text"),
        ("p.jsonl", b'{"prompt": "one"}\n[1]', r"must have a JSON object with a text \"prompt\".*, not '\[1\]'"),
        ("p.jsonl", b'{"text": "one"}', 'with a text "prompt" on every line, not \'{"text'),
        ("p.jsonl", b'{"prompt": 1}', 'with a text "prompt" on every line, not \'{"prompt'),
        ("p.jsonl", b"one", "on every line; 'one' is not JSON"),
        ("p.jsonl", b'{"prompt": ' + b"[" * 100_000, "on every line; .* is nested deeper than"),
        ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', "the key 'prompt' stands twice"),
        ("p.jsonl", b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", "on every line; .* is not JSON"),
    ],
)
def test_unusable_files_are_reported(tmp_path: Path, name: str, contents: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / name)


def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--prompt_file .*nowhere.txt cannot be read: No such file or directory"):
        read_prompts(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match=r"cannot be read: it is a folder, not a file"):
        read_prompts(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match=r"cannot be read: it is a FIFO, not a file"):
        read_prompts(tmp_path / "fifo")


def test_the_tokenizer_in_the_folder_is_the_default(tmp_path: Path, sentencepiece_model: Path) -> None:
    config = tiny_config(vocab_size=512)
    with pytest.raises(UserError, match=r"has no tokenizer.model; give the tokenizer .* as --tokenizer_path"):
        matching_tokenizer(None, tmp_path, config)
    shutil.copy(sentencepiece_model, tmp_path / "tokenizer.model")
    assert matching_tokenizer(None, tmp_path, config).sha256 == load_tokenizer(str(sentencepiece_model)).sha256
    assert matching_tokenizer("bytes", tmp_path, tiny_config(vocab_size=258)).kind == "bytes"
    with pytest.raises(
        UserError, match=r"the tokenizer .*tokenizer.model has 512 ids, but the model has vocab_size 97"
    ):
        matching_tokenizer(None, tmp_path, tiny_config(vocab_size=97))
    with pytest.raises(UserError, match="the tokenizer bytes has 258 ids, but the model has vocab_size 512"):
        matching_tokenizer("bytes", tmp_path, config)


def test_a_model_with_258_ids_and_no_tokenizer_is_byte_level(tmp_path: Path) -> None:
    assert matching_tokenizer(None, tmp_path, tiny_config(vocab_size=258)).kind == "bytes"
    assert matching_tokenizer(None, tmp_path, tiny_config(vocab_size=262)).vocab_size == 262  # with sentinels


def test_the_first_token_precedes_a_prompt(sentencepiece_model: Path) -> None:
    sentencepiece = load_tokenizer(str(sentencepiece_model))
    ids = sentencepiece.encode("x")
    for first_token, lead in [(None, [1]), ("bos", [1]), ("eos", [2]), ("none", [])]:
        (prompt,) = encode_prompts(["x"], sentencepiece, first_token=first_token)
        assert (prompt.text, prompt.ids) == ("x", lead + ids)
    for first_token, lead in [(None, [257]), ("bos", [256]), ("eos", [257]), ("none", [])]:
        assert encode_prompts(["x"], ByteTokenizer(), first_token=first_token)[0].ids == [*lead, 120]


def test_all_bad_prompts_are_reported_at_once() -> None:
    with pytest.raises(UserError, match=r"a prompt is empty(.|\n)*prompt 'caf.udce9' is not text"):
        encode_prompts(["", "caf\udce9", "x"], ByteTokenizer(), first_token="none")
    assert encode_prompts([""], ByteTokenizer(), first_token="eos")[0].ids == [257]


def test_a_tokenizer_without_bos_is_reported() -> None:
    tokenizer = ByteTokenizer()
    tokenizer.bos_id = -1
    with pytest.raises(UserError, match="--first_token bos: the tokenizer has no such token; use eos or none"):
        encode_prompts(["x"], tokenizer, first_token="bos")


def test_long_prompts_are_reported_with_the_length_they_need() -> None:
    prompts = encode_prompts(["short", "x" * 20, "y" * 9], ByteTokenizer(), first_token="none")
    check_lengths(prompts, max_seq_len=21)
    with pytest.raises(UserError, match=r"prompt 'xxx.*' has 20 tokens, which .* --max_seq_len 20; raise it above 20"):
        check_lengths(prompts, max_seq_len=20)
    with pytest.raises(UserError, match=r"has 20 tokens(.|\n)*'yyyyyyyyy' has 9 tokens"):
        check_lengths(prompts, max_seq_len=9)
