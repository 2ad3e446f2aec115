"""Meta's format: names, params.json, folders of other tools, and the folders that are refused."""

import json
from pathlib import Path

import pytest
import torch

from common.command_line import UserError
from pipeline.config.model import ModelConfig, resolve_model
from pipeline.weights.formats.export import ExportOptions
from pipeline.weights.formats.meta import meta_name, meta_params, meta_shapes, open_folder, read_config
from pipeline.weights.formats.stored_model import load_model
from tests.helpers.exports import exported
from tests.helpers.references import all_logits, tiny_model


def test_released_7b_has_291_weights_with_these_names() -> None:
    shapes = meta_shapes(resolve_model(ModelConfig(size="7B", n_future_tokens=4)))
    layers = [f"layers.{i}" for i in range(29)] + [f"extra_heads.{i}" for i in range(3)]
    parts = [f"attention.w{x}" for x in "qkvo"] + [f"feed_forward.w{i}" for i in (1, 2, 3)]
    parts += ["attention_norm", "ffn_norm"]
    expected = {f"{layer}.{part}.weight" for layer in layers for part in parts}
    assert shapes.keys() == expected | {"tok_embeddings.weight", "norm.weight", "output.weight"}
    assert len(shapes) == 291
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 6_738_415_616
    assert shapes["extra_heads.2.feed_forward.w2.weight"] == (4096, 11008)


def test_baseline_has_no_extra_heads() -> None:
    names = meta_shapes(resolve_model(ModelConfig(size="7B", n_future_tokens=1)))
    assert "layers.31.ffn_norm.weight" in names
    assert not any(name.startswith("extra_heads") for name in names)


def test_head_layers_have_metas_names() -> None:
    assert meta_name("heads.layers.0.attention.wq.weight", n_trunk_layers=28) == "layers.28.attention.wq.weight"
    assert meta_name("heads.layers.3.ffn_norm.weight", n_trunk_layers=28) == "extra_heads.2.ffn_norm.weight"
    assert meta_name("trunk.layers.2.ffn_norm.weight", n_trunk_layers=28) == "layers.2.ffn_norm.weight"


def test_params_are_those_of_the_release() -> None:
    assert meta_params(resolve_model(ModelConfig(size="7B", n_future_tokens=4))) == {
        "dim": 4096, "ffn_dim_multiplier": 1.0, "multiple_of": 256, "n_future_tokens": 4, "n_heads": 32,
        "n_kv_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "rope_theta": 10000.0, "vocab_size": 32000,
    }  # fmt: skip


def test_params_without_n_future_tokens_mean_one_head(tmp_path: Path) -> None:
    values = meta_params(tiny_model().config)
    del values["n_future_tokens"]
    (tmp_path / "params.json").write_text(json.dumps(values))
    assert read_config(tmp_path).n_future_tokens == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("vocabulary", [{"vocab_size": -1}, {}])
def test_an_ordinary_llama_2_folder_loads(tmp_path: Path, dtype: torch.dtype, vocabulary: dict[str, int]) -> None:
    """Like Meta's Llama 2 and CodeLlama: another file name, rotary frequencies, no heads, no size of the vocabulary."""
    model = tiny_model(n_future_tokens=1)
    weights = {meta_name(name, n_trunk_layers=5): weight.to(dtype) for name, weight in model.state_dict().items()}
    frequencies = 1 / 10_000 ** (torch.arange(0, 8, 2) / 8)
    torch.save(weights | {"rope.freqs": frequencies.to(dtype)}, tmp_path / "consolidated.00.pth")
    params = {"dim": 32, "multiple_of": 16, "n_heads": 4, "n_kv_heads": 2, "n_layers": 6, "norm_eps": 1e-5}
    (tmp_path / "params.json").write_text(json.dumps(params | vocabulary))
    loaded, tokens = load_model(open_folder(tmp_path)), torch.arange(20).view(2, 10)
    assert loaded.config.vocab_size == 97
    assert {weight.dtype for weight in loaded.parameters()} == {dtype}
    whole = load_model(open_folder(tmp_path), dtype=torch.float32)
    assert torch.equal(all_logits(whole, tokens), all_logits(model.to(dtype).float(), tokens))


