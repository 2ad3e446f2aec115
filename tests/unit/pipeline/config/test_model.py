"""The model section: the paper's sizes, Llama's feed-forward width, and reading plain values."""

from pathlib import Path

import pytest

from common.command_line import UserError
from pipeline.config.model import MODEL_SIZES, ModelConfig, model_from_dict, resolve_model
from pipeline.config.recipe import load_config
from tests.helpers.recipes import COMPLETE, write_recipe


@pytest.mark.parametrize(
    ("size", "dim", "n_layers", "n_heads", "head_dim", "ffn_dim"),
    [  # paper, Table S14; head and feed-forward widths follow from Llama 2's rules
        ("0.3B", 1024, 18, 16, 64, 2816),
        ("0.6B", 1280, 27, 20, 64, 3584),
        ("1.3B", 2048, 24, 16, 128, 5632),
        ("3B", 2560, 36, 20, 128, 6912),
        ("7B", 4096, 32, 32, 128, 11008),
        ("13B", 5120, 40, 40, 128, 13824),
    ],
)
def test_sizes_are_the_papers(
    tmp_path: Path, size: str, dim: int, n_layers: int, n_heads: int, head_dim: int, ffn_dim: int
) -> None:
    recipe = write_recipe(tmp_path, COMPLETE.replace("dim: 64, n_layers: 6, n_heads: 4", f"size: {size}"))
    model = load_config(recipe).model
    assert (model.dim, model.n_layers, model.n_heads) == (dim, n_layers, n_heads)
    assert (model.head_dim, model.kv_heads, model.ffn_dim) == (head_dim, n_heads, ffn_dim)
    assert model.n_trunk_layers == n_layers - 4


def test_every_size_is_tested_above() -> None:
    assert list(MODEL_SIZES) == ["0.3B", "0.6B", "1.3B", "3B", "7B", "13B"]


@pytest.mark.parametrize(
    ("dim", "multiple_of", "multiplier", "ffn_dim"),
    [
        (4096, 256, 1.0, 11008),  # the released 7B's params.json
        (8192, 4096, 1.3, 28672),  # Llama 2 70B's params.json
        (4096, 1024, 1.3, 14336),  # Llama 3 8B's params.json
        (96, 1, None, 256),  # already a whole number: not rounded up
        (96, 256, None, 256),
    ],
)
def test_ffn_dim_is_llamas_rule(dim: int, multiple_of: int, multiplier: float | None, ffn_dim: int) -> None:
    assert ModelConfig(dim=dim, multiple_of=multiple_of, ffn_dim_multiplier=multiplier).ffn_dim == ffn_dim


def test_model_from_dict_resolves_and_names_its_source() -> None:
    assert model_from_dict({"size": "7B"}) == resolve_model(ModelConfig(size="7B"))
    with pytest.raises(UserError) as error:
        model_from_dict({"dim": "wide", "n_heads": -1}, source="params.json")
    message = str(error.value)
    assert message.startswith("params.json: ")
    assert "dim='wide' must be a whole number from 0 to 1,048,576" in message
    assert "n_heads=-1 must be a whole number from 0 to 65,536" in message
