"""Tokenizers that train_tokenizer writes, and what it refuses."""

from pathlib import Path

import pytest
import sentencepiece

from common.command_line import UserError
from data_prep import train_tokenizer
from data_prep.sources.documents import ReadOptions
from data_prep.sources.listing import list_source
from data_prep.train_tokenizer import read_documents, sentences_of
from tests.conftest import run_module
from tests.helpers.shard_writing import STDLIB

JSON_PACKAGE = STDLIB / "json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    arguments = ["--input", str(JSON_PACKAGE), "--output", str(path), "--vocab_size", "600", "--num_threads", "2"]
    train_tokenizer.main(arguments)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\tif x:\n\t\treturn  1\n\n\n    # four spaces\n",
        " leading and trailing ",
        "\n\n\n",
        "\t",
        "\r\n",
        "x = 'é☃数\U0001f600'",
        "non\u00a0breaking\u2028separator\ufeff",
        "ﬁ Å ①",  # NFKC would change these
        "2024 3.14",
        "</s><s><unk>\0",
    ],
)
def test_decoding_gives_back_any_text(model: Path, text: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert processor.decode(processor.encode(text)) == text


def test_a_source_file_takes_less_than_half_as_many_tokens_as_characters(model: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    text = (JSON_PACKAGE / "decoder.py").read_text()
    tokens = processor.encode(text)
    assert processor.decode(tokens) == text
    assert len(tokens) < len(text) / 2


def test_the_model_has_the_settings_of_llama_2(model: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    specials = (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id(), processor.vocab_size())
    assert specials == (0, 1, 2, -1, 600)
    assert all(processor.is_byte(3 + byte) for byte in range(256))
    pieces = [processor.id_to_piece(i) for i in range(259, 600)]
    assert "▁▁▁▁" in pieces  # indentation
    assert any(piece.endswith("\n") and len(piece) > 1 for piece in pieces)
    assert processor.encode_as_pieces("x")[0].startswith("▁")  # the dummy prefix


def test_digits_are_single_tokens(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("value = 2024\nreturn 2024\n" * 50)
    path = tmp_path / "tokenizer.model"
    train_tokenizer.main(["--input", str(tmp_path), "--output", str(path), "--vocab_size", "280"])
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert [piece for piece in processor.encode_as_pieces("2024") if piece != "▁"] == ["2", "0", "2", "4"]


def test_the_model_does_not_depend_on_the_number_of_threads(model: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.model"
    arguments = ["--input", str(JSON_PACKAGE), "--output", str(again), "--vocab_size", "600", "--num_threads", "1"]
    train_tokenizer.main(arguments)
    assert again.read_bytes() == model.read_bytes()


def test_no_text_is_encoded_to_sentinels(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    arguments = ["--input", str(JSON_PACKAGE), "--output", str(path), "--vocab_size", "600", "--fim_tokens"]
    train_tokenizer.main(arguments)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert [processor.id_to_piece(i) for i in range(3, 7)] == ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
    assert processor.vocab_size() == 600
    text = " <PRE> <SUF>▁<MID><EOT>x"
    assert not {3, 4, 5, 6} & set(processor.encode(text))
    assert processor.decode(processor.encode(text)) == text.replace("▁", " ")
    with pytest.raises(UserError, match="--vocab_size must be at least 264 with --fim_tokens, not 263"):
        train_tokenizer.main([*arguments, "--vocab_size", "263"])


@pytest.mark.parametrize("text", ["", "short\n", "x" * 10_000, "line\n" * 3000, "é" * 2048 + "\n", "a\n" + "b" * 5000])
def test_sentences_are_the_text_in_runs_that_sentencepiece_accepts(text: str) -> None:
    sentences = list(sentences_of(text))
    assert "".join(sentences) == text
    assert all(0 < len(sentence.encode()) <= 4 * 2048 for sentence in sentences)
    cuts = sentences[:-1]
    assert all(sentence.endswith("\n") or "\n" not in sentence for sentence in cuts)


def test_only_the_character_that_sentencepiece_reserves_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    around = "rareword rareword\n" * 40
    (tmp_path / "a.py").write_text("def f(x): return x\n" * 40 + around + "# ▅▅ one ▅\n" + around)
    assert "▅" not in "".join(sentences_of((tmp_path / "a.py").read_text()))
    path = tmp_path / "tokenizer.model"
    train_tokenizer.main(["--input", str(tmp_path), "--output", str(path), "--vocab_size", "310"])
    assert "left out 3 characters U+2585, which SentencePiece reserves" in capsys.readouterr().out
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert any("rareword" in processor.id_to_piece(i) for i in range(310))
    assert processor.decode(processor.encode("a ▅ b")) == "a ▅ b"


def test_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.py").write_text("def f(x): return x\n" * 40)
    (tmp_path / "b.py").write_bytes(b"\0")
    (tmp_path / "c.py").symlink_to("a.py")
    train_tokenizer.main(["--input", str(tmp_path), "--output", str(tmp_path / "m"), "--vocab_size", "280"])
    assert "left out, of what was read: 1 binary, 1 symlink\n" in capsys.readouterr().out


def test_documents_are_chosen_from_all_over_the_corpus_and_always_the_same(tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / f"{i:03}.py").write_text(f"{i:03}" + "x" * 97)
    sources = [list_source(str(tmp_path), extensions=[".py"])]
    documents, _ = read_documents(sources, reading=ReadOptions(), max_bytes=1000)
    assert documents == read_documents(sources, reading=ReadOptions(), max_bytes=1000)[0]
    assert len(documents) == 10
    numbers = [int(document.text[:3]) for document in documents]
    assert min(numbers) < 40  # not only the last files
    assert max(numbers) > 60  # not only the first
    assert len(read_documents(sources, reading=ReadOptions(), max_bytes=10**6)[0]) == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--vocab_size": "60000"}, r"at most \d+ ids: lower --vocab_size"),
        ({"--vocab_size": "300"}, r"alone need \d+ ids: raise --vocab_size"),
        ({"--vocab_size": "100"}, r"--vocab_size must be a whole number from 260 to 65,536, not 100"),
        ({"--vocab_size": "65537"}, r"--vocab_size must be a whole number from 260 to 65,536, not 65537"),
        ({"--max_bytes": "0"}, r"--max_bytes must be a whole number from 1 to .*, not 0"),
        ({"--num_threads": "-1"}, r"--num_threads must be a whole number from 1 to .*, not -1"),
        ({"--output": "/no/such/folder/m"}, r"must be a file in a folder that exists"),
        ({"--input": "/no/such/input"}, r"'/no/such/input' does not exist"),
    ],
)
def test_mistakes_are_reported(change: dict[str, str], message: str, tmp_path: Path) -> None:
    options = {"--input": str(JSON_PACKAGE), "--output": str(tmp_path / "m"), "--vocab_size": "600"} | change
    with pytest.raises(UserError, match=message):
        train_tokenizer.main([word for option in options.items() for word in option])
    assert not (tmp_path / "m").exists()


def test_an_empty_corpus_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("\n")
    with pytest.raises(UserError, match=r"no readable documents in .* \(left out: 1 empty\)"):
        train_tokenizer.main(["--input", str(tmp_path), "--output", str(tmp_path / "m")])


def test_a_mistake_gives_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = run_module("data_prep.train_tokenizer", "--input", JSON_PACKAGE, "--output", tmp_path / "m")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "data_prep.train_tokenizer: error: --vocab_size 32000 does not fit the corpus"
    )
    assert "Traceback" not in done.stderr
    assert "sentencepiece" not in done.stderr.lower()  # the log of the library
