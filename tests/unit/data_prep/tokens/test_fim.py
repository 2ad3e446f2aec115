"""Fill-in-the-middle, compared with SentencePiece called directly and with the method of Code Llama's own code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from common.command_line import UserError
from data_prep.filters.digests import digest
from data_prep.tokens.fim import (
    SENTINEL_PIECES,
    CutDocument,
    FimOptions,
    FimTokenizer,
    cut_document,
    fim_segments,
    load_fim_tokenizer,
    segments_of,
)
from tests.helpers.sentencepiece_models import small_code_model

TEXTS = [
    "def f(x):\n\treturn x  # é☃\U0001f600\r\n",
    "  two  spaces  ",
    "x",
    " <PRE>a <SUF>b <MID>c <EOT><PRE></s><s>",
    "▁".join(SENTINEL_PIECES).replace("▁", " "),
    "\n\n\t",
    "for i in range(10):\n    total += i * 0.5\n" * 20,
]


@pytest.fixture(scope="module", params=["control", "user_defined"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a model whose sentinels cannot come from text, and one whose sentinels can."""
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    return small_code_model(path, **{f"{request.param}_symbols": list(SENTINEL_PIECES)})


def ids_of(text: str, tokenizer: FimTokenizer, options: FimOptions) -> list[int]:
    segments = fim_segments(text, digest(text.encode()), tokenizer, options)
    assert segments is not None
    return [int(i) for segment in segments for i in (*segment.sentinels, *segment.tokenizer.encode_array(segment.text))]


def recovered(ids: Sequence[int], tokenizer: FimTokenizer) -> str:
    """Return the document, recovered from its tokens alone."""
    names = {getattr(tokenizer.sentinels, name): name for name in ("prefix", "suffix", "middle", "end")}
    parts: list[tuple[str, list[int]]] = []
    for i in ids:
        if i in names:
            parts.append((names[i], []))
        else:
            parts[-1][1].append(i)
    assert [name for name, _ in parts] == ["prefix", "suffix", "middle", "end"]
    (_, prefix), (_, suffix), (_, middle), (_, rest) = parts
    assert rest == []
    is_spm = ids[1] == tokenizer.sentinels.suffix and bool(middle) and not prefix
    start, further = tokenizer.start.decode, tokenizer.further.decode
    if is_spm:  # with an empty prefix, the middle begins the document but is encoded like a text further on
        return start(middle) + further(suffix)
    return start(prefix) + further(middle) + further(suffix)


@pytest.mark.parametrize("spm_rate", [0.0, 1.0])
@pytest.mark.parametrize("name", ["bytes", "model"])
def test_a_document_comes_back_from_its_tokens(name: str, spm_rate: float, model: str) -> None:
    tokenizer = load_fim_tokenizer(model if name == "model" else name, engine="sentencepiece")
    for text in TEXTS:
        for seed in range(20):
            options = FimOptions(1.0, spm_rate, seed)
            cut = cut_document(text, digest(text.encode()), options)
            assert cut is not None
            assert cut.prefix + cut.middle + cut.suffix == text
            if cut.prefix or spm_rate == 1.0:
                assert recovered(ids_of(text, tokenizer, options), tokenizer) == text


@pytest.mark.parametrize("text", TEXTS)
def test_the_orders_are_those_of_code_llama(text: str, tmp_path: Path) -> None:
    """Code Llama's code encodes a text that does not begin the document after a smiley, and drops the smiley's ids."""
    name = small_code_model(tmp_path / "m", control_symbols=list(SENTINEL_PIECES))
    reference = sentencepiece.SentencePieceProcessor(model_file=name)
    pre, suf, mid, eot = (reference.piece_to_id(piece) for piece in SENTINEL_PIECES)

    def further(part: str) -> list[int]:
        return reference.encode("☺" + part)[2:]

    tokenizer = load_fim_tokenizer(name, engine="sentencepiece")
    for seed in range(10):
        cut = cut_document(text, digest(text.encode()), FimOptions(1.0, 0.0, seed))
        assert cut is not None
        prefix, suffix = reference.encode(cut.prefix), further(cut.suffix)
        psm = [pre, *prefix, suf, *suffix, mid, *further(cut.middle), eot]
        assert ids_of(text, tokenizer, FimOptions(1.0, 0.0, seed)) == psm
        spm = [pre, suf, *suffix, mid, *reference.encode(cut.prefix + cut.middle), eot]
        assert ids_of(text, tokenizer, FimOptions(1.0, 1.0, seed)) == spm


