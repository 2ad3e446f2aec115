"""A few steps under torch's profiler: a trace for TensorBoard, Perfetto or chrome://tracing, and a table of the parts.

`profile.steps` says which steps. The ranks of the first replica record, since a pipeline's ranks have different things
to do and all other replicas the same as these. A run that is stopped, or goes back, between two of them leaves what it
has. Each rank leaves in the run's folder

    profile/steps_10_to_12.rank_00000.pt.trace.json.gz      the trace
    profile/steps_10_to_12.rank_00000.txt                   where the mean step's time went (`trace.py`)

Recording changes no number of the run. It costs time, in those steps alone.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from torch.profiler import profile

from common.files import write_text, written_whole
from pipeline.config.schema import ProfileConfig
from pipeline.monitoring.trace import STEP, as_table, part, times_of_parts
from pipeline.runtime.world import World, logger


class StepProfile:
    """Records the steps that the config names, and no others; a context around all steps.

    Args:
        config: which steps to record.
        run_dir: the run's folder.
        n_recording: ranks that record, from rank 0 on: those of one replica.
        world: this rank's place.
        pausing: context in which writing does not count as training.
    """

    def __init__(
        self, config: ProfileConfig, *, run_dir: Path, n_recording: int, world: World,
        pausing: Callable[[], AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        first, last = config.steps or (0, -1)
        self._wanted = range(first, last + 1) if world.rank < n_recording else range(0)
        self._folder, self._rank, self._pausing = run_dir / "profile", world.rank, pausing
        self._profiler: profile | None = None
        self._recorded: list[int] = []
        self._unfinished: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profiler is None:
            return
        if self._unfinished is not None:  # it would be taken for a whole step
            self._profiler.stop()
            logger.warning(
                "the profile of steps %s is lost: step %d was not finished", self._recorded, self._unfinished
            )
        else:
            self._finish(self._profiler)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Take one step inside this."""
        if step in self._wanted and self._profiler is None:
            self._profiler = profile()
            self._profiler.start()
        self._unfinished = step
        with part(STEP):
            yield
        self._unfinished = None
        if self._profiler is not None:
            self._recorded.append(step)
            if step == self._wanted[-1]:
                self._finish(self._profiler)

    def _finish(self, profiler: profile) -> None:
        profiler.stop()
        self._profiler = None
        with self._pausing():
            name = f"steps_{self._recorded[0]}_to_{self._recorded[-1]}.rank_{self._rank:05d}"
            trace_path = self._folder / f"{name}.pt.trace.json.gz"
            try:
                self._folder.mkdir(exist_ok=True)
                text = _exported(profiler)
                with written_whole(trace_path) as partial, gzip.open(partial, "wb", compresslevel=5) as file:
                    file.write(text)
                table = as_table(times_of_parts(json.loads(text)["traceEvents"]))
                write_text(self._folder / f"{name}.txt", table + "\n")
            except OSError as error:
                logger.warning("the profile of steps %s cannot be written (%s)", self._recorded, error)
                return
        logger.info("profile of steps %d to %d (%s)\n%s", self._recorded[0], self._recorded[-1], trace_path, table)


def _exported(profiler: profile) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return path.read_bytes()
