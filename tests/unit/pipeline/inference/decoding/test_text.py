"""The text of a completion token by token, compared with decoding all tokens at once."""

import io
import random
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece

from common.tokenizers import Tokenizer, load_tokenizer
from pipeline.inference.decoding.text import CompletionText, cut_at_stop

TEXT = "def f(x):\n        return '  é☃😀'  # 数\n\n\n\t  the  end   \ufffd"


@pytest.fixture(scope="session")
def lossy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with the library's defaults: it normalizes, drops spaces, and has few characters."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["def f(x): return the end", "a hat and a bat"] * 20), model_writer=model, vocab_size=48,
        model_type="bpe", minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("lossy") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(params=["bytes", "sentencepiece", "lossy"])
def tokenizer(request: pytest.FixtureRequest, sentencepiece_model: Path, lossy_model: Path) -> Tokenizer:
    return load_tokenizer(
        {"bytes": "bytes", "sentencepiece": str(sentencepiece_model)}.get(request.param, str(lossy_model))
    )


def at_once(tokenizer: Tokenizer, prompt_ids: list[int], token_ids: list[int]) -> str:
    return tokenizer.decode([*prompt_ids, *token_ids])[len(tokenizer.decode(prompt_ids)) :]


def assert_text_is_that_of_all_tokens_at_once(tokenizer: Tokenizer, prompt_ids: list[int], ids: list[int]) -> None:
    text = CompletionText(prompt_ids, tokenizer)
    settled = [text.settled]
    for n_tokens, token_id in enumerate(ids, start=1):
        assert not text.extend([token_id])
        assert text.text == at_once(tokenizer, prompt_ids, ids[:n_tokens])
        settled.append(text.settled)
    settled.append(text.text)
    assert all(later.startswith(earlier) for earlier, later in pairwise(settled))


@pytest.mark.parametrize("seed", range(20))
def test_random_tokens(tokenizer: Tokenizer, seed: int) -> None:
    """Mostly parts of characters, special tokens and spaces, in an order that does not occur in texts."""
    draw = random.Random(seed)
    blank = [tokenizer.bos_id, tokenizer.eos_id, *tokenizer.encode("    \n\n"), *tokenizer.encode("a b")]
    prompt_ids = [tokenizer.bos_id, *tokenizer.encode(draw.choice(["", " ", "x", "x ", "é", "the end\n"]))]
    ids = [draw.choice([draw.randrange(tokenizer.vocab_size), draw.choice(blank)]) for _ in range(60)]
    assert_text_is_that_of_all_tokens_at_once(tokenizer, prompt_ids, ids)


@pytest.mark.parametrize("prompt", ["", " ", "a", "a ", "\n", "é"])
def test_text_in_pieces(tokenizer: Tokenizer, prompt: str) -> None:
    prompt_ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    ids = tokenizer.encode(prompt + TEXT)[len(prompt_ids) - 1 :]
    assert_text_is_that_of_all_tokens_at_once(tokenizer, prompt_ids, [*ids, tokenizer.eos_id])


def test_a_character_is_settled_when_it_is_complete() -> None:
    tokenizer = load_tokenizer("bytes")
    text = CompletionText([tokenizer.eos_id], tokenizer)
    settled = []
    for byte in "aé😀b".encode():
        text.extend([byte])
        settled.append(text.settled)
    assert settled == ["a", "a", "aé", "aé", "aé", "aé", "aé😀", "aé😀b"]


def test_a_sentencepiece_completion_keeps_its_leading_space(sentencepiece_model: Path) -> None:
    tokenizer = load_tokenizer(str(sentencepiece_model))
    token_ids = tokenizer.encode("return self")
    assert tokenizer.decode(token_ids) == "return self"
    text = CompletionText([tokenizer.bos_id, *tokenizer.encode("def f(x):")], tokenizer)
    text.extend([*token_ids, tokenizer.eos_id])
    assert text.text == " return self"


def spoken(text: str, *stops: str, step: int) -> CompletionText:
    """Feed a text in blocks of `step` bytes until it stops, and check that settled text never changes."""
    completion = CompletionText([65], load_tokenizer("bytes"), stops=stops)
    for first in range(0, len(text), step):
        before = completion.settled
        has_ended = completion.extend(text.encode()[first : first + step])
        assert completion.settled.startswith(before)
        if has_ended:
            break
    return completion


@pytest.mark.parametrize("step", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("stops", "expected", "n_tokens"),
    [
        (["\ndef"], "x\n  de\nde", 13),
        (["\n\n", "def"], "x\n  de\nde\n", 13),
        (["b", "abc"], "x\n  de\nde\ndef a", 16),  # of overlapping stop texts, the one completed first
        (["x"], "", 1),
        (["def a", "nowhere"], "x\n  de\nde\n", 15),
        (["nowhere", "abcd"], "x\n  de\nde\ndef abc\nd", 19),
    ],
)
def test_a_stop_text_ends_the_completion_and_is_cut_off(
    stops: list[str], expected: str, n_tokens: int, step: int
) -> None:
    """Independently of how many tokens come at once."""
    completion = spoken("x\n  de\nde\ndef abc\nd", *stops, step=step)
    assert (completion.text, len(completion.token_ids)) == (expected, n_tokens)
    assert completion.is_stopped == ("abcd" not in stops)


def test_a_possible_start_of_a_stop_text_is_not_settled() -> None:
    tokenizer = load_tokenizer("bytes")
    text = CompletionText([65], tokenizer, stops=["\n\n#"])
    settled = []
    for byte in b"a\n\n\nb\n":
        text.extend([byte])
        settled.append(text.settled)
    assert settled == ["a", "a", "a", "a\n", "a\n\n\nb", "a\n\n\nb"]
    assert text.text == "a\n\n\nb\n"


def test_a_stop_text_in_the_prompt_ends_nothing() -> None:
    text = CompletionText(list(b"END"), load_tokenizer("bytes"), stops=["END", "ND!"])
    assert not text.extend(b"!")
    assert text.text == "!"


def test_cut_at_stop_takes_the_first() -> None:
    assert cut_at_stop("one two three", ["three", "two", "four"]) == "one "
    assert cut_at_stop("one two", []) == "one two"
    assert cut_at_stop("one two", ["four"]) == "one two"
