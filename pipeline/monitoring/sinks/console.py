"""The console: rank 0's log lines above a progress bar, and one line per report."""

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta

from tqdm import tqdm

from pipeline.monitoring.sinks.sink import Scalars, Sink
from pipeline.runtime.logs import SafeFormatter, logger

TOKEN_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


class _AboveProgressBar(logging.Handler):
    """Prints records on stdout, above the progress bar; drops what stdout refuses, because train.log has it too."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # a full disk, a terminal that is gone, a closed stream
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()


def console_handler() -> logging.Handler:
    """Return the handler that prints rank 0's messages on stdout, without time or level."""
    handler = _AboveProgressBar()
    handler.setFormatter(SafeFormatter())
    return handler


class Console(Sink):
    """One line per report; above a progress bar if stdout is a terminal."""

    def __init__(self, *, total_steps: int, resumed_step: int) -> None:
        self._total_steps = total_steps
        self._bar = tqdm(
            total=total_steps, initial=resumed_step, unit="step", file=sys.stdout, disable=None, leave=False
        )
        self._start_s, self._start_step = time.perf_counter(), resumed_step

    def write(self, step: int, scalars: Scalars) -> None:
        with suppress(OSError, ValueError):
            self._bar.update(step - self._bar.n)
        line = console_line(scalars)
        if line:
            logger.info("step %*d/%d  %s%s", self._width, step, self._total_steps, line, self._eta(step, scalars))

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self._bar.close()

    @property
    def _width(self) -> int:
        return len(str(self._total_steps))

    def _eta(self, step: int, scalars: Scalars) -> str:
        if "loss/total" not in scalars:
            return ""
        per_step_s = (time.perf_counter() - self._start_s) / max(1, step - self._start_step)
        return f"  ETA {timedelta(seconds=round(per_step_s * (self._total_steps - step)))}"


def console_line(scalars: Mapping[str, float]) -> str:
    """Return the line for a report or a validation; an empty string for other scalars."""
    heads = [f"{value:.3f}" for tag, value in scalars.items() if tag.startswith(("loss/head_", "val/loss_head_"))]
    if "loss/total" not in scalars:
        return f"validation loss per head [{' '.join(heads)}]" if heads else ""
    mfu = f"  MFU {scalars['throughput/mfu']:.1%}" if "throughput/mfu" in scalars else ""
    return (
        f"tokens {_short(scalars['progress/tokens'])}"
        f"  loss {scalars['loss/total']:.3f} [{' '.join(heads)}]  lr {scalars['optim/lr']:.1e}"
        f"  grad {scalars['optim/grad_norm']:.2f}  {scalars['throughput/tokens_per_s']:,.0f} tok/s{mfu}"
        f"  mem {scalars['memory/peak_GiB']:.1f} GiB  wait {scalars['data/wait_s']:.2f}s"
    )


def _short(tokens: float) -> str:
    """Return a number of tokens in the short form that run names use: 4.10k, 1.02M, 200.01B."""
    unit, name = next((each for each in TOKEN_UNITS if tokens >= each[0]), (1.0, ""))
    return f"{tokens / unit:.2f}{name}"
