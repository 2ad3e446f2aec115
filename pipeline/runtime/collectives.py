"""Collectives over all ranks: means, flags, and small Python objects. Every rank must call each function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from common.command_line import UserError
from pipeline.runtime.world import World

if TYPE_CHECKING:  # torch takes seconds to import; commands report a user's mistake before that
    import torch
    import torch.distributed as dist
    from torch import Tensor


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean of `values` over all ranks, fp32."""
    import torch.distributed as dist

    mean = values.detach().float().clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


def on_any_rank(flag: bool, *, device: torch.device) -> bool:
    """Return whether the flag is set on at least one rank.

    Args:
        flag: this rank's.
        device: where the process group reduces tensors.
    """
    import torch
    import torch.distributed as dist

    n_ranks = torch.tensor(float(flag), device=device)
    dist.all_reduce(n_ranks)
    return n_ranks.item() > 0


def from_every_rank(value: Any, *, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return the values of all ranks, in order of rank, on every rank. The values must be picklable."""
    import torch.distributed as dist

    values = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def from_main(value: Any) -> Any:
    """Return rank 0's `value` on every rank. It must be picklable."""
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def by_main(action: Callable[[], None], *, world: World) -> None:
    """Let rank 0 do something with files, and make every rank raise the error if it fails.

    Raises:
        UserError: `action` raised it, or a file could not be written.
    """
    problem = None
    if world.is_main:
        try:
            action()
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{error.filename} cannot be written: {error.strerror}"
    problem = from_main(problem)
    if problem is not None:
        raise UserError(problem)