def test_bytes_have_sentinels_after_eos() -> None:
    tokenizer = load_fim_tokenizer("bytes", engine="sentencepiece")
    text = "añ☃z"
    cut = cut_document(text, b"16 bytes of hash", FimOptions(1.0, 0.0, 3))
    assert cut is not None
    segments = fim_segments(text, b"16 bytes of hash", tokenizer, FimOptions(1.0, 0.0, 3))
    assert segments is not None
    ids = [i for segment in segments for i in (*segment.sentinels, *segment.tokenizer.encode(segment.text))]
    prefix, middle, suffix = (list(part.encode()) for part in (cut.prefix, cut.middle, cut.suffix))
    assert ids == [258, *prefix, 259, *suffix, 260, *middle, 261]
    assert tokenizer.start.vocab_size == 262


def test_no_text_is_encoded_as_a_sentinel(model: str) -> None:
    raw = sentencepiece.SentencePieceProcessor(model_file=model)
    sentinels = {raw.piece_to_id(piece) for piece in SENTINEL_PIECES}
    for engine in ("sentencepiece", "gigatoken"):
        tokenizer = load_fim_tokenizer(model, engine=engine)
        for text in TEXTS:
            for of in (tokenizer.start, tokenizer.further):
                assert not sentinels & set(of.encode_array(text).tolist())
                assert of.encode_array(text).tolist() == of.encode(text)
        for text in TEXTS[:3]:
            assert tokenizer.start.encode(text) == raw.encode(text)


def test_rates_and_cuts_are_distributed_as_documented() -> None:
    n = 5000
    options = FimOptions(0.3, 0.25, 7)
    cuts = [cut_document("x" * 99, digest(str(i).encode()), options) for i in range(n)]
    filled = [cut for cut in cuts if cut is not None]
    assert abs(len(filled) / n - 0.3) < 0.03
    assert abs(sum(cut.order == "spm" for cut in filled) / len(filled) - 0.25) < 0.05
    for lengths, mean in (
        ([len(cut.prefix) for cut in filled], 33),  # the mean of the three parts between two uniform cuts
        ([len(cut.middle) for cut in filled], 33),
        ([len(cut.suffix) for cut in filled], 33),
    ):
        assert min(lengths) == 0
        assert abs(sum(lengths) / len(lengths) - mean) < 3
    assert cuts == [cut_document("x" * 99, digest(str(i).encode()), options) for i in range(n)]
    others = [cut_document("x" * 99, digest(str(i).encode()), FimOptions(0.3, 0.25, 8)) for i in range(n)]
    both = sum(a is not None and b is not None for a, b in zip(cuts, others, strict=True))
    assert abs(both / n - 0.09) < 0.02  # another seed chooses other documents
    assert all(cut_document("x", digest(bytes([i])), FimOptions(1.0, 0.5, 0)) is not None for i in range(256))


@pytest.mark.parametrize("options", [{}, {"control_symbols": list(SENTINEL_PIECES[:3])}])
def test_a_tokenizer_without_sentinels_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    name = small_code_model(tmp_path / "m", **options)
    with pytest.raises(UserError, match=r"has no piece .*▁<EOT>; train one with .*--fim_tokens, use --tokenizer byte"):
        load_fim_tokenizer(name, engine="sentencepiece")


def test_an_empty_prefix_does_not_begin_the_document() -> None:
    """With a cut before the first character, the middle is encoded like a text further on, as in Code Llama."""
    segments = segments_of(CutDocument("", "ab", "c", "psm"), load_fim_tokenizer("bytes", engine="sentencepiece"))
    assert [segment.text for segment in segments] == ["", "c", "ab", ""]
