"""The formulas against built models: parameters, FLOPs counted by torch, and saved activations."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.model import MODEL_SIZES, ModelConfig, resolve_model
from pipeline.model.formulas import (
    head_inputs,
    head_parameters,
    layer_parameters,
    parameter_count,
    recomputed_flops_per_token,
    saved_elements_per_token,
    training_flops,
    training_flops_per_token,
)
from pipeline.model.layers import TransformerBlock, training_rotary
from pipeline.model.network import LinearHead, MultiTokenModel
from tests.helpers.references import every_kind_of_heads, tiny_config

BATCH, SEQ_LEN = 2, 24
PAPER_PARAMETERS = {  # Table S14, with Llama 2's block and 32,000 tokens
    "0.3B": 296_784_896,
    "0.6B": 630_526_720,
    "1.3B": 1_364_297_728,
    "3B": 3_018_775_040,
    "7B": 6_738_415_616,
    "13B": 13_015_864_320,
}


def built_parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MultiTokenModel(config).parameters())


@pytest.mark.parametrize("n_future_tokens", [1, 2, 4, 8])
@pytest.mark.parametrize("size", MODEL_SIZES)
def test_parameter_counts_match_the_paper(size: str, n_future_tokens: int) -> None:
    config = resolve_model(ModelConfig(size=size, n_future_tokens=n_future_tokens))
    assert built_parameters(config) == parameter_count(config) == PAPER_PARAMETERS[size]


@pytest.mark.parametrize("n_kv_heads", [4, 1])
@pytest.mark.parametrize("n_future_tokens", [1, 4])
@every_kind_of_heads
def test_parameters_of_every_kind_of_heads_match_the_built_model(
    heads: dict[str, Any], n_future_tokens: int, n_kv_heads: int
) -> None:
    config = tiny_config(n_future_tokens=n_future_tokens, n_kv_heads=n_kv_heads, **heads)
    assert parameter_count(config) == built_parameters(config)


def test_parameters_of_layers_and_heads_match_built_ones() -> None:
    config = tiny_config(n_kv_heads=2)
    for count, module in [
        (layer_parameters(config), TransformerBlock(config)),
        (head_parameters(config), TransformerBlock(config)),
        (head_parameters(replace(config, head_type="linear")), LinearHead(config)),
    ]:
        assert count == sum(parameter.numel() for parameter in module.parameters())


class _NoModules(nullcontext[None]):
    """Replaces the counter's module tracker, which does not allow a backward inside a forward."""

    parents = frozenset({"Global"})


def flops_that_torch_counts(config: ModelConfig, *, activation_checkpointing: bool = False) -> int:
    """Return the FLOPs of a real training step, with the heads' backward inside the forward, as torch counts them."""
    model = MultiTokenModel(config, activation_checkpointing=activation_checkpointing)
    tokens_BT = torch.zeros(BATCH, SEQ_LEN, dtype=torch.int64)
    targets_BTN = torch.zeros(BATCH, SEQ_LEN, config.n_future_tokens, dtype=torch.int64)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with sdpa_kernel(SDPBackend.MATH), counter:  # computes all T x T scores, as in the formula
        loss, _ = model(tokens_BT, targets_BTN)
        loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("n_future_tokens", "n_kv_heads"), [(1, 4), (2, 1), (4, 2), (8, 4)])
@every_kind_of_heads
def test_flops_match_torchs_counter(heads: dict[str, Any], n_future_tokens: int, n_kv_heads: int) -> None:
    config = tiny_config(n_layers=9, n_future_tokens=n_future_tokens, n_kv_heads=n_kv_heads, **heads)
    flops = training_flops(config, seq_len=SEQ_LEN)
    assert flops_that_torch_counts(config) == BATCH * SEQ_LEN * flops.total
    recomputed = recomputed_flops_per_token(config, seq_len=SEQ_LEN)
    hardware_flops = flops_that_torch_counts(config, activation_checkpointing=True)
    assert hardware_flops == BATCH * SEQ_LEN * (flops.total + recomputed)