def test_a_model_in_several_parts_is_refused(tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", tiny_model())
    (folder / "consolidated.pth").rename(folder / "consolidated.00.pth")
    (folder / "consolidated.01.pth").touch()
    with pytest.raises(UserError, match="in several parts"):
        open_folder(folder)


@pytest.mark.parametrize("stored", [[torch.ones(2)], {"norm.weight": "heavy"}])
def test_files_without_weights_are_reported(tmp_path: Path, stored: object) -> None:
    folder = exported(tmp_path / "out", tiny_model())
    torch.save(stored, folder / "consolidated.pth")
    with pytest.raises(UserError, match=r"is not one flat dict of weights by name"):
        open_folder(folder)


def test_every_weight_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", tiny_model())
    weights = torch.load(folder / "consolidated.pth", weights_only=True)
    del weights["norm.weight"], weights["extra_heads.2.ffn_norm.weight"]
    weights |= {"extra_heads.3.ffn_norm.weight": torch.ones(32), "output.weight": torch.ones(96, 32)}
    torch.save(weights, folder / "consolidated.pth")
    with pytest.raises(UserError) as error:
        open_folder(folder)
    for part in (
        "missing key 'norm.weight'",
        "missing key 'extra_heads.2.ffn_norm.weight'",
        "unexpected key 'extra_heads.3.ffn_norm.weight'",
        "'output.weight' has shape (96, 32), not (97, 32)",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "has no params.json"),
        ("{", "is not JSON"),
        ("[]", "must hold one JSON object"),
        ('{"dim": 32, "n_layers": 6, "n_heads": 4, "vocab_size": 97, "mtp_heads": 4}', "unknown key 'mtp_heads'"),
        ('{"n_layers": 6, "n_heads": 4}', "has no consolidated.pth or"),
        ('{"n_layers": 6, "n_heads": 4, "vocab_size": 97}', "missing key 'dim'"),
        ('{"dim": "wide", "n_layers": 6, "n_heads": 4, "vocab_size": 97}', "dim='wide'"),
        ('{"dim": 32, "n_layers": 6, "n_heads": 5, "vocab_size": 97}', "heads need an even width"),
        ('{"dim": 32, "n_layers": 6, "n_heads": 4, "vocab_size": 97}', "has no consolidated.pth or"),
    ],
)
def test_bad_folders_are_reported(tmp_path: Path, contents: str | None, message: str) -> None:
    if contents is not None:
        (tmp_path / "params.json").write_text(contents)
    with pytest.raises(UserError, match=message):
        open_folder(tmp_path)


@pytest.mark.parametrize("contents", [b"", b"not weights", b"PK\x03\x04torn"])
def test_unreadable_weights_are_reported(tmp_path: Path, contents: bytes) -> None:
    folder = exported(tmp_path / "out", tiny_model())
    (folder / "consolidated.pth").write_bytes(contents)
    with pytest.raises(UserError, match=r"is not a file of weights"):
        open_folder(folder)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_other_rotary_frequencies_are_refused(tmp_path: Path, factor: float) -> None:
    folder = exported(tmp_path / "export", tiny_model())
    weights = torch.load(folder / "consolidated.pth", weights_only=True)
    weights["rope.freqs"] = factor / 10_000 ** (torch.arange(0, 8, 2) / 8)
    torch.save(weights, folder / "consolidated.pth")
    with pytest.raises(UserError, match=r"rope\.freqs holds other rotary frequencies than rope_theta=10000"):
        open_folder(folder)


def test_weights_that_do_not_fit_the_precision_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    model.heads.output.weight.data[0, 0] = 1e5
    with pytest.raises(UserError, match=r"'heads\.output\.weight' has 1 value that float16 cannot hold"):
        exported(tmp_path / "export", model, options=ExportOptions(dtype=torch.float16))
    assert list((tmp_path / "export").iterdir()) == []
