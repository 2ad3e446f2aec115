"""What people see of a run: console, TensorBoard and metrics.jsonl, and the figures in them.

All three show the same numbers under the same tags. Only rank 0 has sinks; on the other ranks a `Monitor`
takes part in the collectives and stays silent. Throughput counts training alone: validation and saving are
`paused`.
"""

import json
import logging
import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from common.files import PatientFile, write_text
from pipeline.architecture import parameter_count, recomputed_flops_per_token, training_flops_per_token
from pipeline.balance import describe
from pipeline.config import Config
from pipeline.distributed import World, logger
from pipeline.inputs import Inputs, zero_stage

Scalars = dict[str, float]
GIB = 2**30


class Sink(Protocol):
    """A place that scalars go to."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Record the scalars of one optimizer step."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


class TensorBoard:
    """Event files; after a resume, points beyond the resumed step are dropped."""

    def __init__(self, directory: Path, *, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._new_writer = lambda: SummaryWriter(str(directory), purge_step=resumed_step + 1, flush_secs=10)
        self._writer: SummaryWriter | None = self._new_writer()

    def write(self, step: int, scalars: Scalars) -> None:
        try:
            self._writer = self._writer or self._new_writer()
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, step)
        except OSError as error:  # it has lost what was on its way, and is of no more use
            logger.warning("TensorBoard misses what came before step %d (%s)", step, error)
            self._writer = None

    def close(self) -> None:
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()


class MetricsFile:
    """metrics.jsonl: one object per step; after a resume, lines beyond the resumed step are dropped."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= resumed_step]
        write_text(path, "".join(kept))
        self._file = PatientFile(path)

    def write(self, step: int, scalars: Scalars) -> None:
        tokens = {"tokens": int(scalars["progress/tokens"])} if "progress/tokens" in scalars else {}
        finite = {tag: value if math.isfinite(value) else None for tag, value in scalars.items()}  # JSON knows no NaN
        refused = self._file.write(json.dumps({"step": step, **tokens, **finite}) + "\n")
        if refused is not None:
            logger.warning("step %d waits to be written to metrics.jsonl (%s)", step, refused.strerror)

    def close(self) -> None:
        self._file.close()


class Console:
    """One tidy line per logged step, above a progress bar where stdout is a terminal."""

    def __init__(self, *, total_steps: int, resumed_step: int) -> None:
        self._total_steps = total_steps
        self._bar = tqdm(
            total=total_steps, initial=resumed_step, unit="step", file=sys.stdout, disable=None, leave=False
        )
        self._start_s, self._start_step = time.perf_counter(), resumed_step

    def write(self, step: int, scalars: Scalars) -> None:
        self._bar.update(step - self._bar.n)
        logger.info(_console_line(step, scalars, total_steps=self._total_steps, eta_s=self._eta_s(step)))

    def close(self) -> None:
        self._bar.close()

    def _eta_s(self, step: int) -> float:
        per_step_s = (time.perf_counter() - self._start_s) / max(1, step - self._start_step)
        return per_step_s * (self._total_steps - step)


class Monitor:
    """Turns a step's results into scalars and hands them to the sinks.

    peak_flops: of each rank's device (`pipeline.devices`); None shows no utilisation.
    """

    def __init__(
        self, config: Config, *, sinks: list[Sink], device: torch.device, step: int, peak_flops: float | None = None
    ) -> None:
        self._config, self._sinks, self._device, self._peak_flops = config, sinks, device, peak_flops
        self._step, self._wait_s, self._start_s = step, 0.0, time.perf_counter()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *error: object) -> None:
        for sink in self._sinks:
            sink.close()

    def log_step(
        self, step: int, *, losses_N: Tensor, learning_rate: float, gradient_norm: float, wait_s: float,
        skipped_steps: int, skipped_windows: int, times: Scalars,
    ) -> None:  # fmt: skip
        """Report one optimizer step.

        Args:
            step: 1-based.
            losses_N: mean loss of each head over all ranks, nats per token.
            learning_rate, gradient_norm: of this step, the norm before clipping.
            wait_s: seconds that the loop has waited for data since the run began, on the rank that waited longest.
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
            "data/wait_s": wait_s - self._wait_s,
            "progress/tokens": float(step * batch_tokens),
            "faults/skipped_steps": float(skipped_steps),
            "faults/skipped_windows": float(skipped_windows),
        }
        self._write(step, scalars)
        self._step, self._wait_s, self._start_s = step, wait_s, time.perf_counter()

    def log_validation(self, step: int, losses_N: Tensor) -> None:
        """Report the mean validation loss of each head, nats per token."""
        self._write(step, {f"val/loss_head_{head}": loss for head, loss in enumerate(losses_N.tolist(), start=1)})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep what happens inside (validation, saving) out of the throughput."""
        start_s = time.perf_counter()
        yield
        self._start_s += time.perf_counter() - start_s

    def _write(self, step: int, scalars: Scalars) -> None:
        for sink in self._sinks:
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