def test_flops_of_a_part_match_what_it_adds_to_the_whole() -> None:
    """One more layer, one token less in the vocabulary, and sequences twice as long, against the total."""
    config = tiny_config()
    flops = training_flops(config, seq_len=SEQ_LEN)
    one_more = flops_that_torch_counts(replace(config, n_layers=config.n_layers + 1)) - flops_that_torch_counts(config)
    assert one_more == BATCH * SEQ_LEN * flops.trunk / config.n_trunk_layers
    assert one_more == BATCH * SEQ_LEN * flops.heads / config.n_future_tokens  # heads that are transformer layers
    a_token_less = replace(config, vocab_size=config.vocab_size - 1)
    fewer = flops_that_torch_counts(config) - flops_that_torch_counts(a_token_less)
    assert fewer == BATCH * SEQ_LEN * flops.unembedding / config.vocab_size
    longer = training_flops(config, seq_len=2 * SEQ_LEN)
    assert longer.total - flops.total == flops.attention
    assert longer.attention == 2 * flops.attention


def test_flops_match_palms_formula() -> None:
    """PaLM, appendix B: 6 N + 12 L H Q T per token, with N without the embedding, for the 7B model."""
    config = resolve_model(ModelConfig(size="7B", n_future_tokens=4))
    multiplied = PAPER_PARAMETERS["7B"] - 32_000 * 4096 - 65 * 4096  # without the embedding and the gains of the norms
    multiplied += 3 * 32_000 * 4096  # the unembedding once per head
    assert training_flops_per_token(config, seq_len=4096) == 6 * multiplied + 12 * 32 * 32 * 128 * 4096


def test_the_order_of_heads_is_that_of_appendix_b() -> None:
    def inputs(order: str, n_heads: int | None = None, n_future_tokens: int = 4) -> list[tuple[int, int | None]]:
        config = tiny_config(n_future_tokens=n_future_tokens, head_order=order)
        return list(head_inputs(config, n_heads).items())

    assert inputs("parallel") == [(0, None), (1, None), (2, None), (3, None)]
    assert inputs("causal") == [(0, None), (1, 0), (2, 1), (3, 2)]
    assert inputs("anticausal") == [(3, None), (2, 3), (1, 2), (0, 1)]
    # Only the heads needed for the first n: in an anticausal chain, the nearest token's head comes last.
    assert inputs("parallel", 2) == [(0, None), (1, None)]
    assert inputs("causal", 2) == [(0, None), (1, 0)]
    assert inputs("anticausal", 2) == inputs("anticausal", 1) == inputs("anticausal")
    for order in ("parallel", "causal", "anticausal"):
        assert inputs(order, n_future_tokens=1) == inputs(order, 1, n_future_tokens=1) == [(0, None)]


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_saved_elements_match_what_torch_saves(n_kv_heads: int) -> None:
    config = ModelConfig(dim=256, n_layers=1, n_heads=4, n_kv_heads=n_kv_heads, vocab_size=8, n_future_tokens=1)
    batch, seq_len = 2, 64
    layer = TransformerBlock(config).bfloat16()
    hidden_BTD = torch.randn(batch, seq_len, 256, dtype=torch.bfloat16, requires_grad=True)
    rotary = training_rotary(seq_len, config, device=hidden_BTD.device)
    given = {tensor.untyped_storage().data_ptr() for tensor in (rotary, *layer.parameters())}
    kept: list[Tensor] = []  # kept alive, so that no two of them share an address
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        layer(hidden_BTD, rotary)
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in kept)}
    elements = sum(nbytes for pointer, nbytes in storages.items() if pointer not in given) / 2
    # The formula leaves out one number per token for each norm, and one per head for attention.
    assert saved_elements_per_token(config) * batch * seq_len == pytest.approx(elements, rel=0.01)
