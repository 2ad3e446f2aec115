"""Everything a run reads before it starts: each contradiction is named, all at once, before torch is imported."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from pipeline.config.inputs import fill_deepspeed_config, load_inputs, read_deepspeed_config, unsupported, zero_stage
from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, OptimConfig, TrainConfig
from tests.conftest import REPOSITORY, run_module

DS_CONFIGS = sorted((REPOSITORY / "ds_configs").glob("*.json"))
ZERO1 = REPOSITORY / "ds_configs" / "zero1_fp32.json"
RECIPE = """
model: {{dim: 32, n_layers: 6, n_heads: 4, vocab_size: 258, n_future_tokens: 4}}
data: {{shards: {shards}, seq_len: 32}}
train: {{total_tokens: 8192, batch_tokens: 512, micro_batch_size: 4}}
optim: {{warmup_steps: 2}}
"""


def write_recipe(directory: Path, shards: Path) -> Path:
    path = directory / "recipe.yaml"
    path.write_text(RECIPE.format(shards=shards), encoding="utf-8")
    return path


def write_json(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def config_of(shards: Path | str = "", *, n_future_tokens: int = 4, eval_every_steps: int = 5) -> Config:
    return Config(
        model=ModelConfig(dim=32, n_layers=6, n_heads=4, vocab_size=258, n_future_tokens=n_future_tokens),
        data=DataConfig(shards=str(shards), seq_len=32),
        train=TrainConfig(batch_tokens=512, micro_batch_size=4, eval_every_steps=eval_every_steps, eval_tokens=640),
        optim=OptimConfig(lr=2e-4, beta1=0.8, beta2=0.9, eps=1e-7, weight_decay=0.2, clip=0.5),
    )


OWNED = {
    "train_batch_size": 16,  # sequences: 512 tokens / 32
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 0.5,
}
OWNED_BY_OPTIMIZER = {"lr": 2e-4, "betas": [0.8, 0.9], "eps": 1e-7, "weight_decay": 0.2}


def test_auto_is_filled_and_the_rest_is_kept() -> None:
    values = {
        **dict.fromkeys(OWNED, "auto"),
        "optimizer": {"type": "AdamW", "params": {**dict.fromkeys(OWNED_BY_OPTIMIZER, "auto"), "torch_adam": True}},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 17},
    }
    filled, problems = fill_deepspeed_config(values, config_of(), data_ranks=2)
    assert problems == []
    assert filled == {
        **{key: value for key, value in OWNED.items() if key != "train_batch_size"},  # follows from the others
        "optimizer": {"type": "AdamW", "params": {**OWNED_BY_OPTIMIZER, "torch_adam": True}},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 17},
        "steps_per_print": None,
    }


def test_absent_is_filled_like_auto() -> None:
    filled, problems = fill_deepspeed_config({}, config_of(), data_ranks=2)
    assert problems == []
    assert filled == {
        **{key: value for key, value in OWNED.items() if key != "train_batch_size"},  # follows from the others
        "optimizer": {"type": "AdamW", "params": {**OWNED_BY_OPTIMIZER, "torch_adam": True}},
        "steps_per_print": None,
    }


def test_the_recipes_own_numbers_are_no_contradiction() -> None:
    values = {**OWNED, "optimizer": {"type": "AdamW", "params": OWNED_BY_OPTIMIZER}}
    assert fill_deepspeed_config(values, config_of(), data_ranks=2)[1] == []


def test_every_contradiction_is_named_at_once() -> None:
    values = {
        **dict.fromkeys(OWNED, 3),
        "optimizer": {"type": "AdamW", "params": {"lr": 1.0, "betas": [0.9, 0.9], "eps": 1.0, "weight_decay": 0}},
    }
    _, problems = fill_deepspeed_config(values, config_of(), data_ranks=2)
    assert sorted(problems) == sorted(
        [
            'train_batch_size=3 contradicts the recipe\'s 16; write "auto" there',
            'train_micro_batch_size_per_gpu=3 contradicts the recipe\'s 4; write "auto" there',
            'gradient_accumulation_steps=3 contradicts the recipe\'s 2; write "auto" there',
            'gradient_clipping=3 contradicts the recipe\'s 0.5; write "auto" there',
            'optimizer.params.lr=1.0 contradicts the recipe\'s 0.0002; write "auto" there',
            'optimizer.params.betas=[0.9, 0.9] contradicts the recipe\'s [0.8, 0.9]; write "auto" there',
            'optimizer.params.eps=1.0 contradicts the recipe\'s 1e-07; write "auto" there',
            'optimizer.params.weight_decay=0 contradicts the recipe\'s 0.2; write "auto" there',
        ]
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler: the learning rate belongs to the recipe's optim section"),
        ({"fp16": {"enabled": True}}, "fp16.enabled=true: gradients of the heads are computed before the loss is"),
        ({"bf16": {"enabled": True}}, "bf16 without ZeRO does not train exactly; use ZeRO-1"),
        (
            {"optimizer": {"type": "AdamW", "params": {"torch_adam": False}}},
            "optimizer.params.torch_adam must be true: checkpoints hold the state of torch's AdamW",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "zero_optimization.offload_param.device=nvme: checkpoints need the state in memory; use cpu",
        ),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel: belongs to the recipe"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage=4 must be 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": "auto"}}, "zero_optimization.stage='auto' must be 0, 1, 2 or 3"),
        ({"optimizer": {"type": "Adam"}}, "optimizer.type='Adam' is not the recipe's AdamW (decoupled weight decay)"),
        ({"optimizer": {}}, "optimizer.type=None is not the recipe's AdamW (decoupled weight decay)"),
    ],
)
def test_what_does_not_train_or_convert_is_refused(values: dict[str, Any], message: str) -> None:
    (problem,) = unsupported(values, config_of())
    assert problem.startswith(message)


@pytest.mark.parametrize(
    "values",
    [
        {"fp16": {"enabled": False}, "bf16": {"enabled": False}},
        {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}},
        {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "fp32"}},
        {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}},
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
    ],
)
def test_their_harmless_neighbours_are_not(values: dict[str, Any]) -> None:
    assert unsupported(values, config_of()) == []


@pytest.mark.parametrize("path", DS_CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_json_is_accepted_and_named_after_what_it_does(path: Path) -> None:
    values = read_deepspeed_config(path)
    filled, problems = fill_deepspeed_config(values, config_of(), data_ranks=2)
    assert problems + unsupported(values, config_of()) == []
    assert "auto" not in json.dumps(filled)
    offload = "_offload" if "offload_param" in filled["zero_optimization"] else ""
    assert path.stem == f"zero{zero_stage(filled)}_{'bf16' if filled['bf16']['enabled'] else 'fp32'}{offload}"
    assert [key for key in OWNED if values.get(key) != "auto"] == []
    assert [key for key in OWNED_BY_OPTIMIZER if values["optimizer"]["params"].get(key) != "auto"] == []


def test_json_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    with pytest.raises(UserError, match=rf"^DeepSpeed config {path} cannot be read \(.*\); see ds_configs/$"):
        read_deepspeed_config(path)
    path.write_text('{"bf16": ', encoding="utf-8")
    with pytest.raises(UserError, match=rf"^DeepSpeed config {path} is not JSON: Expecting value"):
        read_deepspeed_config(path)
    write_json(path, ["auto"])
    with pytest.raises(UserError, match=rf"^DeepSpeed config {path} must be a JSON object, not list$"):
        read_deepspeed_config(path)


@pytest.mark.parametrize("section", ["optimizer", "bf16", "fp16", "zero_optimization", "data_types"])
def test_json_sections_must_be_objects(tmp_path: Path, section: str) -> None:
    path = write_json(tmp_path / "ds.json", {section: True})
    with pytest.raises(UserError, match=rf"^DeepSpeed config {path}: {section}=True must be a JSON object$"):
        read_deepspeed_config(path)


def test_good_inputs_come_back_whole(tmp_path: Path, byte_shards: Path) -> None:
    inputs = load_inputs(write_recipe(tmp_path, byte_shards), ZERO1, overrides=["train.seed=3"], world_size=2)
    assert inputs.config.train.seed == 3
    assert inputs.deepspeed_config["gradient_accumulation_steps"] == 2
    assert inputs.metadata == json.loads((byte_shards / "metadata.json").read_text(encoding="utf-8"))


def test_problems_of_all_three_inputs_come_together(tmp_path: Path) -> None:
    recipe, missing = write_recipe(tmp_path, tmp_path / "none"), tmp_path / "none.json"
    with pytest.raises(UserError) as error:
        load_inputs(recipe, missing, overrides=["optim.lr=-1"], world_size=3)
    heading, *problems = str(error.value).split("\n  - ")
    assert heading == f"recipe {recipe} with {missing}:"
    assert [problem.split("=")[0].split(" cannot")[0].split(" does")[0] for problem in problems] == [
        "optim.lr",
        "train.batch_tokens",
        f"DeepSpeed config {missing}",
        f"{tmp_path}/none/metadata.json",
    ]


@pytest.mark.parametrize(("n_nodes", "fits"), [(1, True), (8, True), (128, True), (6, False), (100, False)])
def test_canonical_nodes_must_divide_or_be_divided_by_the_nodes(
    tmp_path: Path, byte_shards: Path, n_nodes: int, fits: bool
) -> None:
    def load() -> None:
        load_inputs(write_recipe(tmp_path, byte_shards), ZERO1, overrides=[], world_size=1, n_nodes=n_nodes)

    if fits:
        load()
    else:
        with pytest.raises(
            UserError, match=f"num_canonical_nodes=64 must divide, or be divided by, the {n_nodes} nodes"
        ):
            load()


def test_the_command_answers_mistakes_before_it_imports_torch(tmp_path: Path, byte_shards: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(byte_shards, shards)
    metadata = json.loads((shards / "metadata.json").read_text(encoding="utf-8"))
    write_json(shards / "metadata.json", {**metadata, "seq_len": 64})
    recipe = write_recipe(tmp_path, shards)
    json_path = write_json(tmp_path / "ds.json", {"gradient_clipping": 9, "fp16": {"enabled": True}})
    run_dir = tmp_path / "runs"
    result = run_module(
        "pipeline.train", "--config", recipe, "--deepspeed_config", json_path, f"run.dir={run_dir}", "optim.lr=-1",
        PYTHONPROFILEIMPORTTIME="1",
    )  # fmt: skip
    # Python's tracker of shared memory, a process of its own, writes its imports between those and the message
    imported = {line.rpartition("|")[2].strip() for line in re.findall("import time:.*\n", result.stderr)}
    message = re.sub("import time:.*\n", "", result.stderr).strip()
    assert result.returncode == 2
    assert result.stdout == ""
    assert message == (
        f"pipeline.train: error: recipe {recipe} with {json_path}:\n"
        "  - optim.lr=-1: Input should be greater than 0\n"
        '  - gradient_clipping=9 contradicts the recipe\'s 1.0; write "auto" there\n'
        "  - fp16.enabled=true: gradients of the heads are computed before the loss is scaled and would underflow; "
        "use bf16 or fp32\n"
        "  - data.seq_len=32, but the shards have seq_len=64"
    )
    assert "pipeline.config.inputs" in imported
    assert imported.isdisjoint({"torch", "deepspeed", "streaming", "transformers"})
    assert not run_dir.exists()
