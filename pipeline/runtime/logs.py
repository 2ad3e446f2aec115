"""Logging: our logger, its handlers, and a log for each rank, which exists only if something went wrong on it.

    runs/<name>/ranks/rank_00003.log    warnings and errors of any library, and the traceback that ended the rank

Only rank 0 writes to the console, because the output of thousands of ranks would be unreadable. The warnings of the
others would be lost without their own files. Tracebacks go to both. Every line has its time, rank and host. Handlers
use `SafeFormatter`, because messages hold names and texts that others chose.
"""

import io
import logging
import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from common.wording import for_terminal
from pipeline.runtime.world import World

logger = logging.getLogger("pipeline")
_LIBRARIES = ("", "DeepSpeed")  # the root logger, and one that does not propagate to it


def configure_logging(world: World, *, handlers: Iterable[logging.Handler]) -> None:
    """Send our log records to `handlers`: everything on rank 0, only warnings and errors on the others."""
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if world.is_main else logging.WARNING)
    for handler in handlers:
        logger.addHandler(handler)


class SafeFormatter(logging.Formatter):
    """Formats records so that a terminal shows them and obeys nothing in them."""

    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record))


class LogFile(logging.FileHandler):
    """Appends records to a file that the first record opens, and drops those that the disk refuses.

    Neither a full disk nor a folder or FIFO of this name ends, spams or stops a run.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Append the record, or drop it."""
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Drop the record."""

    def _open(self) -> io.TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        return open(os.open(self.baseFilename, flags, 0o666), "a", encoding=self.encoding, errors=self.errors)


def log_file_handler(path: Path) -> logging.Handler:
    """Return a handler that appends lines with date and level to `path`."""
    handler = LogFile(path)
    handler.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


def keep_rank_log(directory: Path, *, world: World) -> logging.Handler:
    """Record this process's warnings and uncaught exceptions from now on; return the handler, for `configure_logging`.

    What the disk refuses is dropped, and so are warnings as long as the folder does not exist. An exception creates it.
    """
    path = directory / f"rank_{world.rank:05d}.log"
    handler = LogFile(path)
    place = f"[rank {world.rank} on {socket.gethostname()}]"
    handler.setFormatter(SafeFormatter(f"%(asctime)s {place} %(levelname)s %(message)s"))
    handler.setLevel(logging.WARNING)
    for name in _LIBRARIES:
        logging.getLogger(name).addHandler(handler)
    if world.is_main and logging.lastResort is not None:  # a root logger with handlers stops writing to stderr
        logging.getLogger().addHandler(logging.lastResort)
    _record_warnings(handler, to_stderr=world.is_main)
    _record_exceptions(handler, directory=directory)
    return handler


def _record_warnings(handler: logging.Handler, *, to_stderr: bool) -> None:
    show = warnings.showwarning

    def record(message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: object) -> None:
        handler.handle(_record(logging.WARNING, f"{filename}:{lineno}: {category.__name__}: {message}"))
        if to_stderr:
            show(message, category, filename, lineno)

    warnings.showwarning = record  # type: ignore[assignment]


def _record_exceptions(handler: logging.Handler, *, directory: Path) -> None:
    show, show_of_thread = sys.excepthook, threading.excepthook

    def record(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        with suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
        handler.handle(_record(logging.CRITICAL, "died", exception=error))
        show(kind, error, traceback)

    def record_of_thread(details: threading.ExceptHookArgs) -> None:
        name = details.thread.name if details.thread else "unknown"
        handler.handle(_record(logging.ERROR, f"thread {name} died", exception=details.exc_value))
        show_of_thread(details)

    sys.excepthook, threading.excepthook = record, record_of_thread


def _record(level: int, message: str, *, exception: BaseException | None = None) -> logging.LogRecord:
    about = None if exception is None else (type(exception), exception, exception.__traceback__)
    return logging.LogRecord("pipeline", level, __file__, 0, message, None, about)
