"""Starts of the real training command, observed from outside: its output, its processes, and its files."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import launch_deepspeed

RANKS = 2
PATIENCE_S = 400.0  # for events that happen soon, also on a busy machine


class NotAsDocumented(Exception):
    """The program did not behave as documented."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The recipe that all runs of a campaign train."""

    path: Path
    overrides: tuple[str, ...]
    """Changed fields of the recipe."""
    runs: Path
    """Folder of the reference and of runs that are kept; not on the small disk."""
    shards: Path
    """Folder of shards that belong to the campaign alone, because it damages them."""


class Job:
    """One start of a run, until all its processes have ended.

    All its processes write to one pipe, which closes when the last of them has ended.
    """

    def __init__(
        self, recipe: Recipe, run_dir: Path, *overrides: str, variables: Mapping[str, str] | None = None
    ) -> None:
        self.run_dir, self._started_s = run_dir, time.monotonic()
        self.process = launch_deepspeed(
            "tests.faults.nan_train", "--config", recipe.path, "--deepspeed_config", "ds_configs/zero1_fp32.json",
            f"run.dir={run_dir.parent}", f"run.name={run_dir.name}", f"data.shards={recipe.shards}",
            *recipe.overrides, *overrides, ranks=RANKS, variables=variables,
        )  # fmt: skip
        self._lines: list[str] = []
        self._ranks: list[psutil.Process] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):
            self._lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def output(self) -> str:
        """All output so far."""
        return "".join(self._lines.copy())

    @property
    def step(self) -> int:
        """The last step that this start has reported; 0 before its first step."""
        return max((int(step) for step in re.findall(r"^step (\d+)/", self.output, re.MULTILINE)), default=0)

    @property
    def resumed_step(self) -> int:
        """The step of the checkpoint that it resumed from; 0 if there was none."""
        found = re.search(r"^resumed from \S*step_(\d+)$", self.output, re.MULTILINE)
        return int(found[1]) if found else 0

    @property
    def age_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started_s

    @property
    def is_over(self) -> bool:
        """True if all its processes have ended."""
        return not self._reader.is_alive()

    def wait_until(self, condition: Callable[[], bool], *, what: str, every_s: float = 0.05) -> None:
        """Wait for an event that should happen while the job runs.

        Raises:
            NotAsDocumented: the job ends before the event, or the event does not happen in time.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if self.is_over:
                raise NotAsDocumented(f"ended with {self.process.wait()} before {what}")
            if time.monotonic() > deadline:
                raise NotAsDocumented(f"{what}: not within {PATIENCE_S:.0f} s")
            time.sleep(every_s)

    def wait_for_step(self, step: int) -> None:
        """Wait until a step is reported."""
        self.wait_until(lambda: self.step >= step, what=f"step {step}")

    def wait_for_save(self) -> None:
        """Wait until a checkpoint is being written or its folder deleted."""
        checkpoints = self.run_dir / "checkpoints"
        self.wait_until(lambda: any(checkpoints.glob(".step_*.partial")), what="a save", every_s=0.001)

    def ranks(self) -> list[psutil.Process]:
        """Return the processes of the ranks in order; wait until they exist."""

        def found() -> bool:
            with contextlib.suppress(psutil.Error):
                launched = [
                    child for outer in psutil.Process(self.process.pid).children() for child in outer.children()
                ]
                of = {word: child for child in launched for word in child.cmdline() if word.startswith("--local_rank=")}
                self._ranks = [of[word] for word in sorted(of)]
            return len(self._ranks) == RANKS

        if not self._ranks:
            self.wait_until(found, what="the start of its ranks", every_s=0.01)
        return self._ranks

    def launchers(self) -> list[psutil.Process]:
        """Return the parent processes of the ranks, the outermost first."""
        outermost = psutil.Process(self.process.pid)
        return [outermost, *outermost.children()]

    def ended(self) -> int:
        """Wait until all its processes have ended; return the exit code.

        Raises:
            NotAsDocumented: a process still runs after a long time; all are killed.
        """
        self._reader.join(PATIENCE_S)
        if not self.is_over:
            self.kill()
            raise NotAsDocumented(f"did not end within {PATIENCE_S:.0f} s")
        return self.process.wait()

    def kill(self) -> None:
        """Kill all its processes at once with SIGKILL, if any is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._reader.join(PATIENCE_S)
        self.process.wait()


def checkpoints_of(run_dir: Path) -> list[Path]:
    """Return the run's checkpoints, the newest first."""
    return sorted((run_dir / "checkpoints").glob("step_*"), reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))
