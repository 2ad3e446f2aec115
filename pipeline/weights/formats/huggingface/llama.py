"""Our models as transformers' Llama: the names of the weights, config.json, and the order of rotary pairs.

The next-token head is the Llama's last layer, after the heads that it reads from in an anticausal chain. The further
heads get names of the same kind. transformers pairs the first half of a head's dimensions with the second for the
rotary embedding, we pair neighbours; so the rows of queries and keys are permuted, and their values do not change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common.command_line import UserError, raise_if_any
from pipeline.config.model import ModelConfig
from pipeline.model.formulas import head_inputs
from pipeline.weights.formats.meta import config_of_params, meta_params
from pipeline.weights.formats.stored_model import described_model, shapes_by_name

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = 2**24  # largest accepted integer in config.json
_OWN_KEY = "multi_token_prediction"  # key of config.json with the contents of params.json
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


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """Return the contents of config.json except for the dtype, the tokenizer's ids and the training length.

    Raises:
        UserError: the next-token head is not a transformer layer, so the model is not a Llama.
    """
    if config.head_type != "transformer":
        raise UserError(
            f"a model with head_type={config.head_type} cannot be a LlamaForCausalLM, which has only transformer"
            " layers; use --to meta"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_trunk_layers + len(next_token_chain(config)),
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        _OWN_KEY: meta_params(config),
    }


def config_of_llama(values: dict[str, Any], *, source: str) -> ModelConfig:
    """Return the architecture that the contents of a config.json describe.

    Raises:
        UserError: this project's layers cannot be this architecture; the message begins with `source`.
    """
    if isinstance(values.get(_OWN_KEY), dict):
        return config_of_params(values[_OWN_KEY], source=f"{source}, {_OWN_KEY}")
    plain = {
        "model_type": ("llama",),
        "hidden_act": ("silu",),
        "rope_scaling": (None,),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "tie_word_embeddings": (False,),
    }
    problems = [
        f"{key}={values[key]!r}, and only {expected[0]!r} is supported"
        for key, expected in plain.items()
        if values.get(key, expected[0]) not in expected
    ]
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    problems += [f"missing key {key!r}" for key in needed if key not in values]
    problems += [
        f"{key}={values[key]!r} must be an integer from 1 to {_LARGEST:,}"
        for key in needed
        if key in values and not (isinstance(values[key], int) and 0 < values[key] <= _LARGEST)
    ]
    raise_if_any(problems, heading=source)
    dim, width, n_heads = values["hidden_size"], values["intermediate_size"], values["num_attention_heads"]
    if values.get("head_dim") not in (None, dim // n_heads):
        raise UserError(f"{source}: head_dim={values['head_dim']} is not hidden_size / num_attention_heads")
    return described_model(
        {
            "dim": dim,
            "n_layers": values["num_hidden_layers"],
            "n_heads": n_heads,
            "n_kv_heads": values.get("num_key_value_heads"),
            "vocab_size": values["vocab_size"],
            "n_future_tokens": 1,
            "norm_eps": values.get("rms_norm_eps", 1e-6),  # transformers' default
            "rope_theta": _rope_theta(values),
            **_ffn_rule(dim, width),
        },
        source=source,
    )


def _rope_theta(values: dict[str, Any]) -> float:
    """Return the base of the rotary frequencies; transformers 4 and 5 store it under different keys."""
    parameters = values.get("rope_parameters")
    return values.get("rope_theta") or (isinstance(parameters, dict) and parameters.get("rope_theta")) or 10_000.0


def _ffn_rule(dim: int, width: int) -> dict[str, Any]:
    """Return parameters of Llama's feed-forward rule that give `width`; the defaults if they do."""
    if ModelConfig(dim=dim).ffn_dim == width:
        return {}
    return {"multiple_of": width, "ffn_dim_multiplier": min(1.0, width / int(8 * dim / 3))}
