"""The run that faults are done to, and what a fault and its recovery are."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from pipeline.runtime.stop import ExitCode
from tests.faults.nan_train import LINGER_AFTER, MAY_FINISH
from tests.faults.runs import Job, NotAsPromised, Recipe, checkpoints_of, step_of

DAMAGED = "damaged-by-a-fault"  # a file that marks a checkpoint until it is deleted or written again


class Victim:
    """A run that is killed and started again, many times.

    run_dir: its folder, on the small disk if there is one.  reference: the uninterrupted run's.
    job: its last start.  start_s: seconds from a start to its first step.
    linger_after: the step from which on it takes its time, until it may finish.
    """

    def __init__(self, recipe: Recipe, run_dir: Path, *, reference: Path, start_s: float, linger_after: int) -> None:
        self.recipe, self.run_dir, self.reference, self.start_s = recipe, run_dir, reference, start_s
        self._linger_after, self._may_finish = linger_after, recipe.runs / "may-finish"
        self._may_finish.unlink(missing_ok=True)
        self.job: Job

    def start(self, *overrides: str) -> Job:
        """Start it, again; what was before must be over."""
        variables = {MAY_FINISH: str(self._may_finish), LINGER_AFTER: str(self._linger_after)}
        self.job = Job(self.recipe, self.run_dir, *overrides, variables=variables)
        return self.job

    def let_finish(self) -> None:
        """Let it go on to its end."""
        self._may_finish.touch()

    def end(self, rng: Random) -> str:
        """End it in one of two ways, to look at its files; return which."""
        if rng.random() < 0.5:
            self.job.kill()
            return "killed"
        self.job.ranks()[rng.randrange(2)].terminate()
        self.must_end_with(ExitCode.STOPPED)
        return "stopped"

    def must_end_with(self, code: int) -> None:
        """Wait for the end of the job.

        Raises:
            NotAsPromised: its exit code is another one.
        """
        found = self.job.ended()
        if found != code:
            raise NotAsPromised(f"exit code {found} instead of {code}: {_tail(self.job.output)}")

    def must_say(self, text: str, *, job: Job | None = None) -> None:
        """Raise NotAsPromised if a job, by default its own, has not printed a text."""
        output = (job or self.job).output
        if text not in output:
            raise NotAsPromised(f"did not say {text!r}: {_tail(output)}")


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What was done, and what the next start has to show for it.

    details: what exactly.  says: what the next start must print.
    loses_nothing: whether the last step was to be saved.
    """

    details: str
    says: tuple[str, ...] = ()
    loses_nothing: bool = False


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of fault.

    apply: does it to a running victim, checks what was promised for it, and leaves nothing running.
    often: how many of 60 faults.  overrides: what the victim must have been started with.  needs_disk: a small one.
    """

    name: str
    apply: Callable[[Victim, Random], Effect]
    often: int
    overrides: tuple[str, ...] = ()
    needs_disk: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one fault.

    step: the last one before it.  lost: steps that were done again.  problems: why it counts as not recovered.
    """

    kind: str
    details: str
    step: int
    lost: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def expected_resume(run_dir: Path) -> int:
    """The step that the next start has to go on from: that of the newest checkpoint that nobody damaged, or 0."""
    return next(map(step_of, undamaged_checkpoints(run_dir)), 0)


def undamaged_checkpoints(run_dir: Path) -> list[Path]:
    """The run's checkpoints that no fault has damaged, the newest first."""
    return [path for path in checkpoints_of(run_dir) if not (path / DAMAGED).exists()]


@contextmanager
def small_disk(folder: Path, *, size: int) -> Iterator[bool]:
    """Make `folder` a file system of its own of `size` bytes; yield False where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


class Ballast:
    """A file that fills a disk; to be used as a context, which removes it.

    leave: how many bytes it leaves.
    """

    def __init__(self, folder: Path, *, leave: int) -> None:
        self._path, self._leave = folder / "ballast", leave

    def fill(self) -> None:
        """Fill the disk; again, what a save has given back since, which may have begun before."""
        with self._path.open("ab") as file:
            size = shutil.disk_usage(self._path.parent).free - self._leave
            with suppress(OSError):  # a run writes meanwhile: there is less room than there was
                os.posix_fallocate(file.fileno(), file.tell(), max(1, size))

    def __enter__(self) -> "Ballast":
        return self

    def __exit__(self, *error: object) -> None:
        self._path.unlink(missing_ok=True)


def _tail(output: str) -> str:
    return " | ".join(line for line in output.splitlines() if line.strip())[-600:]
