"""Stages run one after the other compute the same loss and the same gradients as the whole model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, ParallelConfig
from pipeline.model.formulas import Share
from pipeline.model.network import MultiTokenModel, initialise
from pipeline.model.partition import balanced_stages
from pipeline.training.stages import StageModule
from tests.helpers.references import every_cut, every_kind_of_heads, tiny_config

B, T, V = 2, 11, 97
Result = tuple[Tensor, Tensor, dict[str, Tensor]]


def random_batch(n_future_tokens: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(V, (B, T), generator=generator)
    return tokens, torch.randint(V, (B, T, n_future_tokens), generator=generator)


def of_whole_model(config: ModelConfig) -> Result:
    """Return loss (), losses (N,) and all gradients."""
    model = MultiTokenModel(config).double()
    initialise(model, seed=1)
    loss, losses = model(*random_batch(config.n_future_tokens))
    loss.backward()
    return loss.detach(), losses, gradients_of(model)


def of_stages(config: ModelConfig, shares: list[Share], *, activation_checkpointing: bool = False) -> Result:
    """Return the same, stage by stage as on ranks: each output is detached, and its gradient is passed back."""
    stages = []
    for share in shares:
        stages.append(StageModule(config, share, activation_checkpointing=activation_checkpointing).double())
        initialise(stages[-1], seed=1)
    handed: Any = random_batch(config.n_future_tokens)
    received, given = [], []
    for stage in stages[:-1]:
        hidden_PBTD, targets = stage(handed)
        given.append(hidden_PBTD)
        received.append(hidden_PBTD.detach().requires_grad_())
        handed = received[-1], targets
    loss = stages[-1](handed)
    loss.backward()
    for hidden, copy in zip(reversed(given), reversed(received), strict=True):
        hidden.backward(copy.grad)
    gradients: dict[str, Tensor] = {}
    for stage in stages:
        own = gradients_of(stage)
        assert gradients.keys().isdisjoint(own)
        gradients |= own
    assert [len(stage.losses) for stage in stages] == [0] * (len(stages) - 1) + [1]
    return loss.detach(), stages[-1].losses[0], gradients


def gradients_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(result: Result, expected: Result) -> None:
    assert result[2].keys() == expected[2].keys()
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-15)


def balanced_shares(model: ModelConfig, n_stages: int) -> list[Share]:
    parallel = ParallelConfig(pipeline_stages=n_stages)
    return [
        stage.share for stage in balanced_stages(Config(model=model, data=DataConfig(seq_len=T), parallel=parallel))
    ]


@pytest.mark.parametrize("n_stages", [2, 4])
@pytest.mark.parametrize("n_future_tokens", [1, 8])
@every_kind_of_heads
def test_balanced_stages_are_the_whole_model(heads: dict[str, Any], n_future_tokens: int, n_stages: int) -> None:
    config = tiny_config(n_layers=9, n_future_tokens=n_future_tokens, vocab_size=V, **heads)
    shares = balanced_shares(config, n_stages)
    assert_same(of_stages(config, shares), of_whole_model(config))
    if n_future_tokens == 8 and n_stages == 4 and config.n_trunk_layers == 1:
        assert sum(len(share.heads) > 0 for share in shares) >= 3, "heads should be spread"


@pytest.mark.parametrize("head_order", ["parallel", "causal", "anticausal"])
def test_any_cut_is_the_whole_model(head_order: Any) -> None:
    """Also a cut that balancing would never choose."""
    config = tiny_config(n_layers=5, n_future_tokens=3, vocab_size=V, head_order=head_order)
    expected, cuts = of_whole_model(config), every_cut(config, 3)
    assert len(cuts) == 10
    for cut in cuts:
        assert_same(of_stages(config, cut), expected)


@pytest.mark.parametrize("head_order", ["parallel", "causal", "anticausal"])
def test_stages_that_recompute_activations_are_the_whole_model(head_order: Any) -> None:
    config = tiny_config(n_layers=9, n_future_tokens=8, vocab_size=V, head_order=head_order)
    result = of_stages(config, balanced_shares(config, 4), activation_checkpointing=True)
    assert_same(result, of_whole_model(config))


def test_stages_pass_on_the_trunks_output_and_the_heads_computed_so_far() -> None:
    config = tiny_config(n_layers=9, n_future_tokens=8, vocab_size=V)
    tokens, targets = random_batch(8)
    handed: Any = (tokens, targets)
    n_heads = 0
    for share in balanced_shares(config, 4)[:-1]:
        handed = StageModule(config, share, activation_checkpointing=False)(handed)
        n_heads += len(share.heads)
        assert handed[0].shape == (1 + n_heads, B, T, 32)
        assert handed[1] is targets
    assert n_heads > 2
