"""Which layers each pipeline stage holds: balanced by FLOPs, then by memory. Pure; needs no torch.

    stage 0      embedding, trunk layers 0 ..             hands on the hidden state
    ...
    stage S - 2  last trunk layers, perhaps first heads   hands on z and these heads' outputs
    stage S - 1  other heads, norm, unembedding           the head-sequential loss

A head's layer weighs as much as a trunk layer, but the n unembeddings burden the last stage, and n heads with them can
be more than a stage's fair share. So the layers of the first heads may lie on earlier stages: there they are layers
like any other, and their outputs are handed on beside z. Norm, unembedding and loss stay on the last stage, so that no
weight is on two stages, and logits of one head at a time are alive.

The boundaries are the best there are for whole layers: first the least FLOPs of the slowest stage, then, among those,
the least memory of the fullest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config
from pipeline.model.formulas import (
    Share,
    head_flops_per_token,
    head_inputs,
    head_parameters,
    layer_flops_per_token,
    layer_parameters,
    saved_elements_per_token,
    training_flops_per_token,
    unembedding_flops_per_token,
)

# Mixed-precision Adam: a bf16 weight and gradient, and in fp32 the summed gradient, the weight and two moments
# (ZeRO, arXiv 1910.02054, section 3.1). ZeRO-1 divides the last three over the replicas, of every stage alike.
BYTES_PER_PARAMETER = 20
BYTES_PER_ELEMENT = 2


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage holds and what it costs.

    flops_per_token: forward and backward.
    bytes: weights, gradients, optimizer state, and the activations of the micro batches that are under way.
    """

    share: Share
    flops_per_token: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """One layer that cannot be divided."""

    flops_per_token: int
    parameters: int
    saved_elements: int  # per token


def balanced_stages(config: Config) -> list[Stage]:
    """Return the stages of a checked config, first to last; with one stage, the whole model."""
    model, n_stages = config.model, config.parallel.pipeline_stages
    micro_batch_tokens = config.train.micro_batch_size * config.data.seq_len
    pieces = _pieces(config)

    def stage(index: int, start: int, stop: int) -> Stage:
        held, is_last = pieces[start:stop], index == n_stages - 1
        embedding = model.vocab_size * model.dim * ((index == 0) + is_last * model.n_unembeddings)
        parameters = sum(piece.parameters for piece in held) + embedding
        saved_elements = sum(piece.saved_elements for piece in held) * micro_batch_tokens
        under_way = n_stages - index  # micro batches whose backward is still to come (1F1B schedule)
        unembedding_flops = model.n_future_tokens * unembedding_flops_per_token(model) if is_last else 0
        return Stage(
            share=_share(model, start, stop, is_first=index == 0, is_last=is_last),
            flops_per_token=sum(piece.flops_per_token for piece in held) + unembedding_flops,
            bytes=BYTES_PER_PARAMETER * parameters + BYTES_PER_ELEMENT * saved_elements * under_way,
        )

    least_flops, _ = _cut(len(pieces), n_stages, lambda *cut: stage(*cut).flops_per_token)

    def bytes_if_fast(index: int, start: int, stop: int) -> float:
        candidate = stage(index, start, stop)
        return candidate.bytes if candidate.flops_per_token <= least_flops else float("inf")

    _, bounds = _cut(len(pieces), n_stages, bytes_if_fast)
    return [stage(index, bounds[index], bounds[index + 1]) for index in range(n_stages)]


def imbalance(config: Config) -> float:
    """Return the FLOPs of the slowest stage over the mean; 1 is perfect."""
    total = training_flops_per_token(config.model, seq_len=config.data.seq_len)
    stages = balanced_stages(config)
    return max(stage.flops_per_token for stage in stages) * len(stages) / total


def bubble_fraction(n_stages: int, micro_batches: int) -> float:
    """Return the part of a step that each stage of a balanced 1F1B pipeline waits (arXiv 2104.04473, section 2.2)."""
    return (n_stages - 1) / (micro_batches + n_stages - 1)


def describe(config: Config, *, micro_batches: int) -> str:
    """Return a table of the stages, and what imbalance and bubble cost; for people."""
    stages = balanced_stages(config)
    total = sum(stage.flops_per_token for stage in stages)
    lines = [f"{'stage':>5}  {'trunk layers':>12}  {'heads':>8}  {'FLOPs':>6}  {'memory':>8}"]
    for index, stage in enumerate(stages):
        layers, heads = stage.share.trunk_layers, stage.share.heads
        lines.append(
            f"{index:>5}  {f'{layers.start} - {layers.stop - 1}' if layers else '-':>12}  "
            f"{' '.join(str(head + 1) for head in heads) or '-':>8}  {stage.flops_per_token / total:>6.1%}  "
            f"{stage.bytes / 2**30:>4.0f} GiB"
        )
    bubble = bubble_fraction(len(stages), micro_batches)
    lines.append(
        f"slowest stage over the mean {imbalance(config):.3f}; bubble {bubble:.1%} with {micro_batches} micro batches a"
        " step. Memory: weights, gradients, Adam (not divided by ZeRO) and activations"
    )
    return "\n".join(lines)


def _pieces(config: Config) -> list[_Piece]:
    """Return the layers of trunk and heads in the order in which a pipeline runs them."""
    model, seq_len = config.model, config.data.seq_len
    kept = model.dim if config.train.activation_checkpointing else saved_elements_per_token(model)
    layer = _Piece(
        flops_per_token=layer_flops_per_token(model, seq_len=seq_len),
        parameters=layer_parameters(model),
        saved_elements=kept,
    )
    head = _Piece(
        flops_per_token=head_flops_per_token(model, seq_len=seq_len),
        parameters=head_parameters(model),
        saved_elements=kept if model.head_type == "transformer" else model.dim,
    )
    return [layer] * model.n_trunk_layers + [head] * model.n_future_tokens


def _share(model: ModelConfig, start: int, stop: int, *, is_first: bool, is_last: bool) -> Share:
    heads = list(head_inputs(model))
    n_trunk = model.n_trunk_layers
    return Share(
        embedding=is_first,
        trunk_layers=range(min(start, n_trunk), min(stop, n_trunk)),
        heads=tuple(heads[max(start - n_trunk, 0) : max(stop - n_trunk, 0)]),
        unembedding=is_last,
    )


def _cut(n_pieces: int, n_stages: int, cost: Callable[[int, int, int], float]) -> tuple[float, list[int]]:
    """Cut pieces into contiguous stages such that the largest `cost(stage, start, stop)` is least.

    Every stage holds at least one piece, but the last may hold none. Returns that cost and the n_stages + 1 bounds.
    """

    @cache
    def best(stage: int, start: int) -> tuple[float, tuple[int, ...]]:
        """The least largest cost of stages `stage` .. last over the pieces from `start`, and where they stop."""
        if stage == n_stages - 1:
            return cost(stage, start, n_pieces), (n_pieces,)
        candidates = []
        for stop in range(start + 1, n_pieces + 1):
            later, stops = best(stage + 1, stop)
            candidates.append((max(cost(stage, start, stop), later), (stop, *stops)))
        return min(candidates, default=(float("inf"), (n_pieces,) * (n_stages - stage)))

    largest, stops = best(0, 0)
    return largest, [0, *stops]
