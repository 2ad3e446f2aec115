"""Peak memory of one micro batch, forward and backward: n = 1, n heads one after the other, and their naive sum.

Counted, not estimated: the step runs on fake tensors, which have shapes but no memory, and every storage that an
operator returns is entered when it appears and struck out when it dies. So a 7B model needs no GPU. The operators are
those of torch on a CPU; attention is its flash kernel (checked), which, as on a GPU, keeps the output and one number
per row, never the T x T scores. `tests/unit/benchmarks/test_memory.py` holds the count of a small model against what
torch's profiler sees in the CPU allocator.

In a peak: weights; gradients, in the weights' dtype; logits, their log-probabilities, and the gradients of both; the
rest, activations and temporaries. A "later" micro batch finds the gradients of those before it in the same optimizer
step. Not in a peak: AdamW's state, which has a figure of its own, what is temporary inside one operator, the rounding
of a GPU's allocator, and DeepSpeed's buffers and partitions.
"""

import argparse
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from benchmarks.parts.harness import markdown
from benchmarks.parts.naive import NaiveModel
from benchmarks.parts.outputs import check_json
from common.command_line import command_parser, exit_on_user_error
from common.files import write_json
from pipeline.config.model import ModelConfig, resolve_model
from pipeline.model.formulas import parameter_count
from pipeline.model.network import MultiTokenModel

GIB = 2**30
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ADAMW_BYTES = {"fp32": 8, "bf16": 12}  # a parameter's two moments in fp32, and for bf16 its fp32 master copy
FLASH_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu.default"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One micro batch of one model.

    naive: the naive sum instead of the head-sequential loss.
    gradients_exist: a later micro batch of an optimizer step, instead of its first.
    """

    config: ModelConfig
    seq_len: int
    micro_batch: int = 1
    dtype: str = "bf16"
    naive: bool = False
    activation_checkpointing: bool = False
    gradients_exist: bool = False

    @property
    def logits_bytes(self) -> int:
        """One head's logits of the whole micro batch in fp32."""
        return 4 * self.micro_batch * self.seq_len * self.config.vocab_size

    @property
    def adamw_bytes(self) -> int:
        """The optimizer's state of the whole model."""
        return ADAMW_BYTES[self.dtype] * parameter_count(self.config)


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Bytes alive at the moment of the peak, by what they hold."""

    weights: int
    gradients: int
    logits: int
    rest: int

    @property
    def total(self) -> int:
        """Bytes of the peak."""
        return self.weights + self.gradients + self.logits + self.rest


@dataclass
class _Storage:
    n_bytes: int
    kind: str


class StorageLog(TorchDispatchMode):
    """Enters every storage that operators return while it is active, and when it dies.

    torch's own `MemTracker` counts the same way, but its hooks fail on `autograd.grad`, which our loss calls.
    """

    def __init__(self, *, vocab_size: int) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self._vocab_size = vocab_size
        self._alive: dict[int, _Storage] = {}
        self._events: list[tuple[int, _Storage]] = []

    def enter(self, tensor: Tensor, *, kind: str | None = None) -> None:
        """Enter the tensor's storage, or only say what an entered one holds."""
        storage = tensor.untyped_storage()
        entered = self._alive.get(storage._cdata)
        if entered is None:
            is_logits = tensor.dim() > 0 and tensor.shape[-1] == self._vocab_size
            entered = _Storage(storage.nbytes(), "logits" if is_logits else "rest")
            self._alive[storage._cdata] = entered
            self._events.append((1, entered))
            weakref.finalize(storage, self._strike_out, storage._cdata)
        if kind is not None:
            entered.kind = kind

    @property
    def n_events(self) -> int:
        """How often a storage has appeared or died so far."""
        return len(self._events)

    @property
    def alive_bytes(self) -> int:
        """Bytes of the storages that live now."""
        return sum(storage.n_bytes for storage in self._alive.values())

    def peak(self, *, since: int = 0) -> Peak:
        """Return what was alive when most bytes were; at the first such moment after `since` events."""
        n_bytes = most = 0
        n_events = 0
        for index, (sign, storage) in enumerate(self._events, start=1):
            n_bytes += sign * storage.n_bytes
            if index > since and n_bytes > most:
                most, n_events = n_bytes, index
        kinds = dict.fromkeys(("weights", "gradients", "logits", "rest"), 0)
        for sign, storage in self._events[:n_events]:
            kinds[storage.kind] += sign * storage.n_bytes
        return Peak(**kinds)

    def _strike_out(self, address: int) -> None:
        self._events.append((-1, self._alive.pop(address)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operators.add(func.__name__)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self.enter(leaf)
        return result


def counted_peak(step: Step) -> Peak:
    """Return the peak of `step`, counted on fake tensors.

    Raises:
        RuntimeError: attention took a kernel that may hold its T x T scores.
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
        raise RuntimeError(f"attention took another kernel than {FLASH_ATTENTION}: {sorted(log.operators)}")
    return log.peak()


def prepared(step: Step) -> tuple[MultiTokenModel, tuple[Tensor, Tensor]]:
    """Return the model, with gradients if the step finds any, and its batch (tokens, targets)."""
    model_type = NaiveModel if step.naive else MultiTokenModel
    usual_dtype = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[step.dtype])  # fake modules cannot be cast
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
# What the table compares, in micro batches of one sequence; n = 1 leads.
MODELS = {
    "7B, V = 32,000, T = 4,096": [
        Step(config=replace(SUBWORD_7B, n_future_tokens=n), seq_len=4096) for n in (1, 2, 4, 8)
    ],
    "7B bytes, V = 258, T = 8,192": [Step(config=replace(BYTE_7B, n_future_tokens=n), seq_len=8192) for n in (1, 8)],
}


def count_all() -> list[tuple[str, Step, Peak]]:
    """Return the peaks of `MODELS`, sequential and naive, with and without recomputation, first and later."""
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
    """Return the peaks as a Markdown table; every ratio is to the head-sequential n = 1 of the same kind."""
    rows = [["model", "checkpointing", "micro batch", "n", "sequential", "of n = 1", "naive", "of n = 1"]]
    base = 0
    for (name, step, peak), (_, _, naive) in zip(peaks[::2], peaks[1::2], strict=True):
        n = step.config.n_future_tokens
        base = peak.total if n == 1 else base
        kind = [name, "yes" if step.activation_checkpointing else "no", "later" if step.gradients_exist else "first"]
        figures = [text for x in (peak, naive) for text in (f"{x.total / GIB:.3f}", f"{x.total / base:.3f}")]
        rows.append([*kind, str(n), *figures])
    return markdown(rows)


def resident_lines() -> str:
    """Return what each model holds all the time, one line each; heads hardly change it, so that of the most heads."""
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


def main(argv: Sequence[str] | None = None) -> None:
    """Count, print the table, and write the JSON that was asked for.

    Raises:
        UserError: the JSON's folder does not exist.
    """
    arguments = _parse(argv)
    check_json(arguments.json)
    peaks = count_all()
    print(f"Peak memory of one micro batch of one sequence, bf16, GiB\n\n{peak_table(peaks)}\n\n{resident_lines()}")
    if arguments.json is not None:
        counted = [
            {"model": name, "step": asdict(step), "peak_bytes": peak.total, "at_peak_bytes": asdict(peak)}
            for name, step, peak in peaks
        ]
        write_json(arguments.json, {"torch": torch.__version__, "counted": counted})


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("benchmarks.memory", description=__doc__, epilog="Takes two minutes on one CPU core.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure, and what makes it up, here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.memory")
