"""Checks of how ranks share a run: replicas of several ranks, the batch, and the nodes. Needs no torch."""

from common.wording import counted
from pipeline.config.model import max_stages
from pipeline.config.schema import Config, DataConfig

PARALLEL_SIZES = ("pipeline_stages", "sequence_parallel_size", "tensor_parallel_size")


def parallel_problems(config: Config, *, world_size: int) -> list[str]:
    """Return why `world_size` ranks cannot share the model as the recipe wants it, one line each."""
    problems = []
    for name in PARALLEL_SIZES:
        size = getattr(config.parallel, name)
        if world_size % size:
            problems.append(
                f"parallel.{name}={size} must divide the run's {counted(world_size, 'rank')}: each replica of the model"
                " takes that many"
            )
    above_1 = [f"parallel.{name}" for name in PARALLEL_SIZES if getattr(config.parallel, name) > 1]
    if len(above_1) > 1:
        problems.append(f"{' and '.join(above_1)} cannot be above 1 together")
    return problems + _indivisible(config) + _unavailable(config, above_1=above_1) + _stage_problems(config)


def _indivisible(config: Config) -> list[str]:
    """Return which sizes the ranks of a replica cannot divide evenly."""
    model, problems = config.model, []
    for part, number, name in (
        ("data.seq_len", config.data.seq_len, "sequence_parallel_size"),
        ("model.n_heads", model.n_heads, "sequence_parallel_size"),
        ("model.n_kv_heads", model.kv_heads, "sequence_parallel_size"),
        ("model.n_kv_heads", model.kv_heads, "tensor_parallel_size"),
        ("the feed-forward width", model.ffn_dim if model.dim else 0, "tensor_parallel_size"),
    ):
        size = getattr(config.parallel, name)
        if number % size:
            problems.append(f"{part}={number} must be a multiple of parallel.{name}={size}")
    return problems


def _unavailable(config: Config, *, above_1: list[str]) -> list[str]:
    """Return which features of the recipe do not work with the parallel sizes that are above 1."""
    problems = []
    if config.train.compile and config.parallel.sequence_parallel_size * config.parallel.tensor_parallel_size > 1:
        problems.append(f"train.compile=true with {above_1[0]}: ranks communicate inside the layers; set it to false")
    divided = [name for name in above_1 if name != "parallel.tensor_parallel_size"]
    if config.log.previews_every_steps and divided:
        problems.append(f"log.previews_every_steps with {divided[0]}: no rank has all of a short text; set it to 0")
    divided = [name for name in above_1 if name != "parallel.sequence_parallel_size"]
    if config.log.grad_norms_every_steps and divided:
        problems.append(f"log.grad_norms_every_steps with {divided[0]}: no rank has whole gradients; set it to 0")
    return problems


def _stage_problems(config: Config) -> list[str]:
    n_stages, most = config.parallel.pipeline_stages, max_stages(config.model)
    if n_stages <= most:
        return []
    return [f"parallel.pipeline_stages={n_stages} must be at most {most}: the model's layers, and its unembedding"]


def batch_problems(config: Config, *, data_ranks: int) -> list[str]:
    """Return why `train.batch_tokens` cannot be split over `data_ranks` replicas, one line each."""
    per_micro_step = config.data.seq_len * config.train.micro_batch_size * data_ranks
    if config.train.batch_tokens % per_micro_step == 0:
        return []
    nearest = max(1, round(config.train.batch_tokens / per_micro_step)) * per_micro_step
    return [
        f"train.batch_tokens={config.train.batch_tokens} is not a multiple of data.seq_len={config.data.seq_len} x "
        f"train.micro_batch_size={config.train.micro_batch_size} x {counted(data_ranks, 'replica')} = "
        f"{per_micro_step}; "
        f"the nearest multiple is {nearest}"
    ]


def node_problems(data: DataConfig, *, n_nodes: int) -> list[str]:
    """Return why mosaicml-streaming cannot distribute the windows over `n_nodes` machines, one line each."""
    canonical = data.num_canonical_nodes
    if canonical % n_nodes == 0 or n_nodes % canonical == 0:
        return []
    nodes = counted(n_nodes, "node")
    return [f"data.num_canonical_nodes={canonical} must divide, or be a multiple of, the run's {nodes}"]
