"""The interface of every sink, and a sink that writes to a file.

Watching never ends a run. A sink may raise anything: the Monitor then logs a warning and goes on. A `FileSink` also
loses nothing: what a full or unreachable disk refuses waits in memory until the disk takes it.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from common.command_line import one_line
from common.files import PatientFile
from pipeline.runtime.logs import logger

Scalars = dict[str, float]


class Sink:
    """A destination for scalars and, if it can show them, texts and histograms."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Record the scalars of one optimizer step."""

    def write_text(self, step: int, tag: str, markdown: str) -> None:
        """Record a text."""

    def write_histogram(self, step: int, tag: str, values: Tensor) -> None:
        """Record the distribution of values."""

    def close(self) -> None:
        """Flush, and release resources."""


class FileSink(Sink):
    """A sink that appends to a file, and says when the disk begins and when it ceases to refuse its reports.

    Args:
        name: of the file, as warnings call it.
        open_at: see `PatientFile`.
    """

    def __init__(self, name: str, open_at: Callable[[], Path]) -> None:
        self._name, self._file = name, PatientFile(open_at)
        self._refused_since: int | None = None  # the step of the first report that waits

    def append(self, step: int, data: bytes) -> None:
        """Append what reports `step`."""
        error = self._file.write(data)
        if error is not None and self._refused_since is None:
            self._refused_since = step
            logger.warning(
                "%s cannot be written after step %d: %s; its reports wait in memory, and each report tries again",
                self._name, step, one_line(error),
            )  # fmt: skip
        elif error is None and self._refused_since is not None:
            self._refused_since = None
            logger.warning("%s is written again after step %d; nothing is missing", self._name, step)

    def close(self) -> None:
        error = self._file.close()
        if error is not None:
            logger.warning(
                "%s lacks what was reported after step %s; it could not be written: %s",
                self._name, self._refused_since, one_line(error),
            )  # fmt: skip
