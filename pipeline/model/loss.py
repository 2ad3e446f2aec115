"""The head-sequential loss: n heads for the peak memory of one (paper §2, "memory-efficient implementation").

The paper's Figure 2 calls backward once per head. Here the same order runs inside the forward of one
autograd Function: for each head in turn, its forward on a detached z, its cross-entropy, and its gradients;
the logits are freed before the next head begins. The Function returns the summed loss, and its backward
hands every input the gradient it already has, times the incoming one. So the outside sees one ordinary loss
and one ordinary backward, which is what DeepSpeed's ZeRO and pipeline engines can digest, and the peak is
O(V + d) instead of O(nV + d).

Within one head the same Function walks over chunks of positions, so that even one head's logits are never
held whole: with heads, and with chunks, a loss is a sum of pieces whose graphs need not live together.

Shape suffixes as in `model.py`; X is B x T flattened.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.formulas import chunk_positions
from pipeline.model.layers import at_least_fp32
from pipeline.runtime.ranges import profiler_range

Piece = Callable[..., Tensor]
"""Maps (index, *inputs) to one scalar summand of the loss."""


def sum_of_pieces(
    piece: Piece, inputs: Sequence[Tensor], *, n_pieces: int, parameters: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the sum () of `piece(0, *inputs) .. piece(n_pieces - 1, *inputs)`, and the pieces (n_pieces,) detached.

    With gradients enabled, each piece is back-propagated, and its graph freed, before the next is computed.

    Args:
        piece: computes one summand; called once for each index, in order; need not use every input.
        inputs: what the pieces read, for instance the trunk's output z. They get them cut off from their history.
        n_pieces: how many summands.
        parameters: every other tensor that `piece` uses and that may want a gradient; explicit, so that
            autograd, and the hooks that ZeRO hangs on parameters, see them as inputs of one op.

    Raises:
        RuntimeError: on a second backward; the gradients are handed out once, to save their copies.
    """
    if not torch.is_grad_enabled():
        values = torch.stack([piece(index, *inputs) for index in range(n_pieces)])
        return values.sum(), values
    return _SumOfPieces.apply(piece, n_pieces, len(inputs), *inputs, *parameters)


def cross_entropy(hidden_BTD: Tensor, unembedding_VD: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the mean cross-entropy () of one head in nats per token, fp32 whatever the weights' dtype.

    A chunk's logits take about as much room as `hidden_BTD` itself (chunk x V = X x D). Not torch's chunked
    `F.linear_cross_entropy`: for bf16 inputs (torch 2.13) it sums the loss itself in bf16, which was seen to
    be off by 0.17 nats.
    """
    hidden_XD, targets_X = hidden_BTD.flatten(0, -2), targets_BT.flatten()
    n_positions, (vocab_size, dim) = len(hidden_XD), unembedding_VD.shape
    chunk = chunk_positions(n_positions, dim=dim, vocab_size=vocab_size)

    def chunk_loss(index: int, hidden_XD: Tensor) -> Tensor:
        positions = slice(index * chunk, (index + 1) * chunk)
        logits_XV = at_least_fp32(F.linear(hidden_XD[positions], unembedding_VD))
        return F.cross_entropy(logits_XV, targets_X[positions], reduction="sum") / n_positions

    with profiler_range("unembedding"):
        loss, _ = sum_of_pieces(chunk_loss, [hidden_XD], n_pieces=-(-n_positions // chunk), parameters=[unembedding_VD])
    return loss


class _SumOfPieces(torch.autograd.Function):
    """Forward computes the pieces and their gradients one by one; backward scales the summed gradients."""

    @staticmethod
    def forward(ctx: Any, piece: Piece, n_pieces: int, n_inputs: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        needs_gradient = ctx.needs_input_grad[3:]
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in tensors[:n_inputs]]
        leaves = [*inputs, *tensors[n_inputs:]]
        wanted = [tensor for tensor, needed in zip(leaves, needs_gradient, strict=True) if needed]
        sums: list[Tensor | None] = [None] * len(wanted)
        values = []
        for index in range(n_pieces):
            with torch.enable_grad():
                value = piece(index, *inputs)
            for slot, gradient in enumerate(torch.autograd.grad(value, wanted, allow_unused=True)):
                total = sums[slot]
                if total is None:
                    sums[slot] = gradient
                elif gradient is not None:
                    total.add_(gradient)
            del gradient, total  # or the last one, as large as the unembedding, lives through the next piece
            values.append(value.detach())
        remaining = iter(sums)
        ctx.gradients = [next(remaining) if needed else None for needed in needs_gradient]
        stacked = torch.stack(values)
        ctx.mark_non_differentiable(stacked)
        return stacked.sum(), stacked

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the head-sequential loss was back-propagated twice; its gradients are handed out once")
        gradients, ctx.gradients = ctx.gradients, None
        # In place: the stored gradients are as large as the heads, and nobody else holds them.
        return None, None, None, *(g if g is None else g.mul_(output_gradients[0]) for g in gradients)
