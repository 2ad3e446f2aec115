"""Weights & Biases, if a recipe asks for it with `log.wandb`."""

import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.command_line import one_line
from common.files import write_text
from common.small_files import read_small_file
from pipeline.config.schema import Config
from pipeline.monitoring.sinks.sink import Scalars, Sink
from pipeline.runtime.logs import logger

ID_FILE = "wandb_id"
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


class WeightsAndBiases(Sink):
    """A run in Weights & Biases, which continues after a resume.

    wandb never takes back a step: the first values of steps that a resume or a rollback repeats stay. Its own variables
    (WANDB_MODE, WANDB_BASE_URL) say whether and where it uploads.
    """

    def __init__(self, config: Config) -> None:
        self._run: Any = None
        self._attempt(lambda: self._begin(config))

    def write(self, step: int, scalars: Scalars) -> None:
        self._attempt(lambda: self._run.log(scalars, step=step))

    def close(self) -> None:
        self._attempt(lambda: self._run.finish())

    def _begin(self, config: Config) -> None:
        import wandb

        self._run = wandb.init(
            project=config.log.wandb, name=config.run.name, id=run_id(config.run_dir), resume="allow",
            dir=str(config.run_dir), config=config.as_dict(),
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )  # fmt: skip

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # wandb may raise anything, and training does not depend on it
            logger.warning("wandb failed and gets nothing more until the run is started again: %s", one_line(error))
            self._attempt = lambda action: None  # type: ignore[method-assign]


def run_id(run_dir: Path) -> str:
    """Return the id under which wandb knows this run; a first start chooses it and writes it down.

    Raises:
        BadFileError, OSError: the file of the id cannot be read or written.
        ValueError: it does not hold an id.
    """
    path = run_dir / ID_FILE
    if not path.exists():
        write_text(path, uuid.uuid4().hex)
    text = read_small_file(path, most_bytes=100).decode(errors="replace").strip()
    if not _ID.fullmatch(text):
        raise ValueError(f"{path} holds {text!r}, which is not an id of wandb's; delete it to begin a new run there")
    return text
