"""The run that faults are injected into, and the types of a fault and its outcome."""

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
from tests.faults.runs import Job, NotAsDocumented, Recipe, checkpoints_of, step_of

DAMAGED = "damaged-by-a-fault"  # name of a file that marks a checkpoint until it is deleted or written again


class Victim:
    """A run that is killed and started again many times. `job` is its last start.

    Args:
        recipe: the campaign's recipe.
        run_dir: run directory, on the small disk if there is one.
        reference: run directory of the uninterrupted run.
        start_s: seconds from a start to its first step.
        linger_after: step after which the run is slowed down, until it may finish.
    """

    def __init__(self, recipe: Recipe, run_dir: Path, *, reference: Path, start_s: float, linger_after: int) -> None:
        self.recipe, self.run_dir, self.reference, self.start_s = recipe, run_dir, reference, start_s
        self._linger_after, self._may_finish = linger_after, recipe.runs / "may-finish"
        self._may_finish.unlink(missing_ok=True)
        self.job: Job

    def start(self, *overrides: str) -> Job:
        """Start the run (again); its last start must be over."""
        variables = {MAY_FINISH: str(self._may_finish), LINGER_AFTER: str(self._linger_after)}
        self.job = Job(self.recipe, self.run_dir, *overrides, variables=variables)
        return self.job

    def let_finish(self) -> None:
        """Let the run continue to its end."""
        self._may_finish.touch()

    def end(self, rng: Random) -> str:
        """End the run in one of two ways, before its files are changed; return which."""
        if rng.random() < 0.5:
            self.job.kill()
            return "killed"
        self.job.ranks()[rng.randrange(2)].terminate()
        self.must_end_with(ExitCode.STOPPED)
        return "stopped"

    def must_end_with(self, code: int) -> None:
        """Wait for the end of the last start.

        Raises:
            NotAsDocumented: its exit code is not `code`.
        """
        found = self.job.ended()
        if found != code:
            raise NotAsDocumented(f"exit code {found} instead of {code}: {_tail(self.job.output)}")

    def must_say(self, text: str, *, job: Job | None = None) -> None:
        """Raise NotAsDocumented if a job, by default the last start, has not printed `text`."""
        output = (job or self.job).output
        if text not in output:
            raise NotAsDocumented(f"did not print {text!r}: {_tail(output)}")


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A fault that was injected, and what is expected of the next start."""

    details: str
    """Description of the fault."""
    says: tuple[str, ...] = ()
    """Texts that the next start must print."""
    loses_nothing: bool = False
    """Whether the last step must have been saved."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of fault."""

    name: str
    apply: Callable[[Victim, Random], Effect]
    """Injects the fault into a running victim, checks the documented behaviour, and leaves no process running."""
    often: int
    """Number of these among 60 faults."""
    overrides: tuple[str, ...] = ()
    """Fields of the recipe with which the victim must have been started."""
    needs_disk: bool = False
    """Whether the victim must be on a small disk."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one fault."""

    kind: str
    details: str
    step: int
    """Last step before the fault."""
    lost: int = 0
    """Steps that were repeated."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    """Reasons why it counts as not recovered."""


def expected_resume(run_dir: Path) -> int:
    """Return the step that the next start must resume from: that of the newest undamaged checkpoint, or 0."""
    return next(map(step_of, undamaged_checkpoints(run_dir)), 0)


def undamaged_checkpoints(run_dir: Path) -> list[Path]:
    """Return the run's undamaged checkpoints, the newest first."""
    return [path for path in checkpoints_of(run_dir) if not (path / DAMAGED).exists()]


@contextmanager
def small_disk(folder: Path, *, size: int) -> Iterator[bool]:
    """Mount a file system of `size` bytes on `folder`; yield whether that was allowed."""
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
    """A file that fills a disk except for `leave` bytes; to be used as a context manager, which removes it."""

    def __init__(self, folder: Path, *, leave: int) -> None:
        self._path, self._leave = folder / "ballast", leave

    def fill(self) -> None:
        """Fill the disk. Call it again to fill space that a save, perhaps begun earlier, has freed since."""
        with self._path.open("ab") as file:
            size = shutil.disk_usage(self._path.parent).free - self._leave
            with suppress(OSError):  # the run may have used up space in the meantime
                os.posix_fallocate(file.fileno(), file.tell(), max(1, size))

    def __enter__(self) -> "Ballast":
        return self

    def __exit__(self, *error: object) -> None:
        self._path.unlink(missing_ok=True)


def _tail(output: str) -> str:
    return " | ".join(line for line in output.splitlines() if line.strip())[-600:]
