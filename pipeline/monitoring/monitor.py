"""The Monitor turns the results of each step into scalars, and hands them to its sinks (sinks/).

Only rank 0 has sinks; on the other ranks a Monitor does nothing. Whatever goes wrong in a sink is a warning, and never
ends a run. Throughput counts training alone: validation, previews and checkpoints run while the Monitor is `paused`.
"""

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config.model import ModelConfig
from pipeline.config.schema import TrainConfig
from pipeline.model.formulas import recomputed_flops_per_token, training_flops_per_token
from pipeline.monitoring.sinks.sink import Scalars, Sink
from pipeline.runtime.logs import logger

GIB = 2**30
NO_GRADIENT = 1e-10  # shown as the norm of rows without a gradient, because a logarithmic scale has no 0


class Monitor:
    """Turns a step's results into scalars and hands them to the sinks.

    Args:
        train: the recipe's section.
        model: the recipe's section.
        seq_len: tokens per sequence.
        sinks: where the scalars go; empty on every rank but 0.
        device: this rank's device.
        step: the last step that was already taken; 0 in a new run.
        peak_flops: peak of each rank's device in FLOP/s (`pipeline.runtime.devices`); None reports no utilisation.
    """

    def __init__(
        self, train: TrainConfig, *, model: ModelConfig, seq_len: int, sinks: list[Sink], device: torch.device,
        step: int, peak_flops: float | None = None,
    ) -> None:  # fmt: skip
        self._batch_tokens, self._sinks, self._device, self._peak_flops = train.batch_tokens, sinks, device, peak_flops
        self._model_flops = training_flops_per_token(model, seq_len=seq_len)
        recomputed_flops = recomputed_flops_per_token(model, seq_len=seq_len) if train.activation_checkpointing else 0
        self._hardware_flops = self._model_flops + recomputed_flops
        self._step, self._start_s = step, time.perf_counter()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *error: object) -> None:
        for sink in self._sinks:
            with _harmless(sink):
                sink.close()

    def log_step(
        self, step: int, *, losses_N: Tensor, learning_rate: float, gradient_norm: float, skipped_steps: int,
        skipped_windows: int, times: Scalars,
    ) -> None:  # fmt: skip
        """Report one optimizer step.

        Args:
            step: 1-based.
            losses_N: mean loss of each head over all ranks, nats per token.
            learning_rate: of this step.
            gradient_norm: L2 norm before clipping.
            skipped_steps: steps of the whole run that were skipped because their gradients were not finite.
            skipped_windows: windows of the whole run that were skipped because their shards were damaged.
            times: the scalars of `StepTimes.take_scalars`, with their tags.
        """
        tokens_per_s = (step - self._step) * self._batch_tokens / (time.perf_counter() - self._start_s)
        losses = losses_N.tolist()
        scalars = {
            "loss/total": sum(losses),
            **{f"loss/head_{head}": loss for head, loss in enumerate(losses, start=1)},
            "optim/lr": learning_rate,
            "optim/grad_norm": gradient_norm,
            "throughput/tokens_per_s": tokens_per_s,
            **self._utilisation(tokens_per_s),
            "memory/peak_GiB": peak_memory_bytes(self._device) / GIB,
            **times,
            "progress/tokens": float(step * self._batch_tokens),
            "faults/skipped_steps": float(skipped_steps),
            "faults/skipped_windows": float(skipped_windows),
        }
        self._write(step, scalars)
        self._step, self._start_s = step, time.perf_counter()

    def log_validation(self, step: int, losses_N: Tensor) -> None:
        """Report the mean validation loss of each head, nats per token."""
        self._write(step, {f"val/loss_head_{head}": loss for head, loss in enumerate(losses_N.tolist(), start=1)})

    def log_grad_norms(self, step: int, norms: Mapping[str, Tensor]) -> None:
        """Report the gradient's L2 norm in each block before clipping, and a histogram of its rows' norms (log10).

        Args:
            step: 1-based.
            norms: for each block, the gradient norm of each row of its weights (R,), fp32; if empty, nothing is
                reported.
        """
        self._write(step, {f"grad_norms/{block}": float(rows_R.norm()) for block, rows_R in norms.items()})
        for block, rows_R in norms.items():
            tag, log_norms_R = f"grad_norms_log10/{block}", rows_R.clamp(min=NO_GRADIENT).log10()
            for sink in self._sinks:
                with _harmless(sink):
                    sink.write_histogram(step, tag, log_norms_R)

    def log_text(self, step: int, tag: str, markdown: str) -> None:
        """Report a text."""
        for sink in self._sinks:
            with _harmless(sink):
                sink.write_text(step, tag, markdown)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside (validation, checkpoints) from the throughput."""
        start_s = time.perf_counter()
        yield
        self._start_s += time.perf_counter() - start_s

    def _write(self, step: int, scalars: Scalars) -> None:
        for sink in self._sinks if scalars else ():
            with _harmless(sink):
                sink.write(step, scalars)

    def _utilisation(self, tokens_per_s: float) -> Scalars:
        """Return model and hardware FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B) if the peak is known."""
        if self._peak_flops is None:
            return {}
        per_flop = tokens_per_s / (self._peak_flops * dist.get_world_size())
        return {"throughput/mfu": self._model_flops * per_flop, "throughput/hfu": self._hardware_flops * per_flop}


@contextmanager
def _harmless(sink: Sink) -> Iterator[None]:
    """Turn whatever goes wrong in a sink into a warning: what only watches a run never ends it."""
    try:
        yield
    except Exception:
        logger.warning("a report to %s failed; training goes on", type(sink).__name__, exc_info=True)


def is_due(step: int, *, every_steps: int) -> bool:
    """Return whether something that happens every `every_steps` steps happens after `step`; for 0 it never does."""
    return every_steps > 0 and step % every_steps == 0


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of the device's allocator; on the CPU, the peak resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
