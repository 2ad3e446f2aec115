"""Event files for TensorBoard: scalars, texts, histograms, and what dashboard.py adds to them."""

from typing import Any

from torch import Tensor

from pipeline.config.schema import Config
from pipeline.monitoring.sinks import dashboard
from pipeline.monitoring.sinks.event_files import beginning, foreign_files, new_event_file, record
from pipeline.monitoring.sinks.sink import FileSink, Scalars
from pipeline.runtime.logs import logger

HISTOGRAM_BINS = 60  # TensorBoard itself draws 30
MOST_NAMED = 5


class TensorBoard(FileSink):
    """The event file of one start of a run. TensorBoard drops what earlier files hold beyond the resumed step.

    Each report is written at once. A kill right after a checkpoint then loses no points of the steps before it, which
    the next start does not repeat.
    """

    def __init__(self, config: Config, *, resumed_step: int) -> None:
        self._config, self._folder = config, config.run_dir / "tensorboard"
        super().__init__("TensorBoard's event file", lambda: new_event_file(self._folder))
        self._last_step = resumed_step
        self.append(resumed_step, b"".join(map(record, beginning(resumed_step + 1))))
        self._begin(resumed_step + 1)
        self._warn_of_foreign_files()

    def write(self, step: int, scalars: Scalars) -> None:
        from torch.utils.tensorboard.summary import scalar

        self._last_step = step
        self._add(step, *(scalar(tag, value) for tag, value in scalars.items()))

    def write_text(self, step: int, tag: str, markdown: str) -> None:
        from torch.utils.tensorboard.summary import text

        self._add(step, text(tag, markdown))

    def write_histogram(self, step: int, tag: str, values: Tensor) -> None:
        from torch.utils.tensorboard.summary import histogram

        if values.isfinite().all():  # other values fit into no bin
            self._add(step, histogram(tag, values, HISTOGRAM_BINS))

    def close(self) -> None:
        if self._last_step == self._config.total_steps:
            self._add(self._last_step, dashboard.end_of_session())
        super().close()

    def _begin(self, first_step: int) -> None:
        """Write what the dashboard shows besides curves."""
        from torch.utils.tensorboard.summary import custom_scalars

        self._add(0, custom_scalars(dashboard.layout(self._config.log)), *dashboard.hyperparameters(self._config))
        # At the first step that it is valid for: a later start that repeats this step then replaces it.
        self.write_text(first_step, "config", dashboard.config_text(self._config))

    def _add(self, step: int, *summaries: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self.append(step, b"".join(record(Event(step=step, summary=summary)) for summary in summaries))

    def _warn_of_foreign_files(self) -> None:
        names = foreign_files(self._folder)
        if names:
            logger.warning(
                "TensorBoard takes %s in %s for a part of this run, and may show its points in place of the run's own;"
                " move it elsewhere",
                ", ".join(names[:MOST_NAMED]) + (" and others" if len(names) > MOST_NAMED else ""), self._folder,
            )  # fmt: skip