def sinks_for(config: Config, *, world: World, resumed_step: int) -> list[Sink]:
    """Return the sinks of this rank: all of them on rank 0, none elsewhere."""
    if not world.is_main:
        return []
    run_dir = config.run_dir
    return [
        Console(total_steps=config.total_steps, resumed_step=resumed_step),
        TensorBoard(run_dir / "tensorboard", resumed_step=resumed_step),
        MetricsFile(run_dir / "metrics.jsonl", resumed_step=resumed_step),
    ]


def header(inputs: Inputs, *, world: World, device: torch.device) -> str:
    """Return the lines that open a run: model, layout, batch arithmetic, and the stages of a pipeline."""
    config, parallel = inputs.config, inputs.config.parallel
    model, train, data = config.model, config.train, config.data
    accumulation_steps = config.accumulation_steps(inputs.data_ranks)
    heads = {"transformer": "one layer", "linear": "one matrix"}[model.head_type]
    order = "" if model.head_order == "parallel" else f", {model.head_order}"
    layout = f"{world.world_size} ranks on {device.type}, ZeRO-{zero_stage(inputs.deepspeed_config)}"
    if parallel.ranks_per_replica > 1:
        shared = "pipeline stages" if parallel.pipeline_stages > 1 else "ranks that share each sequence"
        layout += f", {inputs.data_ranks} replicas of {parallel.ranks_per_replica} {shared}"
    stages = "\n" + describe(config, micro_batches=accumulation_steps) if parallel.pipeline_stages > 1 else ""
    return (
        f"model    {parameter_count(model) / 1e6:,.1f}M parameters: {model.n_trunk_layers} trunk layers and "
        f"{model.n_future_tokens} heads of {heads}{order}, dim {model.dim}, vocabulary {model.vocab_size:,}\n"
        f"layout   {layout}\n"
        f"batch    {train.batch_tokens:,} tokens = {inputs.data_ranks} replicas x {accumulation_steps} micro batches x "
        f"{train.micro_batch_size} sequences x {data.seq_len} tokens\n"
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


def _console_line(step: int, scalars: Scalars, *, total_steps: int, eta_s: float) -> str:
    heads = [f"{value:.3f}" for tag, value in scalars.items() if "/head_" in tag or "/loss_head_" in tag]
    if "loss/total" not in scalars:
        return f"step {step}/{total_steps}  validation loss per head [{' '.join(heads)}]"
    mfu = f"  MFU {scalars['throughput/mfu']:.1%}" if "throughput/mfu" in scalars else ""
    return (
        f"step {step}/{total_steps}  tokens {scalars['progress/tokens'] / 1e6:,.2f}M"
        f"  loss {scalars['loss/total']:.3f} [{' '.join(heads)}]  lr {scalars['optim/lr']:.1e}"
        f"  grad {scalars['optim/grad_norm']:.2f}  {scalars['throughput/tokens_per_s']:,.0f} tok/s{mfu}"
        f"  mem {scalars['memory/peak_GiB']:.1f} GiB  wait {scalars['data/wait_s']:.2f}s"
        f"  ETA {timedelta(seconds=round(eta_s))}"
    )


def _whole_lines(path: Path) -> list[str]:
    """Return the lines of a file that a kill may have cut in the last one; none if there is no file."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
