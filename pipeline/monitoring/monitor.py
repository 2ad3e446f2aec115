"""The figures of a run: what each step's results become, and the lines that open a run.

A `Monitor` hands them to its sinks (sinks.py). Only rank 0 has any; on the other ranks it takes part in the
collectives and stays silent. Throughput counts training alone: validation, previews and saving are `paused`.
"""

import logging
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from pipeline.config.inputs import Inputs, precision, zero_stage
from pipeline.config.schema import Config
from pipeline.model.formulas import parameter_count, recomputed_flops_per_token, training_flops_per_token
from pipeline.model.partition import describe
from pipeline.monitoring.sinks import Scalars, Sink
from pipeline.runtime.devices import peak_flops
from pipeline.runtime.world import World

GIB = 2**30
NO_GRADIENT = 1e-10  # the norm that rows without any are shown with, on a logarithmic scale


class Monitor:
    """Turns a step's results into scalars and hands them to the sinks.

    peak_flops: of each rank's device (`pipeline.runtime.devices`); None shows no utilisation.
    """

    def __init__(
        self, config: Config, *, sinks: list[Sink], device: torch.device, step: int, peak_flops: float | None = None
    ) -> None:
        self._config, self._sinks, self._device, self._peak_flops = config, sinks, device, peak_flops
        self._step, self._start_s = step, time.perf_counter()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *error: object) -> None:
        for sink in self._sinks:
            sink.close()

    def log_step(
        self, step: int, *, losses_N: Tensor, learning_rate: float, gradient_norm: float, skipped_steps: int,
        skipped_windows: int, times: Scalars,
    ) -> None:  # fmt: skip
        """Report one optimizer step.

        Args:
            step: 1-based.
            losses_N: mean loss of each head over all ranks, nats per token.
            learning_rate, gradient_norm: of this step, the norm before clipping.
            skipped_steps, skipped_windows: of the whole run, for gradients that were not finite and for bad shards.
            times: what `StepTimes.report` says, under its own tags.
        """
        batch_tokens = self._config.train.batch_tokens
        tokens_per_s = (step - self._step) * batch_tokens / (time.perf_counter() - self._start_s)
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
            "progress/tokens": float(step * batch_tokens),
            "faults/skipped_steps": float(skipped_steps),
            "faults/skipped_windows": float(skipped_windows),
        }
        self._write(step, scalars)
        self._step, self._start_s = step, time.perf_counter()

    def log_validation(self, step: int, losses_N: Tensor) -> None:
        """Report the mean validation loss of each head, nats per token."""
        self._write(step, {f"val/loss_head_{head}": loss for head, loss in enumerate(losses_N.tolist(), start=1)})

    def log_grad_norms(self, step: int, norms: Mapping[str, Tensor]) -> None:
        """Report the L2 norm of each block's gradient before clipping, and how its rows' are distributed, log10.

        Args:
            step: 1-based.
            norms: by block, that of each row of its weights (R,), fp32; nothing where there are none.
        """
        self._write(step, {f"grad_norms/{block}": float(rows_R.norm()) for block, rows_R in norms.items()})
        for sink in self._sinks:
            for block, rows_R in norms.items():
                sink.write_histogram(step, f"grad_norms_log10/{block}", rows_R.clamp(min=NO_GRADIENT).log10())

    def log_text(self, step: int, tag: str, markdown: str) -> None:
        """Report a text."""
        for sink in self._sinks:
            sink.write_text(step, tag, markdown)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep what happens inside (validation, saving) out of the throughput."""
        start_s = time.perf_counter()
        yield
        self._start_s += time.perf_counter() - start_s

    def _write(self, step: int, scalars: Scalars) -> None:
        for sink in self._sinks if scalars else ():
            sink.write(step, scalars)

    def _utilisation(self, tokens_per_s: float) -> Scalars:
        """Return model and hardware FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B), if the peak is known."""
        if self._peak_flops is None:
            return {}
        model, seq_len = self._config.model, self._config.data.seq_len
        flops = training_flops_per_token(model, seq_len=seq_len)
        again = recomputed_flops_per_token(model, seq_len=seq_len) if self._config.train.activation_checkpointing else 0
        per_flop = tokens_per_s / (self._peak_flops * dist.get_world_size())
        return {"throughput/mfu": flops * per_flop, "throughput/hfu": (flops + again) * per_flop}


def is_due(step: int, *, every_steps: int) -> bool:
    """Return whether something comes after `step` that comes every so many steps, or, for 0, never."""
    return every_steps > 0 and step % every_steps == 0


def header(inputs: Inputs, *, world: World, device: torch.device) -> str:
    """Return the lines that open a run: model, layout, batch arithmetic, and the stages of a pipeline."""
    config, parallel = inputs.config, inputs.config.parallel
    model, train, data = config.model, config.train, config.data
    accumulation_steps = config.accumulation_steps(inputs.data_ranks)
    made_of = {"transformer": "one layer", "linear": "one matrix"}[model.head_type]
    heads = f"{model.n_future_tokens} {'head' if model.n_future_tokens == 1 else 'heads'} of {made_of}"
    order = "" if model.head_order == "parallel" else f", {model.head_order}"
    layout = f"{world.world_size} ranks on {device.type}, ZeRO-{zero_stage(inputs.deepspeed_config)}"
    if parallel.ranks_per_replica > 1:
        shared = "pipeline stages" if parallel.pipeline_stages > 1 else "ranks that share each sequence"
        layout += f", {inputs.data_ranks} replicas of {parallel.ranks_per_replica} {shared}"
    stages = "\n" + describe(config, micro_batches=accumulation_steps) if parallel.pipeline_stages > 1 else ""
    return (
        f"model    {parameter_count(model) / 1e6:,.1f}M parameters: {model.n_trunk_layers} trunk layers and "
        f"{heads}{order}, dim {model.dim}, vocabulary {model.vocab_size:,}\n"
        f"layout   {layout}\n"
        f"batch    {train.batch_tokens:,} tokens = {inputs.data_ranks} replicas x {accumulation_steps} micro batches x "
        f"{train.micro_batch_size} sequences x {data.seq_len} tokens\n"
        f"cost     {_cost(inputs, world=world, device=device)}\n"
        f"budget   {train.total_tokens:,} tokens = {config.total_steps:,} steps\n"
        f"watch    tensorboard --logdir {config.run_dir / 'tensorboard'}{stages}"
    )


class _AboveProgressBar(logging.Handler):
    """Prints records on stdout without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def console_handler() -> logging.Handler:
    """Return the handler of what rank 0 says on stdout: the bare message."""
    return _AboveProgressBar()


def environment() -> dict[str, Any]:
    """Return what a result depends on besides the config: versions and git commit. No variables, no host."""
    packages = ("torch", "deepspeed", "mosaicml-streaming", "numpy", "sentencepiece")
    return {
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in packages},
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "git_commit": _git_commit(),
    }


def device_name(device: torch.device) -> str:
    """Return what the driver calls the device; "cpu" for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of the device's allocator, or of this process's resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cost(inputs: Inputs, *, world: World, device: torch.device) -> str:
    """Say what one optimizer step costs, and how long it takes at least."""
    config = inputs.config
    peak = peak_flops(device_name(device), precision=precision(inputs.deepspeed_config))
    per_token = training_flops_per_token(config.model, seq_len=config.data.seq_len)
    flops = per_token * config.train.batch_tokens
    seconds = "" if peak is None else f", {flops / (peak * world.world_size):.3g} s at the peak of the devices"
    return f"{flops:.3g} FLOPs a step = {per_token:.3g} a token{seconds}"


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
