"""How ranks share a run: what is impossible about it is named, all at once; what is told to DeepSpeed."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from pipeline.config.inputs import fill_deepspeed_config, load_inputs, unsupported
from pipeline.config.ranks import parallel_problems, tensor_parallel_section
from pipeline.config.schema import Config, ParallelConfig
from pipeline.model.network import weight_shapes
from tests.helpers.references import every_kind_of_heads, tiny_config
from tests.unit.pipeline.config.test_inputs import ZERO1, config_of, write_json, write_recipe


def parallel(*, compiled: bool = False, n_kv_heads: int | None = None, **sizes: Any) -> Config:
    """Return a run of 6 layers, 4 attention heads, sequences of 32 and a feed-forward width of 256."""
    config = config_of()
    return replace(
        config,
        model=replace(config.model, n_kv_heads=n_kv_heads),
        train=replace(config.train, compile=compiled),
        parallel=ParallelConfig(**sizes),
    )


def test_every_impossible_layout_is_named_in_one_error(tmp_path: Path, byte_shards: Path) -> None:
    recipe = write_recipe(tmp_path, byte_shards)
    offload = {"device": "nvme"}
    zero3 = {"stage": 3, "offload_optimizer": offload, "offload_param": offload}
    json_path = write_json(tmp_path / "ds.json", {"zero_optimization": zero3, "scheduler": {}})
    with pytest.raises(UserError) as error:
        load_inputs(recipe, json_path, overrides=["parallel.pipeline_stages=8"], world_size=12)
    assert str(error.value).split("\n  - ") == [
        f"recipe {recipe} with {json_path}:",
        "parallel.pipeline_stages=8 must divide the 12 ranks of the run: each replica of the model takes that many",
        "parallel.pipeline_stages=8 is more than the model's layers and its unembedding, 7",
        "scheduler: the learning rate belongs to the recipe's optim section; remove it",
        "parallel.pipeline_stages=8 with ZeRO-3: pipelines accumulate whole gradients over their micro batches, so "
        "they work with ZeRO-0 or ZeRO-1 (ds_configs/zero1_bf16.json)",
        "zero_optimization.offload_optimizer.device=nvme: checkpoints need the state in memory; use cpu",
        "zero_optimization.offload_param.device=nvme: checkpoints need the state in memory; use cpu",
    ]


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        (
            parallel(sequence_parallel_size=3),
            [
                "data.seq_len=32 must be a multiple of parallel.sequence_parallel_size=3",
                "model.n_heads=4 must be a multiple of parallel.sequence_parallel_size=3",
                "model.n_kv_heads=4 must be a multiple of parallel.sequence_parallel_size=3",
            ],
        ),
        (
            parallel(sequence_parallel_size=4, n_kv_heads=2),
            ["model.n_kv_heads=2 must be a multiple of parallel.sequence_parallel_size=4"],
        ),
        (
            parallel(tensor_parallel_size=3),
            [
                "model.n_kv_heads=4 must be a multiple of parallel.tensor_parallel_size=3",
                "the feed-forward width=256 must be a multiple of parallel.tensor_parallel_size=3",
            ],
        ),
        (
            parallel(tensor_parallel_size=4, n_kv_heads=2),
            ["model.n_kv_heads=2 must be a multiple of parallel.tensor_parallel_size=4"],
        ),
        (
            parallel(pipeline_stages=2, tensor_parallel_size=2),
            ["parallel.pipeline_stages and parallel.tensor_parallel_size cannot be above 1 together"],
        ),
        (
            parallel(pipeline_stages=2, sequence_parallel_size=2),
            ["parallel.pipeline_stages and parallel.sequence_parallel_size cannot be above 1 together"],
        ),
        (
            parallel(sequence_parallel_size=2, tensor_parallel_size=2),
            ["parallel.sequence_parallel_size and parallel.tensor_parallel_size cannot be above 1 together"],
        ),
        (
            parallel(tensor_parallel_size=2, compiled=True),
            [
                "train.compile=true with parallel.tensor_parallel_size: ranks communicate inside the layers; "
                "set it to false"
            ],
        ),
        (
            parallel(sequence_parallel_size=2, compiled=True),
            [
                "train.compile=true with parallel.sequence_parallel_size: ranks communicate inside the layers; "
                "set it to false"
            ],
        ),
        (
            parallel(pipeline_stages=12),
            ["parallel.pipeline_stages=12 is more than the model's layers and its unembedding, 7"],
        ),
    ],
    ids=lambda value: str(value.parallel).partition("(")[2] if isinstance(value, Config) else "",
)
def test_each_impossible_layout_is_named(config: Config, problems: list[str]) -> None:
    assert parallel_problems(config, world_size=12) == problems


@pytest.mark.parametrize("name", ["pipeline_stages", "sequence_parallel_size", "tensor_parallel_size"])
def test_replicas_must_divide_the_ranks(name: str) -> None:
    sizes: dict[str, Any] = {name: 4}
    config = parallel(**sizes)
    assert parallel_problems(config, world_size=8) == parallel_problems(config, world_size=4) == []
    for n_ranks in (1, 2, 6):
        assert parallel_problems(config, world_size=n_ranks) == [
            f"parallel.{name}=4 must divide the {n_ranks} ranks of the run: each replica of the model takes that many"
        ]


@pytest.mark.parametrize(
    "config",
    [
        parallel(),
        parallel(compiled=True),
        parallel(pipeline_stages=7),  # six layers, and the unembedding alone
        parallel(pipeline_stages=7, compiled=True),
        parallel(sequence_parallel_size=2, n_kv_heads=2),
        parallel(tensor_parallel_size=2, n_kv_heads=2),
    ],
)
def test_possible_layouts_are_not_refused(config: Config) -> None:
    assert parallel_problems(config, world_size=14) == []


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
def test_zero_stages_that_a_layout_works_with(stage: int, sizes: dict[str, Any], message: str | None) -> None:
    problems = unsupported({"zero_optimization": {"stage": stage}}, parallel(**sizes))
    assert [problem[: len(message or "")] for problem in problems] == ([] if message is None else [message])


@pytest.mark.parametrize(
    ("override", "data_ranks"),
    [
        ("parallel.pipeline_stages=1", 4),
        ("parallel.pipeline_stages=2", 2),
        ("parallel.sequence_parallel_size=2", 2),
        ("parallel.tensor_parallel_size=4", 1),
    ],
)
def test_the_batch_is_split_over_replicas(tmp_path: Path, byte_shards: Path, override: str, data_ranks: int) -> None:
    """16 sequences a step, 4 in a micro batch."""
    inputs = load_inputs(write_recipe(tmp_path, byte_shards), ZERO1, overrides=[override], world_size=4)
    assert inputs.data_ranks == data_ranks
    assert inputs.deepspeed_config["gradient_accumulation_steps"] == 4 // data_ranks


def test_deepspeed_is_told_of_tensor_parallelism_and_that_pipelines_do_not_overlap() -> None:
    values: dict[str, Any] = {"zero_optimization": {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 17}}
    plain, stages, tensors = (
        fill_deepspeed_config(values, config, data_ranks=2)[0]
        for config in (parallel(), parallel(pipeline_stages=2), parallel(tensor_parallel_size=2))
    )
    assert "tensor_parallel" not in plain | stages
    assert plain["zero_optimization"] == tensors["zero_optimization"] == values["zero_optimization"]
    assert stages["zero_optimization"] == {"stage": 1, "overlap_comm": False, "reduce_bucket_size": 17}
    assert tensors["tensor_parallel"]["autotp_size"] == 2


@every_kind_of_heads
def test_tensor_parallelism_divides_megatrons_matrices_alone(heads: dict[str, Any]) -> None:
    """Rows of what reads the residual stream, columns of what writes into it."""
    specs = tensor_parallel_section(parallel(tensor_parallel_size=2))["partition_config"]["layer_specs"]
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
