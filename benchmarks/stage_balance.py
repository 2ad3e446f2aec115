"""How evenly pipeline stages share a model's FLOPs: our cut beside DeepSpeed's two, and the bound for whole layers.

    python -m benchmarks.stage_balance [--config RECIPE] [--stages 4 8] [--gpus 64] [--json FILE]

A pipeline is as fast as its slowest stage, so the figure is the slowest stage's FLOPs over the mean; 1 is perfect.
DeepSpeed's `uniform` and `parameters` are its own partition functions over the layers that one would give it: the
embedding, each trunk layer, and the heads with norm and unembedding as one, since the loss needs them together.
"""

import itertools
from pathlib import Path

from common.command_line import command_parser, exit_on_user_error
from common.files import write_json
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
    """Return the slowest stage's FLOPs over the mean as DeepSpeed's partition `method` cuts the model."""
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
    """Return what no assignment of whole layers can beat, in whatever order, with the unembeddings on the last stage.

    If no other stage holds more than k layers, the last one holds all the rest.
    """
    model, n_stages, seq_len = config.model, config.parallel.pipeline_stages, config.data.seq_len
    layer = layer_flops_per_token(model, seq_len=seq_len)
    unembeddings = model.n_future_tokens * unembedding_flops_per_token(model)
    n_layers = model.n_transformer_layers
    rest = {k: max(0, n_layers - k * (n_stages - 1)) for k in range(n_layers + 1)}
    best = min(max(k * layer, rest[k] * layer + unembeddings) for k in rest)
    return best * n_stages / training_flops_per_token(model, seq_len=seq_len)


def main() -> None:
    """Print the table and each cut; write them as JSON if asked."""
    parser = command_parser("benchmarks.stage_balance", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("pipeline/recipes/7B_200B.yaml"), help="recipe (YAML)")
    parser.add_argument("--stages", type=int, nargs="+", default=[4, 8], help="numbers of stages (default: 4 8)")
    parser.add_argument("--gpus", type=int, default=64, help="ranks in all, for the bubble (default: 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args()
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
    print(f"{'stages':>6}  {'ours':>6}  {'bound for whole layers':>22}  {'parameters':>10}  {'uniform':>7}")
    for row in rows:
        figures = (row["ours"], row["bound"], row["parameters"], row["uniform"])
        print("{:>6}  {:>6.3f}  {:>22.3f}  {:>10.3f}  {:>7.3f}".format(row["stages"], *figures))
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.stage_balance")
