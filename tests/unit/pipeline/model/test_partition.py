"""The partition into stages against every possible cut, with costs counted from built stages; the printed table."""

import itertools
from collections import deque
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from pipeline.config.model import ModelConfig, max_stages
from pipeline.config.recipe import load_config
from pipeline.config.schema import Config, DataConfig, ParallelConfig, TrainConfig
from pipeline.model.formulas import Share, saved_elements_per_token, training_flops_per_token
from pipeline.model.network import MultiTokenModel
from pipeline.model.partition import (
    BYTES_PER_ELEMENT,
    BYTES_PER_PARAMETER,
    balanced_stages,
    bubble_fraction,
    describe,
    imbalance,
)
from tests.conftest import REPOSITORY
from tests.helpers.references import every_cut, every_kind_of_heads, tiny_config

SEQ_LEN, MICRO_BATCH = 16, 3


def config_of(model: ModelConfig, n_stages: int, *, activation_checkpointing: bool = False) -> Config:
    return Config(
        model=model,
        data=DataConfig(seq_len=SEQ_LEN),
        train=TrainConfig(micro_batch_size=MICRO_BATCH, activation_checkpointing=activation_checkpointing),
        parallel=ParallelConfig(pipeline_stages=n_stages),
    )


@cache
def flops_and_parameters(model: ModelConfig, share: Share) -> tuple[int, int]:
    """Return FLOPs per token (6 per use of a weight in a product, 12 T D for scores) and weights of a built stage."""
    with torch.device("meta"):
        stage = MultiTokenModel(model, share=share)
    sizes = {name: weight.numel() for name, weight in stage.named_parameters()}
    in_products = {name: size for name, size in sizes.items() if "norm" not in name and "embeddings" not in name}
    uses = {"heads.output.weight": 1 if model.replicated_unembedding else model.n_future_tokens}
    products = sum(size * uses.get(name, 1) for name, size in in_products.items())
    n_attentions = sum(name.endswith("attention.wq.weight") for name in sizes)
    return 6 * products + n_attentions * 12 * model.dim * SEQ_LEN, sum(sizes.values())


def stage_bytes(config: Config, share: Share, index: int) -> int:
    model = config.model
    parameters = flops_and_parameters(model, share)[1] - share.unembedding * model.dim  # the last norm is left out
    n_transformers = len(share.trunk_layers) + (len(share.heads) if model.head_type == "transformer" else 0)
    n_matrices = len(share.heads) if model.head_type == "linear" else 0
    kept = model.dim if config.train.activation_checkpointing else saved_elements_per_token(model)
    elements = (n_transformers * kept + n_matrices * model.dim) * SEQ_LEN * MICRO_BATCH
    in_flight = config.parallel.pipeline_stages - index
    return BYTES_PER_PARAMETER * parameters + BYTES_PER_ELEMENT * elements * in_flight


def most_flops_and_bytes(config: Config, cut: list[Share]) -> tuple[int, int]:
    flops = max(flops_and_parameters(config.model, share)[0] for share in cut)
    return flops, max(stage_bytes(config, share, index) for index, share in enumerate(cut))


def assert_best(config: Config) -> None:
    stages = balanced_stages(config)
    cut = [stage.share for stage in stages]
    cuts = every_cut(config.model, config.parallel.pipeline_stages)
    assert cut in cuts
    for index, stage in enumerate(stages):
        assert stage.flops_per_token == flops_and_parameters(config.model, stage.share)[0]
        assert stage.bytes == stage_bytes(config, stage.share, index)
    assert most_flops_and_bytes(config, cut) == min(most_flops_and_bytes(config, other) for other in cuts)
    total = training_flops_per_token(config.model, seq_len=SEQ_LEN)
    assert sum(stage.flops_per_token for stage in stages) == total
    assert imbalance(config) == pytest.approx(max(stage.flops_per_token for stage in stages) / (total / len(stages)))


