"""Speculation with early layers, compared with loops without a cache, and counts of the layers that ran."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.inference.decoding.blockwise import Generation, decode_blockwise
from pipeline.inference.decoding.decode import Decoder
from pipeline.inference.decoding.layer_skip import LayerSkipDrafter
from pipeline.model.layers import training_rotary
from pipeline.model.network import MultiTokenModel
from tests.helpers.decoding import PROMPTS, assert_samples_are_the_models
from tests.helpers.references import every_kind_of_heads, naive_greedy, tiny_model


def run(
    model: MultiTokenModel, prompts: list[list[int]], *, exit_layer: int, n_drafts: int, max_seq_len: int = 32,
    max_gen_len: int = 20, **changes: Any,
) -> Generation:  # fmt: skip
    decoder = Decoder(model, max_batch_size=len(prompts), max_seq_len=max_seq_len, n_heads_used=1, max_drafts=n_drafts)
    drafter = LayerSkipDrafter(decoder, exit_layer=exit_layer, n_drafts=n_drafts)
    return decode_blockwise(drafter, prompts, **{"max_gen_len": max_gen_len, "stop_ids": (), **changes})


@torch.no_grad()
def early_drafts(model: MultiTokenModel, tokens: list[int], *, exit_layer: int, n_drafts: int) -> list[int]:
    """Return the drafts of the early layers after `tokens`, without a cache.

    The head reads the whole trunk's output for all tokens but the newest, and the early layers' output for the newest
    token and the drafts.
    """
    n_verified, drafts = len(tokens) - 1, []
    for _ in range(n_drafts):
        rotary = training_rotary(len(tokens), model.config, device=torch.device("cpu"))
        hidden_1TD = model.trunk.tok_embeddings(torch.tensor([tokens]))
        states = [hidden_1TD := layer(hidden_1TD, rotary) for layer in model.trunk.layers]
        mixed_1TD = torch.cat((states[-1][:, :n_verified], states[exit_layer - 1][:, n_verified:]), dim=1)
        hidden_1TD = model.heads.layers[0](mixed_1TD, rotary)
        drafts.append(int(model.heads.output(model.heads.norm(hidden_1TD[:, -1])).argmax()))
        tokens = [*tokens, drafts[-1]]
    return drafts


def expected_blocks(
    model: MultiTokenModel, prompt: list[int], text: list[int], *, exit_layer: int, n_drafts: int
) -> list[int]:
    """Return how many drafts of each block agree with `text`, the tokens of the whole model."""
    agreeing, position, max_gen_len = [], 1, 20
    while position < max_gen_len:
        drafts = early_drafts(model, prompt + text[:position], exit_layer=exit_layer, n_drafts=n_drafts)
        truth = text[position : position + n_drafts]
        agreeing.append(
            next((n for n, pair in enumerate(zip(drafts, truth, strict=True)) if pair[0] != pair[1]), n_drafts)
        )
        position += agreeing[-1] + 1
    return agreeing


@pytest.mark.parametrize("n_drafts", [1, 2, 4])
@pytest.mark.parametrize("exit_layer", [1, 2, 3])
def test_tokens_are_the_naive_loops_and_drafts_those_of_early_layers(exit_layer: int, n_drafts: int) -> None:
    model = tiny_model(n_layers=8, vocab_size=11, seed=2)
    prompts = [[token % 11 for token in prompt] for prompt in PROMPTS]
    texts = [naive_greedy(model, prompt, n_tokens=20 + n_drafts) for prompt in prompts]
    generation = run(model, prompts, exit_layer=exit_layer, n_drafts=n_drafts)
    assert generation.token_ids == [text[:20] for text in texts]
    for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        blocks = expected_blocks(model, prompt, text, exit_layer=exit_layer, n_drafts=n_drafts)
        assert generation.forwards[index] == len(blocks)
        assert generation.accepted[index] == [sum(n > draft for n in blocks) for draft in range(n_drafts)]
    assert 0 < sum(map(sum, generation.accepted)) < n_drafts * sum(generation.forwards)


@every_kind_of_heads
def test_tokens_are_the_naive_loops_whatever_the_heads(heads: dict[str, Any]) -> None:
    model = tiny_model(vocab_size=11, seed=2, **heads)
    generation = run(model, [[1, 2], [3]], exit_layer=1, n_drafts=3, max_gen_len=8)
    assert generation.token_ids == [naive_greedy(model, prompt, n_tokens=8) for prompt in ([1, 2], [3])]


def test_a_block_runs_each_layer_once_over_each_token_and_the_head_twice() -> None:
    model = tiny_model(n_layers=8)
    n_tokens: Counter[int] = Counter()

    def count(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        n_tokens[layers.index(layer)] += arguments[0].shape[1]

    layers = [*model.trunk.layers, model.heads.layers[0]]
    for layer in layers:
        layer.register_forward_pre_hook(count)
    generation = run(model, [[1, 2, 3, 4, 5]], exit_layer=2, n_drafts=3)
    in_blocks = 4 * generation.forwards[0]
    assert [n_tokens[index] - 5 for index in range(4)] == [
        in_blocks
    ] * 4  # trunk layers, without the 5 tokens of the prompt
    assert n_tokens[4] - 5 == in_blocks + 3 * generation.forwards[0]


def test_all_drafts_are_accepted_if_the_skipped_layers_add_nothing() -> None:
    model = tiny_model(n_layers=8)
    for layer in list(model.trunk.layers)[2:]:
        for name in ("attention.wo.weight", "feed_forward.w2.weight"):
            nn.init.zeros_(layer.get_parameter(name))
    generation = run(model, PROMPTS[:2], exit_layer=2, n_drafts=3, max_gen_len=13)
    assert generation.token_ids == [naive_greedy(model, prompt, n_tokens=13) for prompt in PROMPTS[:2]]
    assert generation.forwards == [3, 3]
    assert generation.accepted == [[3, 3, 3]] * 2
    assert generation.tokens_per_forward == [4, 4]


def test_blocks_may_reach_past_the_longest_sequence() -> None:
    model = tiny_model()
    generation = run(model, [[1, 2, 3], [4]], exit_layer=1, n_drafts=7, max_seq_len=9, max_gen_len=100)
    assert generation.token_ids == [naive_greedy(model, [1, 2, 3], n_tokens=6), naive_greedy(model, [4], n_tokens=8)]


@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}], ids=str)
def test_sampled_tokens_have_the_models_distribution(sampling: dict[str, float]) -> None:
    assert_samples_are_the_models(
        lambda model, prompts, n_tokens, settings: run(
            model, prompts, exit_layer=1, n_drafts=2, max_gen_len=n_tokens, sampling=settings
        ),
        sampling,
    )


def test_impossible_exit_layers_and_draft_lengths_are_refused() -> None:
    model = tiny_model(n_layers=8)
    for exit_layer in (0, 4):
        with pytest.raises(ValueError, match=f"exit_layer={exit_layer} must be 1 to 3"):
            run(model, PROMPTS, exit_layer=exit_layer, n_drafts=1)
    decoder = Decoder(model, max_batch_size=1, max_seq_len=8, max_drafts=2)
    for n_drafts in (0, 3):
        with pytest.raises(ValueError, match=f"n_drafts={n_drafts} must be 1 to 2"):
            LayerSkipDrafter(decoder, exit_layer=1, n_drafts=n_drafts)
