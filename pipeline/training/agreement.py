"""The one collective that ends a step: the mean losses, and everything that all ranks must know to act alike."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """The counts of one rank in a step, or the sums over all ranks. A flag is set on some rank if its sum is not 0."""

    stop_requests: float = 0
    """1 if this rank was asked to stop."""
    faults: float = 0
    """Shards that were found damaged for the first time."""
    skipped_windows: float = 0
    """Windows of damaged shards that were replaced by others."""
    failed_saves: float = 0
    """1 if a checkpoint could not be written, and the run is to stop in this case."""
    takeovers: float = 0
    """1 if a later start of the same job holds the lease."""
    times_s: list[float] = field(default_factory=list)
    """The contribution to `StepTimes.observe`."""


def agree(losses_N: Tensor, counts: StepCounts) -> tuple[Tensor, StepCounts]:
    """Return the mean losses (N,) over all ranks, fp32, and the sums of their counts.

    Every rank must call it, with equally many times, and gets the same.
    """
    numbers = [
        counts.stop_requests, counts.faults, counts.skipped_windows, counts.failed_saves, counts.takeovers,
        *counts.times_s,
    ]  # fmt: skip
    sums = torch.cat([losses_N.detach().float(), torch.tensor(numbers, dtype=torch.float32, device=losses_N.device)])
    dist.all_reduce(sums)
    n_heads = len(losses_N)
    stop_requests, faults, skipped_windows, failed_saves, takeovers, *times_s = sums[n_heads:].tolist()
    return sums[:n_heads] / dist.get_world_size(), StepCounts(
        stop_requests=stop_requests,
        faults=faults,
        skipped_windows=skipped_windows,
        failed_saves=failed_saves,
        takeovers=takeovers,
        times_s=times_s,
    )
