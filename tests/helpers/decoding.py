"""Helpers of the decoding tests: prompts, a model with known drafts, and tests of distributions."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.config.model import ModelConfig
from pipeline.inference.decoding.blockwise import Generation
from pipeline.inference.decoding.sampling import GREEDY, Sampling, probabilities
from pipeline.model.network import MultiTokenModel
from tests.helpers.references import all_logits, tiny_model

PROMPTS = [[5, 17, 3, 88], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [60, 61]]


def counting_model(shifts: list[int], *, vocab_size: int = 32) -> MultiTokenModel:
    """Return a model whose head i predicts `token + shifts[i]` in any context, which is right if shifts[i] is i + 1.

    Embedding and unembedding are the identity, attention adds nothing, and a head's feed-forward layer permutes.
    """
    n_heads = len(shifts)
    config = ModelConfig(
        dim=vocab_size, n_layers=n_heads + 1, n_heads=2, vocab_size=vocab_size, n_future_tokens=n_heads, multiple_of=16
    )
    model = MultiTokenModel(config).eval().requires_grad_(False)
    identity = torch.eye(vocab_size)
    layers: list[Any] = [*model.trunk.layers, *model.heads.layers]
    for layer in layers:
        layer.attention.wo.weight.zero_()
        for weight in (layer.feed_forward.w1.weight, layer.feed_forward.w2.weight, layer.feed_forward.w3.weight):
            weight.zero_()
    for shift, head in zip(shifts, layers[-n_heads:], strict=True):
        head.feed_forward.w1.weight[:vocab_size] = identity
        head.feed_forward.w3.weight[:vocab_size] = identity
        head.feed_forward.w2.weight[:, :vocab_size] = identity.roll(shift, dims=0)
    model.trunk.tok_embeddings.weight.copy_(identity)
    model.heads.output.weight.copy_(identity)
    return model


def assert_distributed_as(probabilities_X: Tensor, counts_X: Tensor) -> None:
    """Check counts with Pearson's test at five standard deviations; an outcome of probability 0 must not occur."""
    expected_X = probabilities_X * counts_X.sum()
    assert counts_X[probabilities_X == 0].sum() == 0
    common = expected_X >= 5
    pairs = [(counts_X[common], expected_X[common]), (counts_X[~common].sum(), expected_X[~common].sum())]
    statistic = sum(float(((seen - due) ** 2 / due.clamp(min=1e-9)).sum()) for seen, due in pairs)
    freedom = int(common.sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def assert_samples_are_the_models(
    decoding: Callable[[MultiTokenModel, list[list[int]], int, Sampling], Generation], sampling: dict[str, Any]
) -> Generation:
    """Compare 20,000 continuations of one prompt, 4 tokens from 5 ids each, with their exact distribution.

    Args:
        decoding: called with the model, the prompts, the number of tokens to generate, and the sampling.
        sampling: temperature and top_p.
    """
    vocab_size, n_tokens, n_samples = 5, 4, 20_000
    model = tiny_model(n_future_tokens=3, vocab_size=vocab_size, n_layers=5, seed=5)
    prompt = [1, 3]
    outcomes = torch.tensor(list(itertools.product(range(vocab_size), repeat=n_tokens)))
    prefixes = torch.cat((torch.tensor(prompt).expand(len(outcomes), -1), outcomes), dim=1)
    settings = replace(GREEDY, **sampling)
    steps = probabilities(all_logits(model, prefixes)[:, len(prompt) - 1 : -1, 0], settings)
    exact = steps.gather(-1, outcomes.unsqueeze(-1)).squeeze(-1).prod(-1).detach()

    generation = decoding(model, [prompt] * n_samples, n_tokens, settings)
    place = vocab_size ** torch.arange(n_tokens - 1, -1, -1)
    drawn = (torch.tensor(generation.token_ids) * place).sum(-1)
    assert_distributed_as(exact, drawn.bincount(minlength=len(outcomes)))
    n_drafts = len(generation.accepted[0])
    if n_drafts:  # some drafts were accepted and some rejected
        assert (n_tokens - 1) / (n_drafts + 1) < sum(generation.forwards) / n_samples < n_tokens - 1
    return generation
