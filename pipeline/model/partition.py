"""Partition of a model into pipeline stages, balanced by FLOPs, then by memory. Pure functions; needs no torch.

    stage 0      embedding, trunk layers 0 ..             sends the hidden state
    ...
    stage S - 2  last trunk layers, perhaps first heads   sends z and the outputs of these heads
    stage S - 1  other heads, norm, unembedding           computes the head-sequential loss

A head's layer costs as much as a trunk layer, but the n unembeddings add to the last stage, and together with n heads
they can exceed a stage's fair share. So the layers of the first heads may be on earlier stages: there they are ordinary
layers, and their outputs are sent along with z. Norm, unembedding and loss stay on the last stage, so that no weight is
on two stages, and the logits of only one head exist at a time.

The boundaries are optimal for whole layers: they minimise the FLOPs of the slowest stage and, among the cuts that do,
the memory of the fullest stage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from common.wording import counted
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

# Mixed-precision Adam: weight and gradient in bf16; accumulated gradient, weight and two moments in fp32 (ZeRO, arXiv
# 1910.02054, section 3.1). ZeRO-1 divides the last three over the replicas, in every stage by the same factor.
BYTES_PER_PARAMETER = 20
BYTES_PER_ELEMENT = 2


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The layers of one pipeline stage and their cost."""

    share: Share
    """The layers."""
    flops_per_token: int
    """Forward and backward."""
    bytes: int
    """Weights, gradients, optimizer state, and the activations of the micro batches in flight."""


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """One layer, which cannot be divided between stages."""

    flops_per_token: int
    parameters: int
    saved_elements: int  # per token


def balanced_stages(config: Config) -> list[Stage]:
    """Return the stages of a checked config, first to last; one stage holds the whole model."""
    model, n_stages = config.model, config.parallel.pipeline_stages
    micro_batch_tokens = config.train.micro_batch_size * config.data.seq_len
    pieces = _pieces(config)

    def stage(index: int, start: int, stop: int) -> Stage:
        held, is_last = pieces[start:stop], index == n_stages - 1
        embedding = model.vocab_size * model.dim * ((index == 0) + is_last * model.n_unembeddings)
        parameters = sum(piece.parameters for piece in held) + embedding
        saved_elements = sum(piece.saved_elements for piece in held) * micro_batch_tokens
        in_flight = n_stages - index  # micro batches between their forward and their backward (1F1B schedule)
        unembedding_flops = model.n_future_tokens * unembedding_flops_per_token(model) if is_last else 0
        return Stage(
            share=_share(model, start, stop, is_first=index == 0, is_last=is_last),
            flops_per_token=sum(piece.flops_per_token for piece in held) + unembedding_flops,
            bytes=BYTES_PER_PARAMETER * parameters + BYTES_PER_ELEMENT * saved_elements * in_flight,
        )

    least_flops, _ = _cut(len(pieces), n_stages, lambda *cut: stage(*cut).flops_per_token)

    def bytes_if_fast(index: int, start: int, stop: int) -> float:
        candidate = stage(index, start, stop)
        return candidate.bytes if candidate.flops_per_token <= least_flops else float("inf")

    _, bounds = _cut(len(pieces), n_stages, bytes_if_fast)
    return [stage(index, bounds[index], bounds[index + 1]) for index in range(n_stages)]


def imbalance(config: Config) -> float:
    """Return the ratio of the slowest stage's FLOPs to the mean; 1 is perfect balance."""
    total = training_flops_per_token(config.model, seq_len=config.data.seq_len)
    stages = balanced_stages(config)
    return max(stage.flops_per_token for stage in stages) * len(stages) / total


def bubble_fraction(n_stages: int, micro_batches: int) -> float:
    """Return the fraction of a step that stages of a balanced 1F1B pipeline idle (arXiv 2104.04473, section 2.2)."""
    return (n_stages - 1) / (micro_batches + n_stages - 1)


def describe(config: Config, *, micro_batches: int) -> str:
    """Return a table of the stages, with imbalance and bubble fraction below it, for people to read."""
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
    per_step = counted(micro_batches, "micro batch", plural="micro batches")
    lines.append(
        f"slowest stage at {imbalance(config):.3f} times the mean; bubble {bubble:.1%} with {per_step}"
        " per step. Memory: weights, gradients, Adam (not divided by ZeRO) and activations"
    )
    return "\n".join(lines)


def _pieces(config: Config) -> list[_Piece]:
    """Return the layers of trunk and heads in the order of computation."""
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
    """Cut pieces into contiguous stages so that the largest `cost(stage, start, stop)` is as small as possible.

    Every stage holds at least one piece, except that the last may be empty. Return the largest cost, and the bounds
    (n_stages + 1 of them).
    """

    @cache
    def best(stage: int, start: int) -> tuple[float, tuple[int, ...]]:
        """Return the lowest possible maximum cost of stages `stage` .. last on pieces from `start`, and their stops."""
        if stage == n_stages - 1:
            return cost(stage, start, n_pieces), (n_pieces,)
        candidates = []
        for stop in range(start + 1, n_pieces + 1):
            later, stops = best(stage + 1, stop)
            candidates.append((max(cost(stage, start, stop), later), (stop, *stops)))
        return min(candidates, default=(float("inf"), (n_pieces,) * (n_stages - stage)))

    largest, stops = best(0, 0)
    return largest, [0, *stops]
