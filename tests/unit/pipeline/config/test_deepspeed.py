"""The DeepSpeed JSON: filled values, and contradictions with the recipe."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.deepspeed import (
    deepspeed_problems,
    fill_deepspeed_config,
    load_deepspeed_config,
    tensor_parallel_section,
    zero_stage,
)
from pipeline.config.schema import ParallelConfig
from pipeline.model.network import weight_shapes
from tests.conftest import REPOSITORY
from tests.helpers.recipes import config_over, parallel_config
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


@pytest.mark.parametrize("path", DS_CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_json_is_accepted_and_named_after_its_settings(path: Path) -> None:
    values = load_deepspeed_config(path)
    filled, problems = fill_deepspeed_config(values, config_over(), data_ranks=2)
    assert problems + deepspeed_problems(values, ParallelConfig()) == []
    assert "auto" not in json.dumps(filled)
    offload = "_offload" if "offload_param" in filled["zero_optimization"] else ""
    assert path.stem == f"zero{zero_stage(filled)}_{'bf16' if filled['bf16']['enabled'] else 'fp32'}{offload}"
    assert [key for key in OWNED if values.get(key) != "auto"] == []
    assert [key for key in OWNED_BY_OPTIMIZER if values["optimizer"]["params"].get(key) != "auto"] == []


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
