"""Records a few steps with torch's profiler: a trace, and a table that divides the mean step's time among its parts.

`profile.steps` names the steps. The ranks of the first replica record: the stages of a pipeline do different work, and
the other replicas do the same work as the first. If a run stops or rolls back between two of these steps, the profile
holds the steps it has recorded. Each recording rank writes into the run's folder

    profile/steps_10_to_12.rank_00000.pt.trace.json.gz      the trace, for TensorBoard, Perfetto or chrome://tracing
    profile/steps_10_to_12.rank_00000.txt                   the table of parts (`trace.py`)

Recording changes no number of the run. It slows down only the steps that it records.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from torch.profiler import profile

from common.command_line import one_line
from common.files import write_text, written_whole
from pipeline.config.schema import ProfileConfig
from pipeline.monitoring.trace import as_table, times_of_parts
from pipeline.runtime.logs import logger
from pipeline.runtime.ranges import STEP, profiler_range
from pipeline.runtime.world import World


class StepProfile:
    """Records the steps that the config names. A context around all steps of the run.

    Args:
        config: which steps to record.
        run_dir: the run's folder.
        n_recording: number of ranks that record: 0 to `n_recording` - 1, which hold the first replica.
        world: this rank's place in the run.
        pausing: context in which time does not count as training; files are written inside it.
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
        if self._unfinished is not None:  # the trace would show it as a whole step
            with suppress(Exception):
                self._profiler.stop()
            logger.warning(
                "the profile of steps %s is lost because step %d was not finished", self._recorded, self._unfinished
            )
        else:
            self._finish(self._profiler)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Record the step that is taken inside, if it is one of the named steps."""
        if step in self._wanted and self._profiler is None:
            self._start()
        self._unfinished = step
        with profiler_range(STEP):
            yield
        self._unfinished = None
        if self._profiler is not None:
            self._recorded.append(step)
            if step == self._wanted[-1]:
                self._finish(self._profiler)

    def _start(self) -> None:
        profiler = profile()
        try:
            profiler.start()
        except Exception as error:  # recording only watches a run, and never ends it
            self._wanted = range(0)
            logger.warning("could not start to profile: %s; no step is recorded", one_line(error))
        else:
            self._profiler = profiler

    def _finish(self, profiler: profile) -> None:
        self._profiler = None
        with self._pausing():
            name = f"steps_{self._recorded[0]}_to_{self._recorded[-1]}.rank_{self._rank:05d}"
            trace_path = self._folder / f"{name}.pt.trace.json.gz"
            try:
                profiler.stop()
                self._folder.mkdir(exist_ok=True)
                text = _exported(profiler)
                with written_whole(trace_path) as partial, gzip.open(partial, "wb", compresslevel=5) as file:
                    file.write(text)
                table = as_table(times_of_parts(json.loads(text)["traceEvents"]))
                write_text(self._folder / f"{name}.txt", table + "\n")
            except Exception as error:
                logger.warning("could not write the profile of steps %s: %s", self._recorded, one_line(error))
                return
        logger.info("profile of steps %d to %d (%s)\n%s", self._recorded[0], self._recorded[-1], trace_path, table)


def _exported(profiler: profile) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return path.read_bytes()
