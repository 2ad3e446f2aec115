"""Ranks that share a run: every impossible layout and batch is named."""

from typing import Any

import pytest

from pipeline.config.ranks import batch_problems, parallel_problems
from pipeline.config.schema import Config
from tests.helpers.recipes import batch_config, parallel_config, with_log


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        (
            parallel_config(sequence_parallel_size=3),
            [
                "data.seq_len=32 must be a multiple of parallel.sequence_parallel_size=3",
                "model.n_heads=4 must be a multiple of parallel.sequence_parallel_size=3",
                "model.n_kv_heads=4 must be a multiple of parallel.sequence_parallel_size=3",
            ],
        ),
        (
            parallel_config(sequence_parallel_size=4, n_kv_heads=2),
            ["model.n_kv_heads=2 must be a multiple of parallel.sequence_parallel_size=4"],
        ),
        (
            parallel_config(tensor_parallel_size=3),
            [
                "model.n_kv_heads=4 must be a multiple of parallel.tensor_parallel_size=3",
                "the feed-forward width=256 must be a multiple of parallel.tensor_parallel_size=3",
            ],
        ),
        (
            parallel_config(tensor_parallel_size=4, n_kv_heads=2),
            ["model.n_kv_heads=2 must be a multiple of parallel.tensor_parallel_size=4"],
        ),
        (
            parallel_config(pipeline_stages=2, tensor_parallel_size=2),
            ["parallel.pipeline_stages and parallel.tensor_parallel_size cannot be above 1 together"],
        ),
        (
            parallel_config(pipeline_stages=2, sequence_parallel_size=2),
            ["parallel.pipeline_stages and parallel.sequence_parallel_size cannot be above 1 together"],
        ),
        (
            parallel_config(sequence_parallel_size=2, tensor_parallel_size=2),
            ["parallel.sequence_parallel_size and parallel.tensor_parallel_size cannot be above 1 together"],
        ),
        (
            parallel_config(tensor_parallel_size=2, compiled=True),
            [
                "train.compile=true with parallel.tensor_parallel_size: ranks communicate inside the layers; "
                "set it to false"
            ],
        ),
        (
            parallel_config(sequence_parallel_size=2, compiled=True),
            [
                "train.compile=true with parallel.sequence_parallel_size: ranks communicate inside the layers; "
                "set it to false"
            ],
        ),
        (
            parallel_config(pipeline_stages=12),
            ["parallel.pipeline_stages=12 must be at most 7: the model's layers, and its unembedding"],
        ),
    ],
    ids=lambda value: str(value.parallel).partition("(")[2] if isinstance(value, Config) else "",
)
def test_each_impossible_layout_is_named(config: Config, problems: list[str]) -> None:
    assert parallel_problems(config, world_size=12) == problems


@pytest.mark.parametrize("name", ["pipeline_stages", "sequence_parallel_size", "tensor_parallel_size"])
def test_replicas_must_divide_the_ranks(name: str) -> None:
    sizes: dict[str, Any] = {name: 4}
    config = parallel_config(**sizes)
    assert parallel_problems(config, world_size=8) == parallel_problems(config, world_size=4) == []
    for n_ranks, ranks in ((1, "1 rank"), (2, "2 ranks"), (6, "6 ranks")):
        assert parallel_problems(config, world_size=n_ranks) == [
            f"parallel.{name}=4 must divide the run's {ranks}: each replica of the model takes that many"
        ]


@pytest.mark.parametrize(
    "config",
    [
        parallel_config(),
        parallel_config(compiled=True),
        parallel_config(pipeline_stages=7),  # six layers, and a last stage of the unembedding alone
        parallel_config(pipeline_stages=7, compiled=True),
        parallel_config(sequence_parallel_size=2, n_kv_heads=2),
        parallel_config(tensor_parallel_size=2, n_kv_heads=2),
    ],
)
def test_possible_layouts_are_accepted(config: Config) -> None:
    assert parallel_problems(config, world_size=14) == []


@pytest.mark.parametrize(
    ("sizes", "log", "problems"),
    [
        (
            {"pipeline_stages": 2},
            {"previews_every_steps": 5, "grad_norms_every_steps": 5},
            [
                "log.previews_every_steps with parallel.pipeline_stages: no rank has all of a short text; set it to 0",
                "log.grad_norms_every_steps with parallel.pipeline_stages: no rank has whole gradients; set it to 0",
            ],
        ),
        (
            {"sequence_parallel_size": 2},
            {"previews_every_steps": 5, "grad_norms_every_steps": 5},
            [
                "log.previews_every_steps with parallel.sequence_parallel_size: no rank has all of a short text;"
                " set it to 0"
            ],
        ),
        (
            {"tensor_parallel_size": 2},
            {"previews_every_steps": 5, "grad_norms_every_steps": 5},
            ["log.grad_norms_every_steps with parallel.tensor_parallel_size: no rank has whole gradients; set it to 0"],
        ),
        ({"pipeline_stages": 2}, {}, []),
    ],
)
def test_reports_are_refused_that_no_rank_has_the_values_for(
    sizes: dict[str, Any], log: dict[str, Any], problems: list[str]
) -> None:
    assert parallel_problems(with_log(parallel_config(**sizes), **log), world_size=4) == problems


@pytest.mark.parametrize(
    ("batch_tokens", "data_ranks", "nearest"),
    [(4096, 3, 3840), (4000, 1, 4096), (3900, 1, 3840), (4096, 32, 8192), (100, 1, 256)],
)
def test_an_impossible_batch_names_the_nearest_possible_one(batch_tokens: int, data_ranks: int, nearest: int) -> None:
    config = batch_config(batch_tokens=batch_tokens, micro_batch_size=4, seq_len=64)
    (problem,) = batch_problems(config, data_ranks=data_ranks)
    assert problem == (
        f"train.batch_tokens={batch_tokens} is not a multiple of data.seq_len=64 x train.micro_batch_size=4 x "
        f"{data_ranks} {'replica' if data_ranks == 1 else 'replicas'} = {256 * data_ranks}; "
        f"the nearest multiple is {nearest}"
    )
    repaired = batch_config(batch_tokens=nearest, micro_batch_size=4, seq_len=64)
    assert batch_problems(repaired, data_ranks=data_ranks) == []
