"""config.json of a Llama, written for our models and read from anybody's.

Every key belongs to one of three tables: those that describe the architecture, those that change the numbers and must
have the one value that this project's layers compute, and those that change nothing. A key of none of them is named in
a warning.

An export of ours has one more section, `multi_token_prediction`, with the contents of params.json. It says which heads
there are. Everything else in it also has a standard key, and the standard key rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from common.command_line import UserError, raise_if_any
from pipeline.config.model import ModelConfig
from pipeline.weights.formats.huggingface.llama import next_token_chain
from pipeline.weights.formats.meta import config_of_params, meta_params
from pipeline.weights.formats.stored_model import described_model, warn

OWN_SECTION = "multi_token_prediction"
_LARGEST = 2**24  # largest accepted integer
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_ARCHITECTURE = (*_SIZES, "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling",
                 "rope_parameters", OWN_SECTION)  # fmt: skip
# The values for which our layers compute what transformers and vLLM do with these keys. null is each key's default.
_FIXED: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "attention_bias": False,
    "qkv_bias": False,
    "bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "rope_interleave": False,
    "sliding_window": None,
    "use_sliding_window": False,
    "layer_types": None,
    "is_causal": True,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "logit_scale": 1.0,
    "pretraining_tp": 1,
    "pruned_heads": {},
    "quantization_config": None,
    "auto_map": None,
}
# Keys that say where a model comes from, how to train it or how to generate with it; transformers 4 writes many.
_HARMLESS = frozenset((
    "_name_or_path", "_attn_implementation_autoset", "_commit_hash", "attention_dropout", "attn_implementation",
    "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "hidden_dropout", "id2label",
    "initializer_range", "keys_to_ignore_at_inference", "label2id", "length_penalty", "max_length",
    "max_position_embeddings", "max_sequence_length", "min_length", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores",
    "pad_token_id", "prefix", "problem_type", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "unk_token_id", "unsloth_fixed", "unsloth_version", "use_bfloat16",
    "use_cache",
))  # fmt: skip
# Keys of rope_scaling and rope_parameters, as transformers 4 and 5 write them, when nothing is scaled.
_UNSCALED: Mapping[str, Any] = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}
_ROPE_SECTIONS = ("rope_scaling", "rope_parameters")


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
        OWN_SECTION: meta_params(config),
    }


def config_of_llama(values: Mapping[str, Any], *, source: str) -> ModelConfig:
    """Return the architecture that the contents of a config.json describe.

    Raises:
        UserError: this project's layers cannot be this architecture; the message begins with `source`.
    """
    values = {key: value for key, value in values.items() if value is not None}
    section = values.get(OWN_SECTION)
    own = None if section is None else _own_config(section, source=f"{source}, {OWN_SECTION}")
    theta, problems = _rope(values)
    raise_if_any(_fixed_problems(values) + problems + _size_problems(values), heading=source)
    unknown = [key for key in values if key not in _FIXED and key not in _HARMLESS and key not in _ARCHITECTURE]
    if unknown:
        names = ", ".join(map(repr, unknown))
        warn(f"{source}: {names} not known and ignored; if the model computes with it, the numbers are wrong")
    plain = _plain_config(values, rope_theta=theta, source=source)
    return plain if own is None else _with_heads(own, plain, source=source)


def _fixed_problems(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}={values[key]!r}, and only {expected!r} is supported"
        for key, expected in _FIXED.items()
        if key in values and values[key] != expected
    ]


def _size_problems(values: Mapping[str, Any]) -> list[str]:
    problems = [f"missing key {key!r}" for key in _SIZES if key not in values]
    problems += [
        f"{key}={values[key]!r} must be an integer from 1 to {_LARGEST:,}"
        for key in _SIZES
        if key in values and not (isinstance(values[key], int) and 0 < values[key] <= _LARGEST)
    ]
    if problems or "head_dim" not in values:
        return problems
    head_dim = values["head_dim"]
    if isinstance(head_dim, int) and head_dim * values["num_attention_heads"] == values["hidden_size"]:
        return []
    return [f"head_dim={head_dim!r} is not hidden_size / num_attention_heads"]


def _rope(values: Mapping[str, Any]) -> tuple[float, list[str]]:
    """Return the base of the rotary frequencies, and why they are not ours, one line each.

    transformers 4 has `rope_theta` and `rope_scaling`, transformers 5 has `rope_parameters` with both in it.
    """
    bases = {"rope_theta": values["rope_theta"]} if "rope_theta" in values else {}
    problems = []
    for name in _ROPE_SECTIONS:
        section = values.get(name, {})
        if not isinstance(section, dict):
            problems.append(f"{name}={section!r}, and only an object is supported")
            continue
        problems += [
            f"{name}.{key}={value!r}, and rotary frequencies are neither scaled nor partial here"
            for key, value in section.items()
            if key != "rope_theta" and value is not None and _UNSCALED.get(key) != value
        ]
        if section.get("rope_theta") is not None:
            bases[f"{name}.rope_theta"] = section["rope_theta"]
    if len(set(map(repr, map(_number, bases.values())))) > 1:
        told = ", ".join(f"{name}={base!r}" for name, base in bases.items())
        problems.append(f"{told} contradict each other")
    return next(iter(bases.values()), 10_000.0), problems


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, int) else value


def _plain_config(values: Mapping[str, Any], *, rope_theta: float, source: str) -> ModelConfig:
    """Return the architecture without further heads."""
    return described_model(
        {
            "dim": values["hidden_size"],
            "n_layers": values["num_hidden_layers"],
            "n_heads": values["num_attention_heads"],
            "n_kv_heads": values.get("num_key_value_heads"),
            "vocab_size": values["vocab_size"],
            "n_future_tokens": 1,
            "norm_eps": values.get("rms_norm_eps", 1e-6),  # transformers' default
            "rope_theta": rope_theta,
            **_ffn_rule(values["hidden_size"], values["intermediate_size"]),
        },
        source=source,
    )


def _own_config(section: Any, *, source: str) -> ModelConfig:
    if not isinstance(section, dict):
        raise UserError(f"{source} must be a JSON object, not a {type(section).__name__}")
    return config_of_params(section, source=source)


def _with_heads(own: ModelConfig, plain: ModelConfig, *, source: str) -> ModelConfig:
    """Return the architecture of the standard keys, `plain`, with the heads of our section, `own`; warn if they differ.

    Raises:
        UserError: there are fewer layers than the next-token head needs.
    """
    merged = dataclasses.replace(
        plain,
        n_layers=plain.n_layers - len(next_token_chain(own)) + own.n_future_tokens,
        n_kv_heads=plain.kv_heads,
        n_future_tokens=own.n_future_tokens,
        head_type=own.head_type,
        head_order=own.head_order,
        replicated_unembedding=own.replicated_unembedding,
    )
    same_rule = dataclasses.replace(merged, multiple_of=own.multiple_of, ffn_dim_multiplier=own.ffn_dim_multiplier)
    merged = same_rule if same_rule.ffn_dim == merged.ffn_dim else merged
    changed = [
        f"{field.name}={getattr(merged, field.name)!r} (not {getattr(own, field.name)!r})"
        for field in dataclasses.fields(ModelConfig)
        if getattr(merged, field.name) != getattr(own, field.name)
    ]
    if changed:
        warn(f"{source}: the standard keys rule over {OWN_SECTION}: {', '.join(changed)}")
    return described_model(dataclasses.asdict(merged), source=source)


def _ffn_rule(dim: int, width: int) -> dict[str, Any]:
    """Return parameters of Llama's feed-forward rule that give `width`; the defaults if they do."""
    if ModelConfig(dim=dim).ffn_dim == width:
        return {}
    return {"multiple_of": width, "ffn_dim_multiplier": min(1.0, width / int(8 * dim / 3))}
