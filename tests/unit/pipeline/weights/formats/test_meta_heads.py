"""Heads that Meta's release does not have, in its format: names, params.json, and unchanged models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.command_line import UserError
from pipeline.model.network import MultiTokenModel
from pipeline.weights.formats.meta import meta_name, meta_params, meta_shapes, open_folder, read_config
from pipeline.weights.formats.stored_model import load_model
from tests.helpers.exports import exported
from tests.helpers.references import all_logits, every_kind_of_heads, tiny_config, tiny_model

RELEASED_KEYS = {
    "dim", "ffn_dim_multiplier", "multiple_of", "n_future_tokens", "n_heads", "n_kv_heads", "n_layers", "norm_eps",
    "rope_theta", "vocab_size",
}  # fmt: skip


@every_kind_of_heads
def test_params_have_our_keys_only_if_they_differ_from_the_default(heads: dict[str, Any]) -> None:
    own = {key: heads[key] for key in ("head_type", "head_order", "replicated_unembedding")}
    released = {"head_type": "transformer", "head_order": "parallel", "replicated_unembedding": False}
    params = meta_params(tiny_config(**heads))
    more = {key: params[key] for key in params.keys() - RELEASED_KEYS}
    assert params.keys() >= RELEASED_KEYS
    assert more == {key: value for key, value in own.items() if value != released[key]}


@pytest.mark.parametrize(
    ("n_future_tokens", "shorten_trunk", "n_layers"), [(4, True, 6), (4, False, 9), (1, True, 6), (1, False, 6)]
)
def test_layers_of_params_count_the_heads(n_future_tokens: int, shorten_trunk: bool, n_layers: int) -> None:
    config = tiny_config(n_layers=6, n_future_tokens=n_future_tokens, shorten_trunk=shorten_trunk)
    model = MultiTokenModel(config)
    assert len(model.trunk.layers) + len(model.heads.layers) == n_layers
    assert meta_params(config)["n_layers"] == n_layers


@every_kind_of_heads
def test_each_weight_has_its_own_name(heads: dict[str, Any]) -> None:
    model = tiny_model(**heads)
    n_trunk_layers = len(model.trunk.layers)
    names = list(model.state_dict())
    renamed = [meta_name(name, n_trunk_layers=n_trunk_layers) for name in names]
    assert len(set(renamed)) == len(names)
    assert set(renamed) == meta_shapes(model.config).keys()


def test_other_heads_weights_have_these_names() -> None:
    linear = meta_shapes(tiny_config(head_type="linear", replicated_unembedding=True, n_future_tokens=3))
    of_heads = {name: tuple(shape) for name, shape in linear.items() if not name.startswith("layers.") or "6" in name}
    assert of_heads == {
        "tok_embeddings.weight": (97, 32),
        "layers.6.weight": (32, 32),
        "extra_heads.0.weight": (32, 32),
        "extra_heads.1.weight": (32, 32),
        "norm.weight": (32,),
        "output.weight": (97, 32),
        "extra_outputs.0.weight": (97, 32),
        "extra_outputs.1.weight": (97, 32),
    }


@pytest.mark.parametrize("n_future_tokens", [1, 4])
@every_kind_of_heads
def test_any_heads_are_the_same_model_afterwards(tmp_path: Path, heads: dict[str, Any], n_future_tokens: int) -> None:
    model = tiny_model(n_future_tokens=n_future_tokens, **heads)
    loaded, tokens = load_model(open_folder(exported(tmp_path / "out", model))), torch.arange(20).view(2, 10)
    assert torch.equal(all_logits(loaded, tokens), all_logits(model, tokens))
    # the same model, with n_layers as if the heads had shortened the trunk
    same = replace(model.config, shorten_trunk=True, n_layers=model.config.n_transformer_layers, ffn_dim_multiplier=1.0)
    assert loaded.config == same


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("head_order", "random", "head_order='random' must be 'parallel', 'causal' or 'anticausal'"),
        ("head_type", "mlp", "head_type='mlp' must be 'transformer' or 'linear'"),
        ("shorten_trunk", False, "unknown key 'shorten_trunk'"),
    ],
)
def test_wrong_values_of_our_keys_are_refused(tmp_path: Path, key: str, value: object, message: str) -> None:
    (tmp_path / "params.json").write_text(json.dumps({**meta_params(tiny_config()), key: value}))
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


def test_weights_of_other_heads_are_listed(tmp_path: Path) -> None:
    exported(tmp_path / "out", tiny_model(replicated_unembedding=True, n_future_tokens=2))
    (tmp_path / "out" / "params.json").write_text(json.dumps(meta_params(tiny_config(n_future_tokens=2))))
    with pytest.raises(UserError, match=r"unexpected key 'extra_outputs\.0\.weight'"):
        load_model(open_folder(tmp_path / "out"))
