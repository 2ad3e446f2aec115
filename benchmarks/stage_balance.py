"""Compares how evenly pipeline stages share a model's FLOPs: our cut, DeepSpeed's two, and the bound for whole layers.

    python -m benchmarks.stage_balance [--config RECIPE] [--stages 4 8] [--gpus 64] [--json FILE]

A pipeline is as fast as its slowest stage, so the figure is the slowest stage's FLOPs over the mean; 1 is perfect.
DeepSpeed's `uniform` and `parameters` are its own partition functions, applied to the layers that a user would give it:
the embedding, each trunk layer, and the heads with norm and unembedding as one layer, since the loss needs them
together.
"""

from common.endings import exit_on_user_error

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from benchmarks.parts.harness import COUNT, DEFAULT, REPOSITORY, benchmark_parser, markdown, run_benchmark
from pipeline.config.recipe import load_config
from pipeline.config.schema import Config
from pipeline.model.formulas import (
    head_flops_per_token,
    head_parameters,
    layer_flops_per_token,
    layer_parameters,
    training_flops_per_token,
    unembedding_flops_per_token,
)
from pipeline.model.partition import describe, imbalance


def deepspeed_imbalance(config: Config, method: str) -> float:
    """Return the slowest stage's FLOPs over the mean for DeepSpeed's partition `method`, uniform or parameters."""
    from deepspeed.runtime.utils import partition_balanced, partition_uniform

    model, n_stages, seq_len = config.model, config.parallel.pipeline_stages, config.data.seq_len
    head_flops = head_flops_per_token(model, seq_len=seq_len) + unembedding_flops_per_token(model)
    flops = [0, *[layer_flops_per_token(model, seq_len=seq_len)] * model.n_trunk_layers]
    flops.append(model.n_future_tokens * head_flops)
    matrix = model.vocab_size * model.dim
    parameters = [matrix, *[layer_parameters(model)] * model.n_trunk_layers]
    parameters.append(model.n_future_tokens * head_parameters(model) + model.dim + model.n_unembeddings * matrix)
    if method == "uniform":
        bounds = partition_uniform(num_items=len(flops), num_parts=n_stages)
    else:
        bounds = partition_balanced(weights=parameters, num_parts=n_stages)
    largest = max(sum(flops[start:stop]) for start, stop in itertools.pairwise(bounds))
    return largest * n_stages / sum(flops)


def whole_layer_bound(config: Config) -> float:
    """Return a lower bound of the slowest stage's FLOPs over the mean.

    It holds for every assignment of whole layers, in any order, with the unembeddings on the last stage: if no other
    stage holds more than k layers, the last stage holds all the rest.
    """
    model, n_stages, seq_len = config.model, config.parallel.pipeline_stages, config.data.seq_len
    layer = layer_flops_per_token(model, seq_len=seq_len)
    unembeddings = model.n_future_tokens * unembedding_flops_per_token(model)
    n_layers = model.n_transformer_layers
    rest = {k: max(0, n_layers - k * (n_stages - 1)) for k in range(n_layers + 1)}
    best = min(max(k * layer, rest[k] * layer + unembeddings) for k in rest)
    return best * n_stages / training_flops_per_token(model, seq_len=seq_len)


def measure(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Print each cut and the table, and return the figures."""
    rows = []
    for n_stages in arguments.stages:
        config = load_config(arguments.config, [f"parallel.pipeline_stages={n_stages}"])
        rows.append(
            {
                "stages": n_stages,
                "ours": imbalance(config),
                "bound": whole_layer_bound(config),
                "parameters": deepspeed_imbalance(config, "parameters"),
                "uniform": deepspeed_imbalance(config, "uniform"),
            }
        )
        print(describe(config, micro_batches=config.accumulation_steps(arguments.gpus // n_stages)), end="\n\n")
    table = [["stages", "ours", "bound for whole layers", "DeepSpeed, parameters", "DeepSpeed, uniform"]]
    for row in rows:
        table.append([str(row["stages"]), *(f"{row[name]:.3f}" for name in ("ours", "bound", "parameters", "uniform"))])
    print(markdown(table))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = benchmark_parser("benchmarks.stage_balance", description=__doc__)
    recipe = REPOSITORY / "pipeline" / "recipes" / "7B_200B.yaml"
    add = parser.add_argument
    add("--config", type=Path, default=recipe, metavar="RECIPE", help="recipe (default: 7B_200B.yaml)")
    add("--stages", type=COUNT, nargs="+", default=[4, 8], metavar="N", help=f"numbers of stages {DEFAULT}")
    add("--gpus", type=COUNT, default=64, metavar="N", help=f"number of ranks, for the pipeline bubble {DEFAULT}")
    run_benchmark(parser, measure, argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.stage_balance")
