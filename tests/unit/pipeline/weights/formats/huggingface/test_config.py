"""Every key of a config.json is held, has the one value that our layers compute, is harmless, or is named."""

from typing import Any

import pytest
import torch
from transformers.utils import import_utils

from common.command_line import UserError
from pipeline.config.model import ModelConfig
from pipeline.weights.formats import stored_model
from pipeline.weights.formats.huggingface.config import config_of_llama, hf_config
from tests.helpers.references import all_logits, tiny_config, tiny_model

# torchvision's wheel does not import beside a CPU build of torch, and transformers' Llama would import it
import_utils._torchvision_available = False
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

PLAIN = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "model_type": "llama"}  # fmt: skip


@pytest.fixture(autouse=True)
def _every_warning_is_new() -> None:
    stored_model.warn.cache_clear()


def read(**changes: Any) -> ModelConfig:
    return config_of_llama({**PLAIN, **changes}, source="config.json")


def test_a_config_that_transformers_wrote_needs_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """With all its keys, also those that have their default."""
    values = LlamaConfig(**PLAIN).to_dict()
    assert config_of_llama(values, source="config.json").dim == 32
    assert config_of_llama(LlamaConfig(**PLAIN).to_diff_dict(), source="config.json").dim == 32
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            r"rope_scaling\.type='linear', and rotary frequencies are",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"rope_scaling\.rope_type='llama3'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope_scaling\.type='dynamic'"),
        ({"rope_scaling": {"factor": 2.0}}, r"rope_scaling\.factor=2\.0"),
        ({"rope_scaling": 2.0}, "rope_scaling=2.0, and only an object"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, r"rope_parameters\.rope_type='llama3'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, r"rope_parameters\.full_attention="),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "contradict each other"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5, and only 1.0 is supported"),
        ({"attention_bias": True}, "attention_bias=True, and only False is supported"),
        ({"mlp_bias": True}, "mlp_bias=True, and only False is supported"),
        ({"sliding_window": 4096}, "sliding_window=4096, and only None is supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True, and only False is supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu', and only 'silu' is supported"),
        ({"pretraining_tp": 2}, "pretraining_tp=2, and only 1 is supported"),
        ({"model_type": "mistral"}, "model_type='mistral', and only 'llama' is supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures=.*, and only .* is supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config=.*, and only None is supported"),
        ({"head_dim": 16}, "head_dim=16 is not hidden_size / num_attention_heads"),
        ({"head_dim": "8"}, "head_dim='8' is not hidden_size / num_attention_heads"),
        ({"vocab_size": 128_256}, "vocab_size=128256"),
        ({"hidden_size": None}, "missing key 'hidden_size'"),
        ({"multi_token_prediction": 3}, "multi_token_prediction must be a JSON object, not a int"),
    ],
)
def test_a_key_that_changes_the_numbers_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(**change)


def test_a_key_that_nobody_knows_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    read(swirl=3, twist=None)
    read(swirl=3)
    assert capsys.readouterr().err == (
        "warning: config.json: 'swirl' not known and ignored; if the model computes with it, the numbers are wrong\n"
    )


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 500_000},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 500_000}, "rope_scaling": None},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
    ],
)
def test_the_base_of_the_rotary_frequencies_is_found_in_every_spelling(spelling: dict[str, Any]) -> None:
    tokens = torch.arange(20).view(2, 10)
    assert read(**spelling).rope_theta == 5e5
    llama = LlamaForCausalLM(LlamaConfig(**PLAIN, rope_theta=5e5))
    expected, default = llama(tokens).logits, LlamaForCausalLM(LlamaConfig(**PLAIN))
    default.load_state_dict(llama.state_dict())
    assert not torch.allclose(expected, default(tokens).logits, atol=1e-4)  # so the base makes a difference


@pytest.mark.parametrize(
    "heads",
    [{"n_future_tokens": 1}, {}, {"head_order": "causal"}, {"head_order": "anticausal"},
     {"replicated_unembedding": True}, {"shorten_trunk": False}],
)  # fmt: skip
def test_a_config_of_ours_comes_back(heads: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(**heads)
    again = config_of_llama(hf_config(model.config), source="config.json")
    assert capsys.readouterr().err == ""
    assert all_logits(type(model)(again), torch.arange(4).view(1, 4)).shape[2] == model.config.n_future_tokens
    assert (again.n_trunk_layers, again.ffn_dim) == (model.config.n_trunk_layers, model.config.ffn_dim)


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"rope_theta": 5e5}, "rope_theta", 5e5),
        ({"rms_norm_eps": 1e-6}, "norm_eps", 1e-6),
        ({"num_key_value_heads": 4}, "kv_heads", 4),
        ({"intermediate_size": 88}, "ffn_dim", 88),
        ({"vocab_size": 100}, "vocab_size", 100),
        ({"num_hidden_layers": 5}, "n_trunk_layers", 4),
    ],
)
def test_the_standard_keys_rule_over_our_section(
    change: dict[str, Any], field: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {**hf_config(tiny_config()), **change}
    config = config_of_llama(values, source="config.json")
    assert getattr(config, field) == value
    assert config.n_future_tokens == 4
    assert "config.json: the standard keys rule over multi_token_prediction: " in capsys.readouterr().err


def test_scaling_that_was_added_beside_our_section_is_refused() -> None:
    values = {**hf_config(tiny_config()), "rope_scaling": {"type": "linear", "factor": 2.0}}
    with pytest.raises(UserError, match="rotary frequencies are neither scaled nor partial here"):
        config_of_llama(values, source="config.json")
