"""Our models as transformers' Llama: the names of the weights, and the order of rotary pairs.

The next-token head is the Llama's last layer, after the heads that it reads from in an anticausal chain. The further
heads get names of the same kind. transformers pairs the first half of a head's dimensions with the second for the
rotary embedding, we pair neighbours; so the rows of queries and keys are permuted, and their values do not change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config.model import ModelConfig
from pipeline.model.formulas import head_inputs
from pipeline.weights.formats.stored_model import shapes_by_name

if TYPE_CHECKING:
    from torch import Tensor

_MODULES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OUTSIDE_LAYERS = {
    "trunk.tok_embeddings.weight": "model.embed_tokens.weight",
    "heads.norm.weight": "model.norm.weight",
    "heads.output.weight": "lm_head.weight",
}


ROTARY_FREQUENCIES = ".rotary_emb.inv_freq"
"""How the names of the rotary frequencies end, which older Llamas hold beside the weights."""
EXTRA = "extra_"
"""How the names of the further heads' weights begin."""


def hf_names(config: ModelConfig) -> dict[str, str]:
    """Return the name in transformers of each of our weights."""
    return {name: _hf_name(name, config) for name in shapes_by_name(config)}


def _hf_name(name: str, config: ModelConfig) -> str:
    if name in _OUTSIDE_LAYERS:
        return _OUTSIDE_LAYERS[name]
    module, kind, index, rest = name.split(".", 3)
    if kind == "extra_outputs":
        return f"extra_lm_heads.{index}.{rest}"
    renamed = f"{_MODULES[rest.removesuffix('.weight')]}.weight"
    if module == "trunk":
        return f"model.layers.{index}.{renamed}"
    chain = next_token_chain(config)
    if int(index) in chain:
        return f"model.layers.{config.n_trunk_layers + chain.index(int(index))}.{renamed}"
    return f"extra_heads.{int(index) - 1}.{renamed}"


def next_token_chain(config: ModelConfig) -> list[int]:
    """Return the heads from the trunk to the next-token head, head 0: [0], or [..., 1, 0] in an anticausal chain."""
    inputs = head_inputs(config)
    chain: list[int] = []
    head: int | None = 0
    while head is not None:
        chain.insert(0, head)
        head = inputs[head]
    return chain


def rotary_halves(weight: Tensor, *, head_dim: int) -> Tensor:
    """Return a query or key projection (H E, D) with each head's rows reordered from neighbouring pairs to halves."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape(weight.shape)


def rotary_pairs(weight: Tensor, *, head_dim: int) -> Tensor:
    """Return the inverse of `rotary_halves`."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(weight.shape)


def is_rotated(name: str) -> bool:
    """Return whether one of our weights projects to queries or keys, whose rows are rotary pairs."""
    return name.endswith((".attention.wq.weight", ".attention.wk.weight"))