@pytest.mark.parametrize("activation_checkpointing", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("vocab_size", [8, 97, 1000, 8000], ids=lambda size: f"{size}tokens")
@pytest.mark.parametrize(("n_layers", "n_future_tokens"), [(9, 1), (9, 4), (9, 8), (5, 3), (4, 4)])
def test_no_cut_is_better(n_layers: int, n_future_tokens: int, vocab_size: int, activation_checkpointing: bool) -> None:
    model = tiny_config(n_layers=n_layers, n_future_tokens=n_future_tokens, vocab_size=vocab_size)
    for n_stages in (2, 3, 4):
        assert_best(config_of(model, n_stages, activation_checkpointing=activation_checkpointing))


@every_kind_of_heads
def test_no_cut_is_better_for_any_kind_of_heads(heads: dict[str, Any]) -> None:
    for vocab_size, n_stages in itertools.product((97, 1000), (2, 3, 4)):
        assert_best(config_of(tiny_config(n_layers=6, vocab_size=vocab_size, **heads), n_stages))


def test_memory_decides_between_equally_fast_cuts() -> None:
    """There are several fastest cuts, and the first of them does not have the least memory."""
    config = config_of(tiny_config(n_layers=9, n_future_tokens=1, vocab_size=8), 4)
    costs = [most_flops_and_bytes(config, cut) for cut in every_cut(config.model, 4)]
    fastest = [n_bytes for flops, n_bytes in costs if flops == min(costs)[0]]
    assert min(fastest) < fastest[0]
    assert max(stage.bytes for stage in balanced_stages(config)) == min(fastest)


def test_one_stage_is_the_whole_model() -> None:
    config = config_of(tiny_config(), 1)
    (stage,) = balanced_stages(config)
    assert stage.share == Share(embedding=True, trunk_layers=range(2), heads=(0, 1, 2, 3), unembedding=True)
    assert imbalance(config) == 1


def test_unembeddings_push_heads_to_earlier_stages() -> None:
    def heads_of_stages(vocab_size: int, **heads: Any) -> list[tuple[int, ...]]:
        config = config_of(tiny_config(n_layers=9, n_future_tokens=8, vocab_size=vocab_size, **heads), 4)
        return [stage.share.heads for stage in balanced_stages(config)]

    assert heads_of_stages(8) == [(0,), (1, 2), (3, 4, 5), (6, 7)]
    assert heads_of_stages(8, head_order="anticausal") == [(7,), (6, 5), (4, 3, 2), (1, 0)]
    assert heads_of_stages(8000)[-1] == ()  # only norm and unembedding


@pytest.mark.parametrize("n_future_tokens", [1, 3])
def test_the_most_stages_hold_one_layer_each_and_the_last_the_unembedding(n_future_tokens: int) -> None:
    model = tiny_config(n_layers=4, n_future_tokens=n_future_tokens)
    assert max_stages(model) == 5
    assert_best(config_of(model, 5))
    stages = balanced_stages(config_of(model, 5))
    assert [len(stage.share.trunk_layers) + len(stage.share.heads) for stage in stages] == [1, 1, 1, 1, 0]


@pytest.mark.parametrize(("n_stages", "slowest"), [(1, 1.0), (4, 1.052), (8, 1.169)])
def test_imbalance_of_the_papers_model(n_stages: int, slowest: float) -> None:
    config = load_config(REPOSITORY / "pipeline" / "recipes" / "7B_200B.yaml")
    config = replace(config, parallel=ParallelConfig(pipeline_stages=n_stages))
    assert round(imbalance(config), 3) == slowest


def pipelined_step(n_stages: int, n_micro_batches: int) -> tuple[int, list[int]]:
    """Simulate 1F1B with forwards of 1 and backwards of 2 ticks; return its length, and each stage's most in flight."""
    todo = []
    for stage in range(n_stages):
        n_first = min(n_stages - stage, n_micro_batches)  # forwards before the first backward
        later = [job for i in range(n_micro_batches - n_first) for job in (("backward", i), ("forward", n_first + i))]
        last = [("backward", i) for i in range(n_micro_batches - n_first, n_micro_batches)]
        todo.append(deque([*(("forward", i) for i in range(n_first)), *later, *last]))
    done: dict[tuple[int, str, int], int] = {}
    busy_until, in_flight, most = [0] * n_stages, [0] * n_stages, [0] * n_stages
    while any(todo):
        for stage, jobs in enumerate(todo):
            if not jobs:
                continue
            kind, batch = jobs[0]
            before = stage - 1 if kind == "forward" else stage + 1
            ready = done.get((before, kind, batch), None if 0 <= before < n_stages else 0)
            if ready is None:
                continue
            jobs.popleft()
            busy_until[stage] = max(busy_until[stage], ready) + (1 if kind == "forward" else 2)
            done[stage, kind, batch] = busy_until[stage]
            in_flight[stage] += 1 if kind == "forward" else -1
            most[stage] = max(most[stage], in_flight[stage])
    return max(busy_until), most


@pytest.mark.parametrize(("n_stages", "n_micro_batches"), [(1, 3), (2, 2), (2, 8), (4, 4), (4, 16), (8, 9)])
def test_bubble_and_batches_in_flight_match_the_schedule(n_stages: int, n_micro_batches: int) -> None:
    length, most_in_flight = pipelined_step(n_stages, n_micro_batches)
    assert bubble_fraction(n_stages, n_micro_batches) == pytest.approx(1 - 3 * n_micro_batches / length)
    assert most_in_flight == [n_stages - stage for stage in range(n_stages)]


def test_the_table_lists_the_stages() -> None:
    model = ModelConfig(dim=2048, n_layers=6, n_heads=16, vocab_size=64_000, n_future_tokens=2)
    config = Config(model=model, data=DataConfig(seq_len=1024), parallel=ParallelConfig(pipeline_stages=3))
    # Giga-FLOPs: a layer 6 x (4 x 2048^2 + 3 x 2048 x 5632) + 12 x 2048 x 1024 = 0.3335, the unembeddings of two heads
    # 2 x 6 x 64,000 x 2048 = 1.5729, of 3.5736. GiB: 20 bytes for each of a layer's 51.4 million weights are 0.957, of
    # the embedding's 131.1 million 2.441; activations of one micro batch 1024 x 2 x (12 x 2048 + 4 x 5632) are 0.090.
    assert describe(config, micro_batches=6).splitlines() == [
        "stage  trunk layers     heads   FLOPs    memory",
        "    0         0 - 1         -   18.7%     5 GiB",
        "    1         2 - 3       1 2   37.3%     5 GiB",
        "    2             -         -   44.0%     2 GiB",
        "slowest stage at 1.320 times the mean; bubble 25.0% with 6 micro batches per step. "
        "Memory: weights, gradients, Adam (not divided by ZeRO) and activations",
    ]
