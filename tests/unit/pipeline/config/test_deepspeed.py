"""The DeepSpeed JSON: filled values, contradictions with the recipe, and refused settings."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from pipeline.config.deepspeed import (
    deepspeed_problems,
    fill_deepspeed_config,
    read_deepspeed_config,
    tensor_parallel_section,
    zero_stage,
)
from pipeline.config.schema import ParallelConfig
from pipeline.model.network import weight_shapes
from tests.conftest import REPOSITORY
from tests.helpers.recipes import config_over, parallel_config, write_json
from tests.helpers.references import every_kind_of_heads, tiny_config

DS_CONFIGS = sorted((REPOSITORY / "ds_configs").glob("*.json"))

OWNED = {
    "train_batch_size": 16,  # sequences: 512 tokens / 32
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 0.5,
}

OWNED_BY_OPTIMIZER = {"lr": 2e-4, "betas": [0.8, 0.9], "eps": 1e-7, "weight_decay": 0.2}
FILLED = {
    **{key: value for key, value in OWNED.items() if key != "train_batch_size"},  # DeepSpeed derives it
    "optimizer": {"type": "AdamW", "params": {**OWNED_BY_OPTIMIZER, "torch_adam": True}},
    "steps_per_print": None,
}


def test_auto_is_filled_and_everything_else_is_kept() -> None:
    values = {
        **dict.fromkeys(OWNED, "auto"),
        "optimizer": {"type": "AdamW", "params": {**dict.fromkeys(OWNED_BY_OPTIMIZER, "auto"), "torch_adam": True}},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 17},
    }
    filled, problems = fill_deepspeed_config(values, config_over(), data_ranks=2)
    assert problems == []
    assert filled == {**FILLED, "zero_optimization": {"stage": 2, "reduce_bucket_size": 17}}


def test_absent_values_are_filled_like_auto() -> None:
    filled, problems = fill_deepspeed_config({}, config_over(), data_ranks=2)
    assert problems == []
    assert filled == FILLED


def test_the_recipes_values_in_the_json_are_no_contradiction() -> None:
    values = {**OWNED, "optimizer": {"type": "AdamW", "params": OWNED_BY_OPTIMIZER}}
    assert fill_deepspeed_config(values, config_over(), data_ranks=2)[1] == []


def test_every_contradiction_is_named_at_once() -> None:
    values = {
        **dict.fromkeys(OWNED, 3),
        "optimizer": {"type": "AdamW", "params": {"lr": 1.0, "betas": [0.9, 0.9], "eps": 1.0, "weight_decay": 0}},
    }
    _, problems = fill_deepspeed_config(values, config_over(), data_ranks=2)
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
def test_unsupported_settings_are_refused(values: dict[str, Any], message: str) -> None:
    (problem,) = deepspeed_problems(values, ParallelConfig())
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
def test_similar_supported_settings_are_accepted(values: dict[str, Any]) -> None:
    assert deepspeed_problems(values, ParallelConfig()) == []


@pytest.mark.parametrize(
    ("stage", "sizes", "message"),
    [
        (0, {"pipeline_stages": 2}, None),
        (1, {"pipeline_stages": 2}, None),
        (2, {"pipeline_stages": 2}, "parallel.pipeline_stages=2 with ZeRO-2: pipelines accumulate whole gradients"),
        (3, {"pipeline_stages": 2}, "parallel.pipeline_stages=2 with ZeRO-3: pipelines accumulate whole gradients"),
        (0, {"tensor_parallel_size": 2}, "parallel.tensor_parallel_size above 1 needs ZeRO-1, 2 or 3"),
        (1, {"tensor_parallel_size": 2}, None),
        (3, {"tensor_parallel_size": 2}, None),
        (0, {"sequence_parallel_size": 2}, None),
        (3, {"sequence_parallel_size": 2}, None),
    ],
)
def test_each_layout_accepts_the_zero_stages_that_it_works_with(
    stage: int, sizes: dict[str, Any], message: str | None
) -> None:
    problems = deepspeed_problems({"zero_optimization": {"stage": stage}}, ParallelConfig(**sizes))
    assert [problem[: len(message or "")] for problem in problems] == ([] if message is None else [message])


@pytest.mark.parametrize("path", DS_CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_json_is_accepted_and_named_after_its_settings(path: Path) -> None:
    values = read_deepspeed_config(path)
    filled, problems = fill_deepspeed_config(values, config_over(), data_ranks=2)
    assert problems + deepspeed_problems(values, ParallelConfig()) == []
    assert "auto" not in json.dumps(filled)
    offload = "_offload" if "offload_param" in filled["zero_optimization"] else ""
    assert path.stem == f"zero{zero_stage(filled)}_{'bf16' if filled['bf16']['enabled'] else 'fp32'}{offload}"
    assert [key for key in OWNED if values.get(key) != "auto"] == []
    assert [key for key in OWNED_BY_OPTIMIZER if values["optimizer"]["params"].get(key) != "auto"] == []


def test_an_unusable_json_is_refused(tmp_path: Path) -> None:
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


def test_tensor_parallelism_adds_a_section_and_pipelines_turn_overlap_off() -> None:
    values: dict[str, Any] = {"zero_optimization": {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 17}}
    plain, stages, tensors = (
        fill_deepspeed_config(values, config, data_ranks=2)[0]
        for config in (parallel_config(), parallel_config(pipeline_stages=2), parallel_config(tensor_parallel_size=2))
    )
    assert "tensor_parallel" not in plain | stages
    assert plain["zero_optimization"] == tensors["zero_optimization"] == values["zero_optimization"]
    assert stages["zero_optimization"] == {"stage": 1, "overlap_comm": False, "reduce_bucket_size": 17}
    assert tensors["tensor_parallel"]["autotp_size"] == 2


@every_kind_of_heads
def test_tensor_parallelism_divides_only_megatrons_matrices(heads: dict[str, Any]) -> None:
    """Matrices that read the residual stream are split by output, those that write into it by input."""
    specs = tensor_parallel_section(ParallelConfig(tensor_parallel_size=2))["partition_config"]["layer_specs"]
    divided = {
        name: spec["partition_type"]
        for name in weight_shapes(tiny_config(**heads))
        for spec in specs
        if any(re.match(pattern, name) for pattern in spec["patterns"])
    }
    kinds = {"wq": "column", "wk": "column", "wv": "column", "wo": "row", "w1": "column", "w3": "column", "w2": "row"}
    expected = {}
    for name in weight_shapes(tiny_config(**heads)):
        parts = name.split(".")
        if "attention" in parts or "feed_forward" in parts:
            expected[name] = kinds[parts[-2]]
    assert divided == expected
