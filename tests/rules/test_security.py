"""Files from elsewhere run no code, lead out of no folder and claim no absurd memory; outputs hold no secret.

tests/unit/pipeline/weights/checkpoint/test_files.py has more tests of checkpoints that would run code.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from common.command_line import UserError
from common.files import inside
from pipeline.convert import main as convert
from pipeline.weights.checkpoint.files import METADATA
from pipeline.weights.checkpoint.folder import STATE
from pipeline.weights.formats.detect import format_of
from tests.conftest import run_module
from tests.helpers.exports import exported
from tests.helpers.references import tiny_model
from tests.helpers.untrusted import OUTSIDE, Hostile, change_metadata, reseal, tiny_recipe, witness_in

SECRET = "sentinel-5f2c"
DEEPSPEED_JSON = "ds_configs/zero1_fp32.json"


def test_code_in_metas_weights_is_not_run(tmp_path: Path) -> None:
    witness = witness_in(tmp_path)
    folder = exported(tmp_path / "meta", tiny_model())
    torch.save({"norm.weight": Hostile(witness)}, folder / "consolidated.pth")
    with pytest.raises(UserError, match=r"consolidated\.pth is not a file of weights"):
        format_of(folder).open(folder)
    assert not witness.exists()


@pytest.mark.parametrize("name", [*OUTSIDE, None, ["a"]])
def test_names_that_lead_out_of_a_folder_are_refused(name: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        inside(tmp_path, name, named_in="list.json")
    assert str(error.value).startswith(f"{tmp_path / 'list.json'} names the file {name!r}, which is not a path inside")


def test_names_inside_a_folder_are_allowed_and_so_are_the_users_links(tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to("/")
    for name in ("a", "a/b.c", "..a/b..", "linked/etc"):
        assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname"])
def test_manifests_name_files_inside_only(name: str, tmp_path: Path) -> None:
    folder = exported(tmp_path / "checkpoint", tiny_model(), to="deepspeed")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = {"bytes": 1, "xxh64": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"names the file {name!r}"):
        format_of(folder).open(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/model.safetensors", ["model.safetensors"]])
def test_an_index_of_weights_names_files_inside_only(name: Any, tmp_path: Path) -> None:
    folder = exported(tmp_path / "hf", tiny_model(), to="hf")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(UserError) as error:
        format_of(folder).open(folder)
    assert str(error.value).startswith(f"{index} names the file {name!r}")


@pytest.mark.parametrize("weight_map", [None, ["model.safetensors"], "model.safetensors"])
def test_an_index_of_weights_without_a_map_is_named(weight_map: Any, tmp_path: Path) -> None:
    folder = exported(tmp_path / "hf", tiny_model(), to="hf")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"index\.json has no weight_map from names to files"):
        format_of(folder).open(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_layers", 10**9), ("dim", 2**62), ("dim", 10**30), ("n_heads", 10**12), ("n_future_tokens", 10**9),
     ("multiple_of", 2**60), ("ffn_dim_multiplier", 1e300), ("ffn_dim_multiplier", float("inf"))],
)  # fmt: skip
@pytest.mark.parametrize("to", ["meta", "hf", "deepspeed"])
def test_models_of_absurd_size_are_refused_before_they_are_built(
    to: str, field: str, value: float, tmp_path: Path
) -> None:
    folder = exported(tmp_path / "model", tiny_model(), to=to)
    name = {"meta": "params.json", "hf": "config.json", "deepspeed": STATE}[to]
    values = json.loads((folder / name).read_text())
    model = {"meta": lambda: values, "hf": lambda: values["multi_token_prediction"],
             "deepspeed": lambda: values["config"]["model"]}[to]()  # fmt: skip
    model[field] = value
    (folder / name).write_text(json.dumps(values))
    if to == "deepspeed":
        reseal(folder)
    unusable = rf"{name} holds (inf, which is not a finite number|an integer of 100 bits)"
    with pytest.raises(UserError, match=rf"{name}.*: {field}=\S+ is larger than in any model|{unusable}"):
        format_of(folder).open(folder)


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"])
@pytest.mark.parametrize("value", [10**9, 10**30, 0, -1, "4", 1.5, None, [4]])
def test_a_llamas_sizes_must_be_plausible_whole_numbers(key: str, value: Any, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 3, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 97, **sizes, key: value}))
    refused = rf"{key}=\S+ must be an integer from 1 to 16,777,216|missing key '{key}'|holds an integer of 100 bits"
    with pytest.raises(UserError, match=refused):
        format_of(tmp_path).read_config(tmp_path)


def test_json_that_is_too_deep_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"params\.json is nested deeper than"):
        format_of(tmp_path).read_config(tmp_path)


HEADERS = {
    "longer than the file": (2**60, b"{}"),
    "beyond the file": (None, {"lm_head.weight": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4]}}),
    "overflowing": (None, {"lm_head.weight": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_absurd_headers_of_safetensors_are_named(name: str, tmp_path: Path) -> None:
    length, header = HEADERS[name]
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    folder = exported(tmp_path / "hf", tiny_model(), to="hf")
    contents = (length or len(encoded)).to_bytes(8, "little") + encoded + b"\0" * 4
    (folder / "model.safetensors").write_bytes(contents)
    with pytest.raises(UserError, match=r"model\.safetensors is not a file of weights"):
        format_of(folder).open(folder)


HOLLOW = {
    "expanded": lambda shape: torch.zeros(1).expand(shape),
    "sparse": lambda shape: torch.sparse_coo_tensor(
        torch.zeros(2, 1).long(), torch.ones(1), shape, check_invariants=True
    ),
    "meta": lambda shape: torch.empty(shape, device="meta"),
}


@pytest.mark.parametrize("kind", HOLLOW)
def test_weights_that_claim_more_than_the_file_holds_are_named(kind: str, tmp_path: Path) -> None:
    folder = exported(tmp_path / "meta", tiny_model())
    weights = torch.load(folder / "consolidated.pth", weights_only=True)
    weights["output.weight"] = HOLLOW[kind](weights["output.weight"].shape)
    torch.save(weights, folder / "consolidated.pth")
    with pytest.raises(UserError, match=r"consolidated\.pth does not hold all the values of 'output\.weight'"):
        format_of(folder).open(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, byte_shards: Path) -> tuple[Path, str]:
    """Return a run's folder, two levels below its recipe, and what the run printed; its environment held secrets."""
    folder = tmp_path_factory.mktemp("trained")
    home = folder / f"home-{SECRET}"
    home.mkdir()
    names = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "NCCL_SECRET", "TORCH_SECRET", "DS_SECRET")
    variables: dict[str, Any] = dict.fromkeys(names, SECRET) | {"HOME": str(home)}
    recipe = tiny_recipe(folder, shards=byte_shards)
    done = run_module("pipeline.train", "--config", recipe, "--deepspeed_config", DEEPSPEED_JSON, **variables)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "tiny", done.stdout + done.stderr


