"""The lines that open a run: model, layout, batch arithmetic, cost and pipeline stages."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.inputs import Inputs
from pipeline.config.schema import ParallelConfig
from pipeline.model.partition import describe
from pipeline.monitoring.header import header
from pipeline.runtime.world import World
from tests.helpers.monitored import CPU, MAIN, config_in


def test_the_header_shows_the_arithmetic_of_a_batch(tmp_path: Path) -> None:
    inputs = Inputs(
        config=config_in(tmp_path), deepspeed_config={"zero_optimization": {"stage": 2}}, metadata={}, data_ranks=2
    )
    # 2 x 50 x 16 embeddings, 6 layers of 4 x 16 x 16 + 3 x 16 x 48 + 2 x 16, the last norm's 16
    n_parameters = 1600 + 6 * (1024 + 2304 + 32) + 16
    # 6 x the layers' matrices, 12 x dim x positions of attention in each, 6 x the unembedding for each head
    flops = 6 * 6 * (1024 + 2304) + 6 * 12 * 16 * 32 + 2 * 6 * 50 * 16
    assert header(inputs, world=MAIN, device=CPU).splitlines() == [
        f"model    {n_parameters / 1e6:.1f}M parameters: 4 trunk layers and 2 heads of one layer each, "
        "dim 16, vocabulary 50",
        "layout   2 ranks on cpu, ZeRO-2",
        "batch    512 tokens = 2 replicas x 2 micro batches x 4 sequences x 32 tokens",
        f"cost     {512 * flops:.3g} FLOPs per step = {flops:.3g} per token",
        "budget   20,000 tokens = 40 steps",
        f"watch    tensorboard --logdir {tmp_path}/try/tensorboard",
        "         the losses are at http://localhost:6006/?tagFilter=loss#timeseries",
    ]


def test_the_header_of_a_pipeline_shows_its_stages(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    model = replace(config.model, head_type="linear", head_order="causal")
    config = replace(config, model=model, parallel=ParallelConfig(pipeline_stages=2))
    inputs = Inputs(config=config, deepspeed_config={"zero_optimization": {"stage": 1}}, metadata={}, data_ranks=4)
    world = World(rank=0, local_rank=0, world_size=8, local_world_size=8)
    first, layout, batch, _, _, watch, _, *stages = header(inputs, world=world, device=CPU).splitlines()
    assert "6 trunk layers and 2 heads of one matrix each, causal, dim 16" in first
    assert layout == "layout   8 ranks on cpu, ZeRO-1, 4 replicas of 2 pipeline stages"
    assert batch == "batch    512 tokens = 4 replicas x 1 micro batch x 4 sequences x 32 tokens"
    assert watch.startswith("watch ")
    assert stages == describe(config, micro_batches=1).splitlines()
    baseline = replace(config, model=replace(model, n_future_tokens=1, head_order="parallel"))
    assert " 1 head of one matrix, dim 16" in header(replace(inputs, config=baseline), world=world, device=CPU)


@pytest.mark.parametrize(
    ("size", "layout"),
    [
        ("sequence_parallel_size", "layout   2 ranks on cpu, ZeRO-1, 1 replica of 2 sequence-parallel ranks"),
        ("tensor_parallel_size", "layout   2 ranks on cpu, ZeRO-1, 1 replica of 2 tensor-parallel ranks"),
    ],
)
def test_the_header_says_how_ranks_share_a_replica(tmp_path: Path, size: str, layout: str) -> None:
    config = replace(config_in(tmp_path), parallel=ParallelConfig(**{size: 2}))
    inputs = Inputs(config=config, deepspeed_config={"zero_optimization": {"stage": 1}}, metadata={}, data_ranks=1)
    assert layout in header(inputs, world=MAIN, device=CPU).splitlines()


def test_the_command_that_shows_the_curves_works_in_a_folder_with_a_space(tmp_path: Path) -> None:
    inputs = Inputs(
        config=config_in(tmp_path / "my runs"), deepspeed_config={"zero_optimization": {"stage": 1}}, metadata={},
        data_ranks=2,
    )  # fmt: skip
    (line,) = [line for line in header(inputs, world=MAIN, device=CPU).splitlines() if line.startswith("watch")]
    assert shlex.split(line)[1:] == ["tensorboard", "--logdir", f"{tmp_path}/my runs/try/tensorboard"]
