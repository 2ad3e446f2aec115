"""tokenizer.json loaded by transformers, compared with the sentencepiece library and with bytes."""

import json
import random
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from common.command_line import UserError
from common.sentencepieces.sentencepiece_model import merges
from data_prep import train_tokenizer
from pipeline.weights.formats.huggingface import tokenizer_json
from pipeline.weights.formats.huggingface.tokenizer_json import write_tokenizer_files
from pipeline.weights.formats.record import FirstToken
from tests.helpers.sentencepiece_models import changed, trained

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
TEXTS = [
    "", " ", "  ", "a", " a", "a ", "   leading", "trailing   ", "a  b   c", " " * 500, "\t\tx = 1\n", "\n\n\n", "\r\n",
    "\r", "a\r\nb\r\n", "\0", "a\0b", "\x7f\x80\u0085", "é", "e\u0301", "\u0301", "\u0301\u0302 \u0303", "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0010ffff", "数学", "\u00a0", "\u2028",
    "\ufeff", "\ufb01 Å \u2460", "\u2581", "\u2581a \u2581 b\u2581", " \u2581\u2581 ", "\ufffd", "\u200f\u05d0",
    "<s>", "</s>", "<unk>", "a</s>b", "</s></s> <s>x", " </s> ", "\u2581</s>", "<0x0A>", "x<0x0A>y", "<0x00><0xFF>",
    "0123456789", "3.14e-10", "a" * 999, "ab" * 500, "=" * 333, "\n" * 99 + " " * 99 + "\t" * 99, "Don 't , stop .",
]  # fmt: skip


def written(model: Path | None, folder: Path, *, first_token: FirstToken = "eos") -> PreTrainedTokenizerFast:
    folder.mkdir()
    write_tokenizer_files(model, folder, first_token=first_token)
    return AutoTokenizer.from_pretrained(str(folder))


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.fixture(scope="module")
def source_files() -> list[str]:
    """About 3 MB of whole files of the standard library."""
    paths = sorted(path for path in STANDARD_LIBRARY.rglob("*.py") if "site-packages" not in path.parts)
    random.Random(1).shuffle(paths)
    texts: list[str] = []
    while sum(map(len, texts)) < 2_500_000:
        texts.append(paths.pop().read_bytes().decode("utf-8", errors="replace"))
    return texts


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model that this project trains, one with Llama 2's settings, one without a space before the text."""
    folder = tmp_path_factory.mktemp("models")
    arguments = ["--input", str(STANDARD_LIBRARY / "asyncio"), "--output", str(folder / "own"), "--vocab_size", "2000"]
    train_tokenizer.main([*arguments, "--num_threads", "2"])
    lines = [line for path in (STANDARD_LIBRARY / "json").glob("*.py") for line in path.read_text().splitlines()]
    return {
        "own": folder / "own",
        "llama2": trained(folder / "llama2", lines),
        "no_prefix": trained(folder / "no_prefix", lines, add_dummy_prefix=False, vocab_size=600),
    }


@pytest.mark.parametrize("name", ["own", "llama2", "no_prefix"])
def test_ids_and_texts_are_those_of_sentencepiece(
    name: str, models: dict[str, Path], source_files: list[str], tmp_path: Path
) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(models[name]))
    tokenizer = written(models[name], tmp_path / "hf")
    for text in [*TEXTS, *source_files]:
        expected = reference.encode(text)
        assert ids_of(tokenizer, text) == expected
        assert tokenizer.decode(expected) == reference.decode(expected)
    assert tokenizer(TEXTS, add_special_tokens=False).input_ids == reference.encode(TEXTS)
    assert len(tokenizer) == reference.vocab_size()
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == models[name].read_bytes()


@pytest.mark.parametrize("name", ["own", "llama2"])
def test_pieces_may_come_in_any_order(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(models[name]))
    tokenizer = written(models[name], tmp_path / "hf")
    pieces = [reference.id_to_piece(i).replace("\u2581", " ") for i in range(reference.vocab_size())]
    random_ = random.Random(2)
    for _ in range(3000):
        few = random_.sample(pieces, 3)
        text = "".join(random_.choices(few if random_.random() < 0.5 else pieces, k=random_.randint(1, 12)))
        assert ids_of(tokenizer, text) == reference.encode(text), text


def test_nothing_is_merged_into_the_name_of_a_special_token(tmp_path: Path) -> None:
    lines = [
        "q</s z>",
        "b</s y>",
        "c</s y>",
        "d</s y>",
    ] * 50  # whole names of special tokens would be left out of the training
    model = trained(tmp_path / "m", lines, vocab_size=300, hard_vocab_limit=False, split_by_unicode_script=False)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert reference.encode_as_pieces("x</s>")[-2:] == ["</s", ">"]  # otherwise the test would show nothing
    assert ids_of(written(model, tmp_path / "hf"), "x</s>") == reference.encode("x</s>")


