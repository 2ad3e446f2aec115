"""Conversion to Meta's format and back: names, files, refusals, and that a folder is replaced whole or not at all."""

import json
from pathlib import Path

import pytest
import torch
import xxhash
from torch import Tensor

from common.command_line import UserError
from pipeline import convert
from pipeline.config import Config, DataConfig, ModelConfig, resolve_model
from pipeline.convert import load_meta_model, meta_name, meta_params, meta_shapes, own_name, write_meta
from pipeline.model import MultiTokenModel
from tests.unit.references import all_logits, tiny_model


def write_checkpoint(folder: Path, model: MultiTokenModel, *, shards: Path | str = "shards") -> None:
    """Write a checkpoint folder as training seals it; the weights' file stands for DeepSpeed's."""
    folder.mkdir(parents=True)
    config = Config(model=model.config, data=DataConfig(shards=str(shards)))
    (folder / "training_state.json").write_text(json.dumps({"step": 7, "config": config.as_dict()}))
    torch.save(model.state_dict(), folder / "weights.pt")
    manifest = {
        path.name: {"bytes": path.stat().st_size, "xxh64": xxhash.xxh64(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two whole checkpoints and a damaged one; their weights are those of seeds 1, 2 and 3."""

    def consolidated_weights(checkpoint: Path) -> dict[str, Tensor]:
        return torch.load(checkpoint / "weights.pt", weights_only=True)

    monkeypatch.setattr("pipeline.engine.consolidated_weights", consolidated_weights)
    checkpoints = tmp_path / "runs" / "tiny" / "checkpoints"
    for step in (1, 2, 3):
        write_checkpoint(checkpoints / f"step_{step:08d}", tiny_model(seed=step), shards=tmp_path / "shards")
    (checkpoints / "step_00000003" / "weights.pt").write_bytes(b"torn")
    return tmp_path / "runs" / "tiny"


def exported(tmp_path: Path, model: MultiTokenModel) -> Path:
    folder = tmp_path / "meta"
    folder.mkdir()
    write_meta(model.state_dict(), model.config, folder)
    return folder


def run(source: Path, output: Path, *more: str) -> None:
    convert.main(["--input", str(source), "--to", "meta", "--output", str(output), *more])


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


@pytest.mark.parametrize(("n_layers", "n_future_tokens"), [(6, 4), (12, 1), (12, 11), (3, 3)])
def test_names_round_trip(n_layers: int, n_future_tokens: int) -> None:
    model = tiny_model(n_layers=n_layers, n_future_tokens=n_future_tokens)
    n_trunk_layers = n_layers - n_future_tokens
    names = list(model.state_dict())
    renamed = [meta_name(name, n_trunk_layers=n_trunk_layers) for name in names]
    assert len(set(renamed)) == len(names)
    assert [own_name(name, n_trunk_layers=n_trunk_layers) for name in renamed] == names


def test_head_layers_go_where_meta_has_them() -> None:
    assert meta_name("heads.layers.0.attention.wq.weight", n_trunk_layers=28) == "layers.28.attention.wq.weight"
    assert meta_name("heads.layers.3.ffn_norm.weight", n_trunk_layers=28) == "extra_heads.2.ffn_norm.weight"
    assert meta_name("trunk.layers.2.ffn_norm.weight", n_trunk_layers=28) == "layers.2.ffn_norm.weight"
    assert own_name("layers.28.attention.wq.weight", n_trunk_layers=28) == "heads.layers.0.attention.wq.weight"
    assert own_name("layers.2.attention.wq.weight", n_trunk_layers=28) == "trunk.layers.2.attention.wq.weight"


def test_params_are_those_of_the_release() -> None:
    assert meta_params(resolve_model(ModelConfig(size="7B", n_future_tokens=4))) == {
        "dim": 4096, "ffn_dim_multiplier": 1.0, "multiple_of": 256, "n_future_tokens": 4, "n_heads": 32,
        "n_kv_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "rope_theta": 10000.0, "vocab_size": 32000,
    }  # fmt: skip


def test_params_without_n_future_tokens_mean_one_head(tmp_path: Path) -> None:
    values = meta_params(tiny_model().config)
    del values["n_future_tokens"]
    (tmp_path / "params.json").write_text(json.dumps(values))
    assert convert.read_meta_params(tmp_path).n_future_tokens == 1


def test_a_run_is_exported_from_its_newest_whole_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    run(run_dir, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["consolidated.pth", "params.json"]
    assert json.loads((tmp_path / "out" / "params.json").read_text()) == meta_params(tiny_model().config)
    weights = torch.load(tmp_path / "out" / "consolidated.pth", weights_only=True)
    assert weights.keys() == meta_shapes(tiny_model().config).keys()
    tokens = torch.arange(20).view(2, 10)
    loaded = load_meta_model(tmp_path / "out")
    assert torch.equal(all_logits(loaded, tokens), all_logits(tiny_model(seed=2), tokens))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_shards_that_are_gone_are_missed_aloud(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(run_dir, tmp_path / "out")
    assert f"{tmp_path}/shards, are not here, so their tokenizer.model is not copied" in capsys.readouterr().err


def test_one_checkpoint_with_its_tokenizer_in_half_precision(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "tokenizer.model").write_bytes(b"vocabulary")
    run(run_dir / "checkpoints" / "step_00000001", tmp_path / "out", "--dtype", "bf16")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"vocabulary"
    assert f"--tokenizer_path {tmp_path}/out/tokenizer.model --first_token eos" in capsys.readouterr().out
    loaded, original = load_meta_model(tmp_path / "out"), tiny_model(seed=1)
    assert all(parameter.dtype == torch.bfloat16 for parameter in loaded.parameters())
    assert torch.equal(loaded.heads.output.weight, original.heads.output.weight.bfloat16())
    assert load_meta_model(tmp_path / "out", dtype=torch.float32).heads.output.weight.dtype == torch.float32


def test_weights_that_share_one_buffer_are_written_once_each(tmp_path: Path) -> None:
    flat = torch.arange(1000.0)
    weights = convert.with_dtype({"one": flat[:10], "two": flat[10:30].view(4, 5)}, torch.float32)
    assert [weight.untyped_storage().nbytes() for weight in weights.values()] == [40, 80]
    assert torch.equal(weights["two"], flat[10:30].view(4, 5))


def test_a_former_export_is_replaced_whole(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "tokenizer.model").write_bytes(b"of another model")
    (out / "params.json").write_text("{}")
    run(run_dir, out)
    assert sorted(path.name for path in out.iterdir()) == ["consolidated.pth", "params.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_a_failed_export_leaves_the_former_one(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(run_dir, tmp_path / "out")
    before = (tmp_path / "out" / "params.json").stat().st_ino

    def full_disk(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "write_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(run_dir, tmp_path / "out")
    assert (tmp_path / "out" / "params.json").stat().st_ino == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_a_failed_exchange_puts_the_former_export_back(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(run_dir, tmp_path / "out")
    before = (tmp_path / "out" / "params.json").stat().st_ino
    replace = Path.replace

    def failing_replace(self: Path, target: Path) -> Path:
        if self.name.startswith(".out.partial"):
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing_replace)
    with pytest.raises(OSError, match="Input/output error"):
        run(run_dir, tmp_path / "out")
    assert (tmp_path / "out" / "params.json").stat().st_ino == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_wrong_inputs_and_outputs_are_named(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    cases = [
        (tmp_path / "nowhere", tmp_path / "out", "neither a run directory .* nor a checkpoint"),
        (tmp_path / "young", tmp_path / "out", "no whole checkpoint"),
        (run_dir / "checkpoints" / "step_00000003", tmp_path / "out", "is damaged"),
        (run_dir, tmp_path / "notes", "holds 'diary.txt', which is no export"),
        (run_dir, tmp_path / "file", "is a file; give a folder"),
        (run_dir, tmp_path / "file" / "out", "cannot be written"),
    ]
    for source, output, message in cases:
        with pytest.raises(UserError, match=message):
            run(source, output)
    assert (tmp_path / "notes" / "diary.txt").exists()
    assert not (tmp_path / "out").exists()


def test_weights_of_another_architecture_are_not_exported(run_dir: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "odd", tiny_model())
    torch.save(tiny_model(vocab_size=50).state_dict(), tmp_path / "odd" / "weights.pt")
    (tmp_path / "odd" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"'output.weight' has shape \(50, 32\), not \(97, 32\)"):
        run(tmp_path / "odd", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_writers_files_load(tmp_path: Path) -> None:
    model = tiny_model()
    folder = exported(tmp_path, model)
    weights = torch.load(folder / "consolidated.pth", weights_only=True)
    (folder / "consolidated.pth").unlink()
    torch.save(weights | {"rope.freqs": torch.ones(4)}, folder / "consolidated.00.pth")
    assert torch.equal(load_meta_model(folder).heads.norm.weight, model.heads.norm.weight)


def test_every_weight_that_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = exported(tmp_path, tiny_model())
    weights = torch.load(folder / "consolidated.pth", weights_only=True)
    del weights["norm.weight"], weights["extra_heads.2.ffn_norm.weight"]
    weights |= {"extra_heads.3.ffn_norm.weight": torch.ones(32), "output.weight": torch.ones(96, 32)}
    torch.save(weights, folder / "consolidated.pth")
    with pytest.raises(UserError) as error:
        load_meta_model(folder)
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
        ("{", "cannot be read as JSON"),
        ("[]", "must hold one JSON object"),
        ('{"dim": 32, "n_layers": 6, "n_heads": 4, "vocab_size": 97, "mtp_heads": 4}', "unknown key 'mtp_heads'"),
        ('{"dim": 32, "n_layers": 6, "n_heads": 4}', "missing key 'vocab_size'"),
        ('{"dim": "wide", "n_layers": 6, "n_heads": 4, "vocab_size": 97}', "dim='wide'"),
        ('{"dim": 32, "n_layers": 6, "n_heads": 5, "vocab_size": 97}', "must be an even head width"),
        ('{"dim": 32, "n_layers": 6, "n_heads": 4, "vocab_size": 97}', "has no consolidated.pth or"),
    ],
)
def test_bad_folders_are_named(tmp_path: Path, contents: str | None, message: str) -> None:
    if contents is not None:
        (tmp_path / "params.json").write_text(contents)
    with pytest.raises(UserError, match=message):
        load_meta_model(tmp_path)


@pytest.mark.parametrize("contents", [b"", b"not weights", b"PK\x03\x04torn"])
def test_unreadable_weights_are_named(tmp_path: Path, contents: bytes) -> None:
    folder = exported(tmp_path, tiny_model())
    (folder / "consolidated.pth").write_bytes(contents)
    with pytest.raises(UserError, match="is not a file of weights"):
        load_meta_model(folder)
