"""gigatoken compared with the sentencepiece library, on real code and on texts that tokenizers disagree about."""

import random
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gigatoken
import numpy as np
import pytest
import sentencepiece

from common.sentencepieces import fast_tokens
from common.sentencepieces.fast_tokens import EngineUnavailable, first_difference
from common.tokenizers import GigatokenTokenizer, load_tokenizer
from data_prep import train_tokenizer
from tests.conftest import REPOSITORY
from tests.helpers.sentencepiece_models import changed, trained

STDLIB = Path(sysconfig.get_path("stdlib"))
ATOMS = (
    "<s>", "</s>", "<unk>", "<pad>", "<0x0A>", "<0x00>", "<0x", "0A>", "\N{LOWER ONE EIGHTH BLOCK}", " ", "  ",
    "    ", "\n", "\n\n\n", "\r\n", "\r", "\t", "\0", "\x7f", "é", "e\u0301",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "数", "\ufeff", "\u2028", "\u00a0", "\u200b", "\ufb01", "\U0010ffff",
    "a", "def ", "return", "self.", "x" * 7, "=" * 5, "0", "12", "_", "__init__", "\\",
)  # fmt: skip
LONG = [
    atom * (60_000 // len(atom)) for atom in (" ", "\n", "=", "x", "ab", "\N{LOWER ONE EIGHTH BLOCK}", "👩‍👩‍👧", "\0")
]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return [line for path in (STDLIB / "asyncio").glob("*.py") for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> dict[str, Path]:
    """A model that this project trains, one with Llama 2's settings, and one that adds no space before the text."""
    folder = tmp_path_factory.mktemp("models")
    arguments = ["--input", str(STDLIB / "asyncio"), "--output", str(folder / "own"), "--vocab_size", "3000"]
    train_tokenizer.main([*arguments, "--num_threads", "1"])
    return {
        "own": folder / "own",
        "llama2": trained(folder / "llama2", lines, vocab_size=3000),
        "no_prefix": trained(folder / "no_prefix", lines, add_dummy_prefix=False, vocab_size=3000),
    }


def differing(model: Path, texts: Sequence[str]) -> list[str]:
    """Return the texts for which the fast tokenizer does not produce sentencepiece's ids."""
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokenizer = load_tokenizer(str(model), engine="gigatoken")
    assert isinstance(tokenizer, GigatokenTokenizer)
    return [text for text in texts if tokenizer.encode_array(text).tolist() != reference.encode(text)]


@pytest.mark.parametrize("name", ["own", "llama2"])
def test_ids_of_the_standard_library_are_sentencepieces(name: str, models: dict[str, Path]) -> None:
    paths = sorted(path for path in STDLIB.rglob("*.py") if "site-packages" not in path.parts)
    texts = [path.read_bytes().decode("utf-8", errors="replace") for path in paths[:: 2 if name == "own" else 5]]
    assert sum(map(len, texts)) > 4_000_000
    assert differing(models[name], texts) == []


@pytest.mark.parametrize("name", ["own", "llama2", "no_prefix"])
def test_ids_of_hostile_texts_are_sentencepieces(name: str, models: dict[str, Path]) -> None:
    draw = random.Random(1)
    mixed = ["".join(draw.choices(ATOMS, k=draw.randint(1, 40))) for _ in range(4000)]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(models[name]))
    pieces = [processor.id_to_piece(index) for index in range(processor.vocab_size())]
    joined = ["".join(draw.choices(pieces, k=draw.randint(1, 20))) for _ in range(4000)]
    assert differing(models[name], ["", *ATOMS, *pieces, *LONG, *mixed, *joined]) == []


def test_the_cache_of_the_engine_is_bounded(
    models: dict[str, Path], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    build = gigatoken.Tokenizer.from_json

    def counted(text: str) -> Any:
        built.append(text)
        return build(text)

    monkeypatch.setattr(gigatoken.Tokenizer, "from_json", counted)
    monkeypatch.setattr(fast_tokens, "_CHARACTERS_CACHED", 10**6)
    text = "\n".join(lines)[:100_000]
    encode = fast_tokens.fast_encoder(models["own"].read_bytes())
    expected = sentencepiece.SentencePieceProcessor(model_file=str(models["own"])).encode(text)
    assert [encode(text).tolist() == expected for _ in range(30)] == [True] * 30
    assert 2 <= len(built) - 1 <= 3


def test_only_the_engine_of_the_fast_tokenizer_differs(models: dict[str, Path]) -> None:
    fast = load_tokenizer(str(models["own"]), engine="gigatoken")
    slow = load_tokenizer(str(models["own"]))
    for name in ("kind", "vocab_size", "bos_id", "eos_id", "sha256"):
        assert getattr(fast, name) == getattr(slow, name)
    assert (slow.is_reference, fast.is_reference) == (True, False)
    assert fast.versions.keys() - slow.versions.keys() == {"gigatoken"}
    assert fast.decode(fast.encode("def f(x):")) == "def f(x):"


def _equal_scores(proto: Any) -> None:
    normal = [piece for piece in proto.pieces if piece.type == piece.NORMAL]
    normal[0].score = normal[1].score


def _user_defined(proto: Any) -> None:
    proto.pieces[300].type = proto.SentencePiece.USER_DEFINED


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_equal_scores, "two pieces have the same score"),
        (_user_defined, "it has user_defined_symbols"),
        (lambda proto: setattr(proto.normalizer_spec, "remove_extra_whitespaces", True), "remove_extra_whitespaces"),
    ],
)
def test_unsupported_models_are_refused_with_the_reason(
    change: Callable[[Any], None], reason: str, models: dict[str, Path]
) -> None:
    with pytest.raises(EngineUnavailable, match=f"does not support this model: .*{reason}"):
        load_tokenizer(str(changed(models["llama2"], change)), engine="gigatoken")


def test_other_kinds_of_models_are_left_to_sentencepiece(lines: list[str], tmp_path: Path) -> None:
    unigram = trained(tmp_path / "unigram", lines, model_type="unigram")
    normalizing = trained(tmp_path / "nfkc", lines, normalization_rule_name="nmt_nfkc")
    no_bytes = trained(tmp_path / "no_bytes", lines, byte_fallback=False)
    reasons = {
        unigram: "model_type is UNIGRAM, not BPE",
        normalizing: "normalization_rule_name is nmt_nfkc, not identity",
        no_bytes: "byte_fallback is off",
    }
    for path, reason in reasons.items():
        with pytest.raises(EngineUnavailable, match=reason):
            load_tokenizer(str(path), engine="gigatoken")


@pytest.mark.parametrize(
    ("ids", "expected", "position"),
    [([], [], None), ([1, 2], [1, 2], None), ([1, 3], [1, 2], 1), ([1], [1, 2], 1), ([1, 2], [1], 1), ([], [4], 0)],
)
def test_the_first_difference(ids: list[int], expected: list[int], position: int | None) -> None:
    assert first_difference(np.array(ids, np.uint16), np.array(expected, np.int32)) == position


def test_workers_and_the_fast_tokenizer_import_nothing_heavy(models: dict[str, Path]) -> None:
    code = (
        "import sys, data_prep.shards.part_writer; from common.tokenizers import load_tokenizer\n"
        f"load_tokenizer({str(models['own'])!r}, engine='gigatoken').encode_array('a')\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "gigatoken" in done.stdout.split()
    assert {"torch", "transformers", "streaming", "tokenizers", "awkward"}.isdisjoint(done.stdout.split())
