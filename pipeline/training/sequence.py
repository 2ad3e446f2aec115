"""Sequence parallelism: neighbouring ranks hold stretches of the same sequences (DeepSpeed-Ulysses, arXiv 2309.14509).

Everything but attention works on each position separately. For attention, the ranks of a group exchange all attention
heads of their stretch for all positions of some attention heads, and back. To DeepSpeed, the group is ordinary data
parallelism: each rank's loss is the mean over its stretch, and the mean over all ranks is the mean over the batch.
"""

from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.batches import Batch
from pipeline.model.layers import Attention
from pipeline.model.network import MultiTokenModel


def share_sequences(model: MultiTokenModel, *, group_size: int, seq_len: int) -> slice:
    """Make `model` work on this rank's stretch of every sequence, and return the positions of the stretch.

    A group is `group_size` consecutive ranks. Every rank must call it.
    """
    from deepspeed.sequence.layer import DistributedAttention

    groups = [list(range(first, first + group_size)) for first in range(0, dist.get_world_size(), group_size)]
    group, _ = dist.new_subgroups_by_enumeration(groups)
    exchange = DistributedAttention(_attend_to_all, group, scatter_idx=2, gather_idx=1)

    def attend(query_BHTE: Tensor, key_BKTE: Tensor, value_BKTE: Tensor, **options: Any) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query_BHTE, key_BKTE, value_BKTE))
        return exchange(query, key, value, 0, **options).transpose(1, 2)  # 0 is the batch dimension

    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = attend  # type: ignore[assignment]
    length = seq_len // group_size
    first = length * dist.get_rank(group)
    model.trunk.first_position = model.heads.first_position = first
    return slice(first, first + length)


def positions_of(batch: Batch, positions: slice) -> Batch:
    """Return some positions of a batch. Each position brings all its targets, so none is missing at the cut."""
    return Batch(batch.tokens_BT[:, positions], batch.targets_BTN[:, positions])


def _attend_to_all(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Attend over tensors of shape (B, T, H, E), as DeepSpeed orders the dimensions."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, **options)
    return mixed.transpose(1, 2)
