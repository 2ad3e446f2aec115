"""The model against transformers' Llama, its initial weights, and shares against the whole model."""

import math
from collections import Counter
from typing import Any

import pytest
import torch

from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, ParallelConfig
from pipeline.model.network import MultiTokenModel, initialise
from pipeline.model.partition import balanced_stages
from tests.helpers.references import all_logits, as_transformers_llama, every_kind_of_heads, tiny_model


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_trunk_and_first_head_match_transformers_llama(n_kv_heads: int) -> None:
    model = tiny_model(n_kv_heads=n_kv_heads)
    tokens = torch.randint(97, (2, 19), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = as_transformers_llama(model)(tokens).logits
    torch.testing.assert_close(all_logits(model, tokens)[:, :, 0], expected, atol=1e-5, rtol=1e-5)


def test_a_token_does_not_change_outputs_before_it() -> None:
    model = tiny_model()
    tokens = torch.randint(97, (1, 12), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 97
    difference_T = (all_logits(model, tokens) - all_logits(model, changed)).abs().amax(dim=(0, 2, 3))
    assert (difference_T[:7] == 0).all()
    assert (difference_T[7:] > 1e-4).all()


@pytest.mark.parametrize(
    ("head_order", "head_type", "depths_of_heads"),
    [
        ("parallel", "transformer", (2, 2)),
        ("causal", "transformer", (2, 3)),
        ("anticausal", "transformer", (3, 2)),
        ("causal", "linear", ()),  # their matrix is not scaled down
    ],
)
def test_initial_weights_have_the_documented_spread(
    head_order: str, head_type: str, depths_of_heads: tuple[int, ...]
) -> None:
    heads: dict[str, Any] = {"head_order": head_order, "head_type": head_type}
    config = ModelConfig(dim=256, n_layers=4, n_heads=4, vocab_size=512, n_future_tokens=2, **heads)
    model = MultiTokenModel(config)
    initialise(model, seed=1)
    depths = {f"trunk.layers.{i}": i for i in range(config.n_trunk_layers)}
    depths |= {f"heads.layers.{i}": depth for i, depth in enumerate(depths_of_heads)}
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert (weight == 1).all(), name
            continue
        std = 1 / math.sqrt(config.dim if name.endswith("tok_embeddings.weight") else weight.shape[1])
        if name.endswith(("wo.weight", "w2.weight")):
            std /= math.sqrt(2 * (depths[".".join(name.split(".")[:3])] + 1))
        assert weight.abs().max() <= 3 * std, name
        assert weight.abs().max() > 2.9 * std, name
        # a normal distribution truncated at 3 std has 0.9866 of its std
        assert weight.std().item() == pytest.approx(0.9866 * std, rel=0.015), name
        assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel()), name


def test_the_seed_determines_the_weights() -> None:
    same = zip(tiny_model(seed=1).parameters(), tiny_model(seed=1).parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    assert not torch.equal(tiny_model(seed=1).heads.output.weight, tiny_model(seed=2).heads.output.weight)


@pytest.mark.parametrize("n_stages", [2, 3, 4])
@pytest.mark.parametrize("n_future_tokens", [1, 4])
@every_kind_of_heads
def test_shares_start_with_the_weights_of_the_whole(heads: dict[str, Any], n_future_tokens: int, n_stages: int) -> None:
    whole = tiny_model(n_future_tokens=n_future_tokens, **heads)
    stages = balanced_stages(
        Config(model=whole.config, data=DataConfig(seq_len=16), parallel=ParallelConfig(pipeline_stages=n_stages))
    )
    expected, held = whole.state_dict(), Counter[str]()
    for stage in stages:
        model = MultiTokenModel(whole.config, share=stage.share)
        initialise(model, seed=1)
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, expected[name]), name
            held[name] += 1
    assert held == Counter(expected.keys()), "every weight is in one share"


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    plain = tiny_model(n_future_tokens=2)
    recomputing = MultiTokenModel(plain.config, activation_checkpointing=True)
    recomputing.load_state_dict(plain.state_dict())
    tokens = torch.randint(97, (2, 9), generator=torch.Generator().manual_seed(1))
    targets = torch.stack((tokens.roll(-1, 1), tokens.roll(-2, 1)), dim=-1)
    for model in (plain, recomputing):
        loss, _ = model(tokens, targets)
        loss.backward()
    for one, other in zip(plain.parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_activation_checkpointing_saves_fewer_activations() -> None:
    def saved_bytes(*, activation_checkpointing: bool) -> int:
        model = MultiTokenModel(tiny_model(n_future_tokens=1).config, activation_checkpointing=activation_checkpointing)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):  # type: ignore[func-returns-value]
            model.trunk(torch.zeros(2, 16, dtype=torch.int64))
        return sum(kept)

    assert saved_bytes(activation_checkpointing=True) < saved_bytes(activation_checkpointing=False) / 4
