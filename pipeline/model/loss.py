"""The head-sequential loss: n heads for the peak memory of one (paper §2, "memory-efficient implementation").

In the paper's Figure 2, backward is called once per head. Here the same order runs inside the forward of one autograd
Function: for each head in turn, it computes the head's forward on a detached z, its cross-entropy, and its gradients;
the logits are freed before the next head begins. The Function returns the summed loss, and its backward returns the
stored gradient of every input times the incoming gradient. So callers see one ordinary loss and one ordinary backward,
which DeepSpeed's ZeRO and pipeline engines can handle, and peak memory is O(V + d) instead of O(nV + d).

Within one head, the same Function goes through chunks of positions, so that even one head's logits are never in memory
as a whole. Over heads and over chunks alike, a loss is a sum of pieces whose graphs need not exist at the same time.

Shape suffixes as in `network.py`; X is B x T flattened.
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
        inputs: tensors that the pieces read, for instance the trunk's output z; pieces get them detached.
        n_pieces: number of summands.
        parameters: every other tensor that `piece` uses and that may need a gradient. They are explicit so that
            autograd, and ZeRO's hooks on parameters, see them as inputs of one op.

    Raises:
        RuntimeError: on a second backward, because the gradients are stored once and not copied.
    """
    if not torch.is_grad_enabled():
        values = torch.stack([piece(index, *inputs) for index in range(n_pieces)])
        return values.sum(), values
    return _SumOfPieces.apply(piece, n_pieces, len(inputs), *inputs, *parameters)


def cross_entropy(hidden_BTD: Tensor, unembedding_VD: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the mean cross-entropy () of one head in nats per token, in fp32 whatever the dtype of the weights.

    A chunk's logits take about as much memory as `hidden_BTD` itself (chunk x V = X x D). Torch's own chunked
    `F.linear_cross_entropy` is not used because for bf16 inputs (torch 2.13) it sums the loss in bf16; errors of 0.17
    nats were measured.
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
    """Forward computes the pieces and their gradients one by one. Backward scales the summed gradients."""

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
            del gradient, total  # otherwise the last one, as large as the unembedding, lives through the next piece
            values.append(value.detach())
        remaining = iter(sums)
        ctx.gradients = [next(remaining) if needed else None for needed in needs_gradient]
        stacked = torch.stack(values)
        ctx.mark_non_differentiable(stacked)
        return stacked.sum(), stacked

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the head-sequential loss stores its gradients for one backward only, not for two")
        gradients, ctx.gradients = ctx.gradients, None
        # In place: the stored gradients are as large as the heads, and nothing else refers to them.
        return None, None, None, *(g if g is None else g.mul_(output_gradients[0]) for g in gradients)