@pytest.mark.parametrize(("first_token", "lead", "bos"), [("bos", [1], 1), ("eos", [2], 2), ("none", [], None)])
def test_the_first_token(
    first_token: FirstToken, lead: list[int], bos: int | None, models: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = written(models["llama2"], tmp_path / "hf", first_token=first_token)
    ids = ids_of(tokenizer, "x = 1")
    assert tokenizer("x = 1").input_ids == [*lead, *ids]
    assert tokenizer("x = 1", "x = 1").input_ids == [*lead, *ids] * 2
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (bos, 2, 0)
    assert set(tokenizer("x")) == {"input_ids", "attention_mask"}


def test_special_ids_are_special_and_special_texts_are_not(models: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = written(models["own"], tmp_path / "hf")
    ids = [1, *ids_of(tokenizer, " x</s>"), 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == " x</s>"
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]
    alone = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    alone.encode_special_tokens = True
    assert alone.encode("a</s>", add_special_tokens=False).ids == ids_of(tokenizer, "a</s>")


@pytest.mark.parametrize("name", ["own", "llama2", "no_prefix"])
def test_characters_beside_broken_ones_are_kept(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    """As the sentencepiece library keeps them."""
    reference = sentencepiece.SentencePieceProcessor(model_file=str(models[name]))
    tokenizer = written(models[name], tmp_path / "hf")
    byte = {value: reference.piece_to_id(f"<0x{value:02X}>") for value in range(256)}
    word, snowman = reference.encode("x"), [byte[value] for value in "\N{SNOWMAN}".encode()]
    for control in (0x00, 0x01, 0x0B, 0x7F):
        for ids in (
            [byte[control], byte[0xF0]],
            [byte[0xF0], byte[control]],
            [*word, byte[0xF0], byte[control], byte[control], *word],
            [byte[control], *snowman, *word, byte[0xE2]],
        ):
            assert tokenizer.decode(ids) == reference.decode(ids)


@pytest.mark.parametrize("name", ["own", "llama2", "no_prefix"])
def test_a_model_without_a_space_before_the_text_says_so(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(models[name]))
    expected = None if reference.encode_as_pieces("x")[0].startswith("\u2581") else False
    written(models[name], tmp_path / "hf")
    values = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert values.get("add_prefix_space") == expected


def test_bytes_are_the_bytes(source_files: list[str], tmp_path: Path) -> None:
    tokenizer = written(None, tmp_path / "hf")
    for text in [*TEXTS, *source_files[:20]]:
        ids = list(text.encode())
        assert ids_of(tokenizer, text) == ids
        assert tokenizer("").input_ids + ids == tokenizer(text).input_ids == [257, *ids]
        assert tokenizer.decode([256, *ids, 257], skip_special_tokens=True) == text
    assert tokenizer.decode([0xC3, 0x28]) == "\N{REPLACEMENT CHARACTER}("
    assert (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id) == (258, 257, 257)
    assert tokenizer.convert_tokens_to_ids(["<s>", "</s>"]) == [256, 257]
    assert not (tmp_path / "hf" / "tokenizer.model").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "model_type is UNIGRAM, not BPE"),
        ({"byte_fallback": False}, "byte_fallback is off"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalization_rule_name is nmt_nfkc, not identity"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is on"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix is on"),
        ({"user_defined_symbols": ["def"]}, "it has user_defined_symbols"),
        ({"eos_id": -1}, "has no EOS id"),
    ],
)
def test_other_kinds_of_models_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    lines = ["def f(x): return x + 1", "hello world " * 9]
    model = trained(tmp_path / "m", lines, vocab_size=300, hard_vocab_limit=False, **options)
    with pytest.raises(UserError, match=message):
        write_tokenizer_files(model, tmp_path, first_token="eos")
    assert not (tmp_path / "tokenizer.json").exists()


def _unused(proto: Any) -> None:
    proto.pieces[300].type = proto.SentencePiece.UNUSED


def _same_scores(proto: Any) -> None:
    proto.pieces[300].score = proto.pieces[301].score


def _plain_spaces(proto: Any) -> None:
    proto.normalizer_spec.escape_whitespaces = False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_unused, "it has unused pieces"),
        (_same_scores, "two pieces have the same score"),
        (_plain_spaces, "escape_whitespaces is off"),
    ],
)
def test_changed_models_are_refused(
    change: Callable[[Any], None], message: str, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_tokenizer_files(changed(models["llama2"], change), tmp_path, first_token="eos")


def test_a_bos_that_the_model_does_not_have_cannot_come_first(tmp_path: Path) -> None:
    model = trained(tmp_path / "m", ["def f(x): return x"], vocab_size=300, hard_vocab_limit=False, bos_id=-1)
    with pytest.raises(UserError, match="has no BOS; use eos or none"):
        write_tokenizer_files(model, tmp_path, first_token="bos")
    assert written(model, tmp_path / "hf").bos_token_id == 2


def test_wrong_ids_are_not_published(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_the_last(proto: Any) -> list[tuple[str, str]]:
        return merges(proto)[:-1]

    monkeypatch.setattr(tokenizer_json, "merges", without_the_last)
    with pytest.raises(RuntimeError, match=r"has the ids .* but transformers has"):
        write_tokenizer_files(models["own"], tmp_path, first_token="eos")
