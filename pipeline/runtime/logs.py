"""Each rank's own record of what went wrong on it, in a file that exists only if something did.

    runs/<name>/ranks/rank_00003.log    warnings and errors of any library, and the traceback that ended the rank

Rank 0 alone speaks on the console. What another rank has to say would otherwise be lost, or lie among the output of
thousands; a traceback goes to both. Every line has its time, its rank and its host.
"""

import logging
import socket
import sys
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from pipeline.runtime.world import World

logger = logging.getLogger("pipeline")
_LIBRARIES = ("", "DeepSpeed")  # loggers: the root, and one that keeps its records from it


def configure_logging(world: World, *, handlers: Iterable[logging.Handler]) -> None:
    """Let this rank log to `handlers`: rank 0 everything, the others only warnings."""
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if world.is_main else logging.WARNING)
    for handler in handlers:
        logger.addHandler(handler)


class LogFile(logging.FileHandler):
    """Appends to a file what its disk takes."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Leave out what a full disk refuses."""


def log_file_handler(path: Path) -> logging.Handler:
    """Return a handler that appends dated lines to `path`."""
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


def keep_rank_log(directory: Path, *, world: World) -> logging.Handler:
    """Record this process's warnings and uncaught exceptions from now on; return the handler, for our own logger.

    Where the disk refuses, nothing is recorded, and nothing else happens.
    """
    path = directory / f"rank_{world.rank:05d}.log"
    handler = LogFile(path, encoding="utf-8", delay=True, errors="backslashreplace")
    place = f"[rank {world.rank} on {socket.gethostname()}]"
    handler.setFormatter(logging.Formatter(f"%(asctime)s {place} %(levelname)s %(message)s"))
    handler.setLevel(logging.WARNING)
    for name in _LIBRARIES:
        logging.getLogger(name).addHandler(handler)
    if world.is_main and logging.lastResort is not None:  # with a handler, the root would say no more on stderr
        logging.getLogger().addHandler(logging.lastResort)
    _record_warnings(handler, speaks=world.is_main)
    _record_exceptions(handler)
    return handler


def _record_warnings(handler: logging.Handler, *, speaks: bool) -> None:
    show = warnings.showwarning

    def record(message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: object) -> None:
        handler.handle(_record(logging.WARNING, f"{filename}:{lineno}: {category.__name__}: {message}"))
        if speaks:
            show(message, category, filename, lineno)

    warnings.showwarning = record  # type: ignore[assignment]


def _record_exceptions(handler: logging.Handler) -> None:
    show, show_of_thread = sys.excepthook, threading.excepthook

    def record(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
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
