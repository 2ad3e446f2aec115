"""The console's text: rank 0's log lines above the progress bar, and one line per report."""

import logging
import sys
from collections.abc import Mapping

from tqdm import tqdm

from pipeline.runtime.logs import SafeFormatter

TOKEN_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


class _AboveProgressBar(logging.Handler):
    """Prints records on stdout, above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def console_handler() -> logging.Handler:
    """Return the handler that prints rank 0's messages on stdout, without time or level."""
    handler = _AboveProgressBar()
    handler.setFormatter(SafeFormatter())
    return handler


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