def test_a_run_and_its_export_reveal_no_secrets(trained: tuple[Path, str], tmp_path: Path) -> None:
    """Neither in the output nor in logs, metrics, TensorBoard's event files, checkpoints or the model card."""
    run, output = trained
    convert(["--input", str(run), "--to", "hf", "--output", str(tmp_path / "exported")])
    written = [path for folder in (run, tmp_path / "exported") for path in folder.rglob("*") if path.is_file()]
    assert {"train.log", "environment.json", "metrics.jsonl", "README.md", METADATA} <= {path.name for path in written}
    assert any(path.name.startswith("events.out.tfevents") for path in written)
    told = {path: path.read_bytes() for path in written} | {"output": output.encode()}
    assert [where for where, contents in told.items() if SECRET.encode() in contents] == []


def test_a_resumed_run_executes_no_code_of_its_checkpoint(trained: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = trained
    shutil.copytree(run, tmp_path / "runs" / "tiny")
    [checkpoint] = (tmp_path / "runs" / "tiny" / "checkpoints").iterdir()
    witness = witness_in(tmp_path)
    change_metadata(checkpoint, lambda found: Hostile(witness))
    done = run_module(
        "pipeline.train", "--config", run.parent.parent / "tiny.yaml", "--deepspeed_config", DEEPSPEED_JSON,
        f"run.dir={tmp_path / 'runs'}", "train.total_tokens=512",
    )  # fmt: skip
    assert not witness.exists()
    assert done.returncode == 2, done.stderr
    assert f"{METADATA} names pathlib.Path.touch, which none of our checkpoints does" in done.stderr
    assert "Traceback" not in done.stderr
