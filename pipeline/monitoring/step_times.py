"""Step times and their causes: each rank's local time, the slowest rank, and waiting for data.

Ranks wait for each other in every step, so each step takes every rank as long as it takes the slowest. What differs is
a rank's local time, which it spends before it waits for others: waiting for its own data, and the forward of its part
of the model (for the heads, the backward too). Both numbers of each rank travel in the collective that ends a step.

- ZeRO-0 to 2, and pipelines: the whole forward of the rank's part of the model is timed. A pipeline stage is compared
  with the same stage of other replicas, which does the same work.
- ZeRO-3 waits before each layer to gather it. Only the heads, which are gathered as one unit, are timed.
- Sequence- and tensor-parallel ranks wait for each other inside the layers. One slow rank makes its whole replica look
  slow, so the rank that is named may be any rank of that replica.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median_low
from typing import Any

import torch
from torch import nn

from pipeline.runtime.logs import logger
from pipeline.runtime.world import World

SLOW_RATIO = 1.3  # a rank is slow if its local time is more than this many times the median
COSTLY_SHARE = 0.1  # of the step; a slow rank or waiting for data that costs less is not reported
PATIENCE = 3  # reports in a row that must show a problem before the warning
SILENCE = 100  # reports between two warnings


class ForwardTimer:
    """Adds up the seconds that training spends in a module's forward; on a GPU, in GPU time."""

    def __init__(self, module: nn.Module, *, device: torch.device) -> None:
        self._clock = _GpuClock() if device.type == "cuda" else _HostClock()
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def take_s(self) -> float:
        """Return the forward's seconds since the last call; on a GPU, wait for the end of the last forward."""
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
    """Measures steps, collects every rank's local time, and sums up for each report. Rank 0 logs the warnings.

    Args:
        world: this rank's place in the run.
        n_stages: pipeline stages of a replica; ranks of the same stage are compared.
        num_workers: data loader workers per rank, which the warning names.
    """

    def __init__(self, *, world: World, n_stages: int, num_workers: int) -> None:
        self._world, self._n_stages, self._num_workers = world, n_stages, num_workers
        self._waited_s = 0.0  # from the start of the run to the last step
        self._slow_rank, self._slow_data = _Alarm(), _Alarm()
        self._waits_s: list[float]  # for each rank, in the steps since the last report
        self._computed_s: list[float]
        self.forget()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure the step that is taken inside."""
        start_s = time.perf_counter()
        yield
        self._elapsed_s += time.perf_counter() - start_s
        self._n_steps += 1

    def contribution(self, *, wait_s: float, compute_s: float) -> list[float]:
        """Return this rank's contribution to the sum over ranks that `observe` takes: two numbers per rank.

        The places of the other ranks hold zeros.

        Args:
            wait_s: seconds that this rank has waited for data since the run began.
            compute_s: seconds of its timed forward in this step.
        """
        sums = [0.0] * (2 * self._world.world_size)
        sums[2 * self._world.rank : 2 * self._world.rank + 2] = wait_s - self._waited_s, compute_s
        self._waited_s = wait_s
        return sums

    def observe(self, sums: list[float]) -> None:
        """Add one step; `sums` is the sum of all ranks' contributions (`contribution`)."""
        waits_s, computed_s = sums[::2], sums[1::2]
        self._longest_waits_s += max(waits_s)
        self._waits_s = [a + b for a, b in zip(self._waits_s, waits_s, strict=True)]
        self._computed_s = [a + b for a, b in zip(self._computed_s, computed_s, strict=True)]

    def take_scalars(self) -> dict[str, float]:
        """Return the scalars of the steps since the last report, and warn if something has been slow for long.

        time/step_s: mean wall time of a step.
        data/wait_s: seconds that the longest-waiting rank of each step waited for data, summed over the steps.
        time/slowest_rank: the rank whose local time is the largest multiple of the median of comparable ranks.
        time/slowest_rank_ratio: that multiple.
        """
        own_s = [wait + computed for wait, computed in zip(self._waits_s, self._computed_s, strict=True)]
        medians_s = [median_low(own_s[rank % self._n_stages :: self._n_stages]) for rank in range(len(own_s))]
        ratios = [own / median if median else 1.0 for own, median in zip(own_s, medians_s, strict=True)]
        slowest = max(range(len(ratios)), key=ratios.__getitem__)
        ratio, costs_s = ratios[slowest], own_s[slowest] - medians_s[slowest]
        elapsed_s, n_steps = self._elapsed_s, self._n_steps
        if self._slow_rank.rings(slowest if ratio > SLOW_RATIO and costs_s > COSTLY_SHARE * elapsed_s else None):
            self._warn(
                "rank %d is slow: %.2f s per step of local work, %.2f s of it waiting for data; the median of"
                " comparable ranks is %.2f s. All ranks wait for it. Check its node (clocks, other processes, disks)",
                slowest, own_s[slowest] / n_steps, self._waits_s[slowest] / n_steps, medians_s[slowest] / n_steps,
            )  # fmt: skip
        if self._slow_data.rings(True if self._longest_waits_s > COSTLY_SHARE * elapsed_s else None):
            self._warn(
                "training waits for data: %.2f of %.2f s per step. Raise data.num_workers (now %d), or put the shards"
                " on a faster disk",
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
        """Discard the steps since the last report: they have been reported, or a rollback has undone them."""
        self._elapsed_s, self._n_steps, self._longest_waits_s = 0.0, 0, 0.0
        self._waits_s = [0.0] * self._world.world_size
        self._computed_s = [0.0] * self._world.world_size

    def _warn(self, message: str, *values: object) -> None:
        if self._world.is_main:
            logger.warning(message, *values)


class _Alarm:
    """Rings when the same problem was seen `PATIENCE` times in a row, then stays silent for `SILENCE` times."""

    def __init__(self) -> None:
        self._problem: object = None
        self._in_a_row = self._silent = 0

    def rings(self, problem: object) -> bool:
        """Take the current problem, or None if there is none; return whether to warn about it."""
        repeats = problem is not None and problem == self._problem
        self._in_a_row = self._in_a_row + 1 if repeats else int(problem is not None)
        self._problem = problem
        self._silent = max(0, self._silent - 1)
        if self._in_a_row < PATIENCE or self._silent:
            return False
        self._silent = SILENCE
        return True
