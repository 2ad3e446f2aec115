"""How long steps take and why: each rank's own time, the slowest rank, and waiting for data.

Ranks wait for each other in every step, so the steps of all take as long as those of the slowest. What tells them apart
is the time that each spends before it waits: for its own data, and in the forward of its part of the model, where the
heads also do their backward. Two numbers a rank, which go along in the collective that ends every step anyway.

- ZeRO-0 to 2, and pipelines: the whole forward of what the rank holds; a stage is compared with the same stage of the
  other replicas, which has the same to do.
- ZeRO-3 waits before each layer to gather it, so there only the heads, which are gathered as one, are timed.
- Ranks that share a sequence, or a layer's matrices, wait for each other inside the layers. A slow one of them makes
  all of its replica look slow: the rank that is named is one of the replica.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median_low
from typing import Any

import torch
from torch import nn

from pipeline.runtime.world import World, logger

SLOW_RATIO = 1.3  # own time over the median's, from which on a rank is slow
COSTLY_SHARE = 0.1  # of the step, below which neither a slow rank nor waiting for data is worth a word
PATIENCE = 3  # logged steps in a row
SILENCE = 100  # logged steps from one warning to the next


class ForwardTimer:
    """Adds up the seconds that training spends in a module's forward; on a GPU those of the GPU."""

    def __init__(self, module: nn.Module, *, device: torch.device) -> None:
        self._clock = _GpuClock() if device.type == "cuda" else _HostClock()
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def take_s(self) -> float:
        """Return the seconds since the last call; waits for the last forward, not for what came after it."""
        return self._clock.take_s()

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if module.training:
            self._clock.mark()

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training:
            self._clock.mark()


class _HostClock:
    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        self._marks.append(time.perf_counter())

    def take_s(self) -> float:
        marks, self._marks = self._marks, []
        return sum(end - begin for begin, end in zip(marks[::2], marks[1::2], strict=True))


class _GpuClock:
    def __init__(self) -> None:
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def take_s(self) -> float:
        marks, self._marks = self._marks, []
        if marks:
            marks[-1].synchronize()
        return sum(begin.elapsed_time(end) for begin, end in zip(marks[::2], marks[1::2], strict=True)) / 1000


class StepTimes:
    """Measures steps, hears of every rank's own time in them, and sums up for each logged step. Rank 0 warns.

    Args:
        world: this rank's place.
        n_stages: of each pipeline; ranks of the same stage are compared.
        num_workers: of the data loader, for the warning.
    """

    def __init__(self, *, world: World, n_stages: int, num_workers: int) -> None:
        self._world, self._n_stages, self._num_workers = world, n_stages, num_workers
        self._own_wait_s = 0.0  # since the run began, until the last step
        self._slow_rank, self._slow_data = _Alarm(), _Alarm()
        self._waits_s: list[float]  # of each rank, in the steps since the last report
        self._computed_s: list[float]
        self.forget()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Take one step inside this."""
        start_s = time.perf_counter()
        yield
        self._elapsed_s += time.perf_counter() - start_s
        self._n_steps += 1

    def own(self, *, wait_s: float, compute_s: float) -> list[float]:
        """Return this rank's contribution to a sum over all ranks, for `observe`: zeros in the others' places.

        Args:
            wait_s: what it has waited for data since the run began.
            compute_s: what it has computed in this step.
        """
        sums = [0.0] * (2 * self._world.world_size)
        sums[2 * self._world.rank : 2 * self._world.rank + 2] = wait_s - self._own_wait_s, compute_s
        self._own_wait_s = wait_s
        return sums

    def observe(self, sums: list[float]) -> None:
        """Take note of one step: every rank's contribution, summed."""
        waits_s, computed_s = sums[::2], sums[1::2]
        self._longest_waits_s += max(waits_s)
        self._waits_s = [a + b for a, b in zip(self._waits_s, waits_s, strict=True)]
        self._computed_s = [a + b for a, b in zip(self._computed_s, computed_s, strict=True)]

    def report(self) -> dict[str, float]:
        """Return the scalars of the steps since the last report, and warn if something has been slow for long.

        time/step_s: mean wall time.  data/wait_s: what the rank which waited longest in each step waited for data,
        added up.  time/slowest_rank: whose own time exceeds its like's by the largest factor, time/slowest_rank_ratio.
        """
        own_s = [wait + computed for wait, computed in zip(self._waits_s, self._computed_s, strict=True)]
        medians_s = [median_low(own_s[rank % self._n_stages :: self._n_stages]) for rank in range(len(own_s))]
        ratios = [own / median if median else 1.0 for own, median in zip(own_s, medians_s, strict=True)]
        slowest = max(range(len(ratios)), key=ratios.__getitem__)
        ratio, costs_s = ratios[slowest], own_s[slowest] - medians_s[slowest]
        elapsed_s, n_steps = self._elapsed_s, self._n_steps
        if self._slow_rank.rings(slowest if ratio > SLOW_RATIO and costs_s > COSTLY_SHARE * elapsed_s else None):
            self._warn(
                "rank %d is slow: %.2f s a step of its own, %.2f s of it waiting for data, where the median of its like"
                " is %.2f s; all ranks wait for it. Look at its node (clocks, other processes, disks)",
                slowest, own_s[slowest] / n_steps, self._waits_s[slowest] / n_steps, medians_s[slowest] / n_steps,
            )  # fmt: skip
        if self._slow_data.rings(True if self._longest_waits_s > COSTLY_SHARE * elapsed_s else None):
            self._warn(
                "training waits for data: %.2f of %.2f s a step. Raise data.num_workers (now %d), or put the shards on"
                " a faster disk",
                self._longest_waits_s / n_steps, elapsed_s / n_steps, self._num_workers,
            )  # fmt: skip
        scalars = {
            "time/step_s": elapsed_s / n_steps,
            "data/wait_s": self._longest_waits_s,
            "time/slowest_rank": float(slowest),
            "time/slowest_rank_ratio": ratio,
        }
        self.forget()
        return scalars

    def forget(self) -> None:
        """Begin anew: the steps since the last report are reported, or a rollback takes them back."""
        self._elapsed_s, self._n_steps, self._longest_waits_s = 0.0, 0, 0.0
        self._waits_s = [0.0] * self._world.world_size
        self._computed_s = [0.0] * self._world.world_size

    def _warn(self, message: str, *values: object) -> None:
        if self._world.is_main:
            logger.warning(message, *values)


class _Alarm:
    """Rings when the same has been wrong `PATIENCE` times in a row, and then not for `SILENCE` times."""

    def __init__(self) -> None:
        self._wrong: object = None
        self._in_a_row = self._silent = 0

    def rings(self, wrong: object) -> bool:
        """Take note of what is wrong, None if nothing is; return whether to say so."""
        self._in_a_row = self._in_a_row + 1 if wrong is not None and wrong == self._wrong else int(wrong is not None)
        self._wrong = wrong
        self._silent = max(0, self._silent - 1)
        if self._in_a_row < PATIENCE or self._silent:
            return False
        self._silent = SILENCE
        return True
