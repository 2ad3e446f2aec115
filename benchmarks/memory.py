"""Peak memory of one micro batch, forward and backward: n = 1, n heads in sequence, and the naive sum of n heads.

    python -m benchmarks.memory [--json FILE]

The peak is counted, not estimated. The step runs on fake tensors, which have shapes but no memory, and a log records
every storage that an operator returns until it dies. So a 7B model needs no GPU. The operators are those of torch on a
CPU. Attention uses the flash kernel (this is checked), which, as on a GPU, keeps the output and one number per row,
never the T x T scores. `tests/unit/benchmarks/test_memory.py` compares the count for a small model with the CPU
allocator, as torch's profiler records it.

A peak includes the weights; the gradients, in the weights' dtype; the logits, their log-probabilities, and the
gradients of both; and the rest, which is activations and temporaries. A "later" micro batch finds the gradients of
earlier ones of the same optimizer step. A peak does not include AdamW's state, which has a figure of its own,
temporaries inside one operator, the rounding of a GPU's allocator, and DeepSpeed's buffers and partitions.
"""

from common.endings import exit_on_user_error

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm

from benchmarks.parts.harness import benchmark_parser, markdown, run_benchmark
from benchmarks.parts.naive import NaiveModel
from benchmarks.parts.storage_log import Peak, StorageLog
from pipeline.config.model import ModelConfig, resolve_model
from pipeline.model.formulas import parameter_count
from pipeline.model.network import MultiTokenModel

GIB = 2**30
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ADAMW_BYTES = {"fp32": 8, "bf16": 12}  # of a parameter: two moments in fp32, and for bf16 an fp32 master copy
FLASH_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu.default"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One micro batch of one model."""

    config: ModelConfig
    seq_len: int
    micro_batch: int = 1
    dtype: str = "bf16"
    naive: bool = False
    """Use the naive sum instead of the head-sequential loss."""
    activation_checkpointing: bool = False
    gradients_exist: bool = False
    """Whether it is a later micro batch of an optimizer step, not its first."""

    @property
    def logits_bytes(self) -> int:
        """The bytes of one head's logits for the whole micro batch, in fp32."""
        return 4 * self.micro_batch * self.seq_len * self.config.vocab_size

    @property
    def adamw_bytes(self) -> int:
        """The bytes of the optimizer state of the whole model."""
        return ADAMW_BYTES[self.dtype] * parameter_count(self.config)


def counted_peak(step: Step) -> Peak:
    """Return the peak of `step`, counted on fake tensors.

    Raises:
        RuntimeError: attention used a kernel that may hold the T x T scores.
    """
    with FakeTensorMode():
        model, batch = prepared(step)
        log = StorageLog(vocab_size=step.config.vocab_size)
        for parameter in model.parameters():
            log.enter(parameter, kind="weights")
            if parameter.grad is not None:
                log.enter(parameter.grad, kind="gradients")
            parameter.register_hook(lambda gradient: log.enter(gradient, kind="gradients"))
        for tensor in batch:
            log.enter(tensor)
        with log:
            loss, _ = model(*batch)
            loss.backward()
    if FLASH_ATTENTION not in log.operators:
        raise RuntimeError(f"attention used another kernel than {FLASH_ATTENTION}: {sorted(log.operators)}")
    return log.peak()


def prepared(step: Step) -> tuple[MultiTokenModel, tuple[Tensor, Tensor]]:
    """Return the model, with gradients if the step finds any, and its batch: tokens (B, T) and targets (B, T, N)."""
    model_type = NaiveModel if step.naive else MultiTokenModel
    usual_dtype = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[step.dtype])  # modules of fake tensors cannot be cast afterwards
    try:
        model = model_type(step.config, activation_checkpointing=step.activation_checkpointing)
    finally:
        torch.set_default_dtype(usual_dtype)
    if step.gradients_exist:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    tokens_BT = torch.zeros(step.micro_batch, step.seq_len, dtype=torch.int64)
    return model, (tokens_BT, torch.zeros(*tokens_BT.shape, step.config.n_future_tokens, dtype=torch.int64))


SUBWORD_7B = resolve_model(ModelConfig(size="7B", vocab_size=32_000))
BYTE_7B = resolve_model(ModelConfig(size="7B", vocab_size=258, replicated_unembedding=True))  # paper, Table S13
# The models of the table, with micro batches of one sequence; n = 1 comes first.
MODELS = {
    "7B, V = 32,000, T = 4,096": [
        Step(config=replace(SUBWORD_7B, n_future_tokens=n), seq_len=4096) for n in (1, 2, 4, 8)
    ],
    "7B bytes, V = 258, T = 8,192": [Step(config=replace(BYTE_7B, n_future_tokens=n), seq_len=8192) for n in (1, 8)],
}


def count_all() -> list[tuple[str, Step, Peak]]:
    """Return the peaks of `MODELS`: sequential and naive, with and without recomputation, first and later."""
    variants = [
        (name, replace(step, activation_checkpointing=recompute, gradients_exist=later, naive=naive))
        for name, steps in MODELS.items()
        for recompute in (False, True)
        for later in (False, True)
        for step in steps
        for naive in (False, True)
    ]
    return [(name, step, counted_peak(step)) for name, step in tqdm(variants, desc="counting", leave=False)]


def peak_table(peaks: Sequence[tuple[str, Step, Peak]]) -> str:
    """Return the peaks as a Markdown table; every ratio is to head-sequential n = 1 of the same kind."""
    rows = [["model", "checkpointing", "micro batch", "n", "sequential", "over n = 1", "naive", "over n = 1"]]
    base = 0
    for (name, step, peak), (_, _, naive) in zip(peaks[::2], peaks[1::2], strict=True):
        n = step.config.n_future_tokens
        base = peak.total if n == 1 else base
        kind = [name, "yes" if step.activation_checkpointing else "no", "later" if step.gradients_exist else "first"]
        figures = [text for x in (peak, naive) for text in (f"{x.total / GIB:.3f}", f"{x.total / base:.3f}")]
        rows.append([*kind, str(n), *figures])
    return markdown(rows)


def resident_lines() -> str:
    """Return what each model holds throughout training, one line each, for its largest number of heads.

    The number of heads hardly changes it.
    """
    lines = []
    for name, steps in MODELS.items():
        step, parameters = steps[-1], parameter_count(steps[-1].config)
        sizes = (parameters * DTYPES[step.dtype].itemsize, step.adamw_bytes, step.logits_bytes)
        weights, adamw, logits = (f"{size / GIB:.3f}" for size in sizes)
        lines.append(
            f"{name}, n = {step.config.n_future_tokens}: {parameters:,} parameters; weights {weights}, gradients "
            f"{weights}, AdamW's state {adamw} (not in a peak); one head's logits in fp32 {logits}"
        )
    return "\n".join(lines)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Count every peak, print the table, and return the figures."""
    peaks = count_all()
    print(f"Peak memory of one micro batch of one sequence, bf16, GiB\n\n{peak_table(peaks)}\n\n{resident_lines()}")
    counted = [
        {"model": name, "step": asdict(step), "peak_bytes": peak.total, "at_peak_bytes": asdict(peak)}
        for name, step, peak in peaks
    ]
    return {"torch": torch.__version__, "counted": counted}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    epilog = "Takes two minutes on one CPU core."
    run_benchmark(benchmark_parser("benchmarks.memory", description=__doc__, epilog=epilog), measure, argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.memory")
