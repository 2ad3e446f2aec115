"""The model against the paper's sizes, transformers' Llama, and torch's own FLOP counter."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import MODEL_SIZES, ModelConfig, resolve_model
from pipeline.model import MultiTokenModel, initialise, parameter_count, training_flops_per_token
from tests.unit.references import all_logits, as_transformers_llama, tiny_model

PAPER_PARAMETERS = {  # Table S14, with Llama 2's block and 32,000 tokens
    "0.3B": 296_784_896,
    "0.6B": 630_526_720,
    "1.3B": 1_364_297_728,
    "3B": 3_018_775_040,
    "7B": 6_738_415_616,
    "13B": 13_015_864_320,
}


@pytest.mark.parametrize("n_future_tokens", [1, 2, 4, 8])
@pytest.mark.parametrize("size", MODEL_SIZES)
def test_parameter_counts_are_the_papers(size: str, n_future_tokens: int) -> None:
    config = resolve_model(ModelConfig(size=size, n_future_tokens=n_future_tokens))  # type: ignore[arg-type]
    with torch.device("meta"):
        model = MultiTokenModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PAPER_PARAMETERS[size]
    assert parameter_count(config) == PAPER_PARAMETERS[size]


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_trunk_and_first_head_are_transformers_llama(n_kv_heads: int) -> None:
    model = tiny_model(n_kv_heads=n_kv_heads)
    tokens = torch.randint(97, (2, 19), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = as_transformers_llama(model)(tokens).logits
    torch.testing.assert_close(all_logits(model, tokens)[:, :, 0], expected, atol=1e-5, rtol=1e-5)


def test_a_token_changes_no_output_before_it() -> None:
    model = tiny_model()
    tokens = torch.randint(97, (1, 12), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 97
    difference_T = (all_logits(model, tokens) - all_logits(model, changed)).abs().amax(dim=(0, 2, 3))
    assert (difference_T[:7] == 0).all()
    assert (difference_T[7:] > 1e-4).all()


def test_initial_weights_have_the_documented_spread() -> None:
    config = ModelConfig(dim=256, n_layers=4, n_heads=4, vocab_size=512, n_future_tokens=2)
    model = MultiTokenModel(config)
    initialise(model, seed=1)
    depths = {f"trunk.layers.{i}": i for i in range(2)} | {f"heads.layers.{i}": 2 for i in range(2)}
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert (weight == 1).all(), name
            continue
        std = 1 / math.sqrt(config.dim if name.endswith("tok_embeddings.weight") else weight.shape[1])
        if name.endswith(("wo.weight", "w2.weight")):
            std /= math.sqrt(2 * (depths[".".join(name.split(".")[:3])] + 1))
        assert weight.abs().max() <= 3 * std, name
        assert weight.abs().max() > 2.9 * std, name
        # a normal cut at 3 std has 0.9866 of its std
        assert weight.std().item() == pytest.approx(0.9866 * std, rel=0.015), name
        assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel()), name


def test_the_seed_decides_the_weights() -> None:
    same = zip(tiny_model(seed=1).parameters(), tiny_model(seed=1).parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    assert not torch.equal(tiny_model(seed=1).heads.output.weight, tiny_model(seed=2).heads.output.weight)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.parametrize("n_future_tokens", [1, 2, 4])
def test_flops_are_those_that_torch_counts(n_future_tokens: int, n_kv_heads: int) -> None:
    batch, seq_len = 2, 24
    model = tiny_model(n_future_tokens=n_future_tokens, n_kv_heads=n_kv_heads)
    tokens = torch.zeros(batch, seq_len, dtype=torch.int64)
    # the plain backend multiplies all T x T scores, as the formula has it; the counter cannot follow autograd.grad
    # inside our loss, so that the heads are back-propagated here the ordinary way
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        all_logits(model, tokens).sum().backward()
    assert counter.get_total_flops() == batch * seq_len * training_flops_per_token(model.config, seq_len=seq_len)


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


def test_activation_checkpointing_keeps_fewer_activations() -> None:
    def saved_bytes(*, activation_checkpointing: bool) -> int:
        model = MultiTokenModel(tiny_model(n_future_tokens=1).config, activation_checkpointing=activation_checkpointing)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):  # type: ignore[func-returns-value]
            model.trunk(torch.zeros(2, 16, dtype=torch.int64))
        return sum(kept)

    assert saved_bytes(activation_checkpointing=True) < saved_bytes(activation_checkpointing=False) / 4
