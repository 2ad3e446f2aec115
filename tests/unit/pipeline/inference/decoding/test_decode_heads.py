"""Decoding with every kind of heads, compared with whole prefixes without a cache: tokens, drafts, forwards."""

from typing import Any

import torch

from pipeline.inference.decoding.decode import Decoder, decode
from pipeline.model.network import MultiTokenModel
from tests.helpers.references import all_logits, every_kind_of_heads, naive_greedy, tiny_model

VOCAB_SIZE, MAX_GEN_LEN = 8, 8  # with so few ids, some drafts of a random model are right
PROMPTS = torch.randint(VOCAB_SIZE, (16, 5), generator=torch.Generator().manual_seed(1)).tolist()


def kind_of_model(heads: dict[str, Any]) -> MultiTokenModel:
    return tiny_model(vocab_size=VOCAB_SIZE, seed=2, **heads)


@torch.no_grad()
def expected_forwards(model: MultiTokenModel, prompt: list[int], generated: list[int], *, n_heads: int) -> int:
    """Return the number of forwards that blockwise decoding needs for known tokens.

    At the newest cached position, head 0 predicts the next token, and the other heads draft the tokens after it.
    """
    tokens = prompt + generated
    predicted_TN = all_logits(model, torch.tensor([tokens]))[0].argmax(-1).tolist()
    position, n_forwards = len(prompt) - 1, 0  # after the prompt's forward
    while position + 2 < len(tokens):
        n_forwards += 1
        drafts, truth = predicted_TN[position][1:n_heads], tokens[position + 2 :]
        n_right = next((n for n, (draft, token) in enumerate(zip(drafts, truth, strict=False)) if draft != token), None)
        position += 1 + (min(len(drafts), len(truth)) if n_right is None else n_right)
    return n_forwards


@every_kind_of_heads
def test_greedy_tokens_are_the_naive_loops_whatever_heads_speculate(heads: dict[str, Any]) -> None:
    model = kind_of_model(heads)
    expected = [naive_greedy(model, prompt, n_tokens=MAX_GEN_LEN) for prompt in PROMPTS]
    for n_heads in (1, 2, 4):
        decoder = Decoder(model, max_batch_size=16, max_seq_len=16, n_heads_used=n_heads)
        generation = decode(decoder, PROMPTS, n_heads_used=n_heads, max_gen_len=MAX_GEN_LEN, stop_ids=())
        assert generation.token_ids == expected
        assert generation.forwards == [
            expected_forwards(model, prompt, tokens, n_heads=n_heads)
            for prompt, tokens in zip(PROMPTS, expected, strict=True)
        ]
        alone = decode(decoder, PROMPTS[:1], n_heads_used=n_heads, max_gen_len=MAX_GEN_LEN, stop_ids=())
        assert (alone.token_ids[0], alone.forwards[0]) == (expected[0], generation.forwards[0])
    assert sum(generation.forwards) < len(PROMPTS) * (MAX_GEN_LEN - 1), "no draft of this model was right"


@every_kind_of_heads
def test_cached_logits_of_all_heads_are_those_of_whole_sequences(heads: dict[str, Any]) -> None:
    model = kind_of_model(heads)
    tokens = torch.randint(VOCAB_SIZE, (2, 13), generator=torch.Generator().manual_seed(1))
    expected = all_logits(model, tokens)
    decoder = Decoder(model, max_batch_size=2, max_seq_len=16)
    pieces = [decoder.forward(tokens[:, a:b], a, return_all_heads=True) for a, b in [(0, 7), (7, 8), (8, 13)]]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=2e-5, rtol=1e-4)
    first = decoder.forward(tokens, 0)
    torch.testing.assert_close(first, expected[:, :, :1], atol=2e-5, rtol=1e-4)
    hidden_BTND = decoder.hidden(tokens, 0, n_heads=3)
    drafts = decoder.unembed(hidden_BTND[:, :, 1:], first_head=1)
    torch.testing.assert_close(drafts, expected[:, :, 1:3], atol=2e-5, rtol=1e-4)
