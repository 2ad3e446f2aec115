"""Times and peak memory of whole training steps: many models take turns in one process group.

Every case trains under the real DeepSpeed engine on one micro batch of random tokens per step, including the
optimizer's update. First, the memory of each case is measured alone in its second step: the peak of torch's allocator,
minus what was allocated before the engine was built; on the CPU, torch's profiler records it. Then all cases step in
turns (`rounds.in_turns`). The time of a step is that of the slowest rank.
"""

import gc
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.parts.harness import REPOSITORY
from benchmarks.parts.ranks import on_ranks
from benchmarks.parts.rounds import in_turns
from pipeline.config.deepspeed import Precision, fill_deepspeed_config, load_deepspeed_config, precision
from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, OptimConfig, TrainConfig
from pipeline.model.formulas import parameter_count, training_flops

Way = Literal["sequential", "naive", "transformers", "liger", "lingua"]
MEASURED_STEP = "the measured step"
BUCKETS = {"reduce_bucket_size", "stage3_prefetch_bucket_size"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model, and how it is trained."""

    way: Way = "sequential"
    """Our head-sequential loss, the naive sum of the same model (naive.py), or a peer (peers.py)."""
    n_future_tokens: int = 1
    linear_heads: bool = False
    """Whether each head is one matrix with its own unembedding, as in lingua."""
    dim: int
    n_layers: int
    n_heads: int
    vocab_size: int
    seq_len: int
    micro_batch_size: int
    activation_checkpointing: bool = False
    compile: bool = False
    json: str = "zero1_fp32"
    """Name of a file of ds_configs/."""

    @property
    def name(self) -> str:
        """The name of the case in tables and reports."""
        linear = ", linear heads" if self.linear_heads and self.way != "lingua" else ""
        compiled = ", compiled" if self.compile else ""
        return f"{self.way}{linear}{compiled}, n = {self.n_future_tokens}"

    @property
    def model(self) -> ModelConfig:
        """The shape of the model."""
        return ModelConfig(
            dim=self.dim,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            vocab_size=self.vocab_size,
            n_future_tokens=self.n_future_tokens,
            head_type="linear" if self.linear_heads else "transformer",
            replicated_unembedding=self.linear_heads,
        )

    @property
    def flops_per_token(self) -> int:
        """Model FLOPs, forward and backward, without recomputation. Lingua's heads are unembeddings only."""
        flops = training_flops(self.model, seq_len=self.seq_len)
        return flops.total - (flops.heads if self.way == "lingua" else 0)

    @property
    def precision(self) -> Precision:
        """The precision of matrix products."""
        return precision(self._values)

    @property
    def _values(self) -> dict[str, Any]:
        return load_deepspeed_config(REPOSITORY / "ds_configs" / f"{self.json}.json")

    def config(self, *, ranks: int) -> Config:
        """Return the recipe, with one micro batch per rank and step."""
        return Config(
            model=self.model,
            data=DataConfig(seq_len=self.seq_len),
            train=TrainConfig(
                total_tokens=10**9,
                batch_tokens=ranks * self.micro_batch_size * self.seq_len,
                micro_batch_size=self.micro_batch_size,
                activation_checkpointing=self.activation_checkpointing,
                compile=self.compile,
            ),
            optim=OptimConfig(lr=1e-4),
        )

    def deepspeed_config(self, *, ranks: int) -> dict[str, Any]:
        """Return the filled DeepSpeed JSON. Buckets are at most an eighth of the model, so that they do not hide it."""
        values = self._values
        zero = values["zero_optimization"]
        for limit in BUCKETS & zero.keys():
            zero[limit] = min(zero[limit], parameter_count(self.model) // 8)
        filled, problems = fill_deepspeed_config(values, self.config(ranks=ranks), data_ranks=ranks)
        assert not problems, problems
        return filled


@dataclass(frozen=True, kw_only=True)
class CaseTimes:
    """The step times of a case, and its memory on the rank with the most."""

    case: Case
    seconds: list[float]
    """Of each measured step, on the slowest rank."""
    peak_bytes: int
    """The peak within a step."""
    resident_bytes: int
    """Held between steps: weights, optimizer state, buffers."""


def time_steps(
    cases: Sequence[Case], *, ranks: int, threads: int, warm_up: int, repeats: int, **variables: str
) -> tuple[list[CaseTimes], str]:
    """Measure all cases in one process group; return their times and the device's name."""
    task = {"cases": [asdict(case) for case in cases], "warm_up": warm_up, "repeats": repeats}
    found = on_ranks(steps_on_rank, task, ranks=ranks, threads=threads, **variables)
    measured = [
        CaseTimes(case=case, seconds=seconds, peak_bytes=peak, resident_bytes=resident)
        for case, seconds, (peak, resident) in zip(cases, found["seconds"], found["bytes"], strict=True)
    ]
    return measured, found["device"]


def steps_on_rank(task: dict[str, Any]) -> dict[str, Any]:
    """Measure all cases as one of the ranks; return the times of the slowest rank, and the bytes of the fullest."""
    import torch

    from pipeline.monitoring.environment import device_name
    from pipeline.runtime.collectives import from_every_rank
    from pipeline.runtime.world import world_from_environment
    from pipeline.training.process_group import process_group

    cases, world = [Case(**values) for values in task["cases"]], world_from_environment()
    with process_group(world) as device:
        ready = [_prepare(case, ranks=world.world_size, device=device) for case in cases]
        steps = {str(index): _timed(step, device) for index, (step, _) in enumerate(ready)}
        own_s = in_turns(steps, warm_up=task["warm_up"], repeats=task["repeats"])
        of_ranks = from_every_rank([list(own_s.values()), [n_bytes for _, n_bytes in ready]])
        name = device_name(device)
        del ready, steps
    seconds = [_slowest(times_of_ranks) for times_of_ranks in zip(*(times for times, _ in of_ranks), strict=True)]
    n_bytes = [max(of_case) for of_case in zip(*(of_rank for _, of_rank in of_ranks), strict=True)]
    return {"seconds": seconds, "bytes": n_bytes, "device": name, "torch": torch.__version__}


def _slowest(times_of_ranks: Sequence[Sequence[float]]) -> list[float]:
    return [max(times) for times in zip(*times_of_ranks, strict=True)]


def _prepare(case: Case, *, ranks: int, device: Any) -> tuple[Callable[[], None], tuple[int, int]]:
    """Build the case's engine and take two steps.

    Returns:
        A function that takes one more step, and two numbers of bytes: the peak of the second step, and the bytes held
        before it.
    """
    import torch

    from pipeline.data.batches import Batch

    shape = (case.micro_batch_size, case.seq_len)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(case.vocab_size, shape, generator=generator)
    targets = torch.randint(case.vocab_size, (*shape, case.n_future_tokens), generator=generator)
    batches = itertools.repeat(Batch(tokens, targets).to(device))
    engine: Any = None

    def begin() -> None:
        nonlocal engine
        engine = _engine_of(case, ranks=ranks, device=device)
        step()
        gc.collect()

    def step() -> None:
        engine.train_step(batches, learning_rate=1e-4)

    gc.collect()
    return step, (_bytes_on_cpu if device.type == "cpu" else _bytes_on_gpu)(begin, step)


def _bytes_on_gpu(begin: Callable[[], None], step: Callable[[], None]) -> tuple[int, int]:
    """Return the peak bytes of `step`, and the bytes that `begin` left allocated before it."""
    import torch

    before = torch.cuda.memory_allocated()
    begin()
    resident = torch.cuda.memory_allocated() - before
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before, resident


def _bytes_on_cpu(begin: Callable[[], None], step: Callable[[], None]) -> tuple[int, int]:
    """Return the same figures of the CPU's allocator, as the profiler records it."""
    from torch.profiler import ProfilerActivity, profile, record_function

    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            begin()
            with record_function(MEASURED_STEP):
                step()
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    start = next(event["ts"] for event in events if event["name"] == MEASURED_STEP)
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    resident = sum(n_bytes for time, n_bytes in changes if time < start)
    later = itertools.accumulate((n_bytes for time, n_bytes in changes if time >= start), initial=resident)
    return max(later), resident


def _engine_of(case: Case, *, ranks: int, device: Any) -> Any:
    from torch import nn

    from benchmarks.parts.naive import NaiveModel
    from benchmarks.parts.peers import LinguaModel, Llama
    from pipeline.training.build import build_engine
    from pipeline.training.engine import Engine

    makers: dict[Way, Callable[[ModelConfig], nn.Module]] = {
        "naive": lambda model: NaiveModel(model, activation_checkpointing=case.activation_checkpointing),
        "transformers": lambda model: Llama(model, compiled=case.compile),
        "liger": lambda model: Llama(model, kernels="liger"),
        "lingua": LinguaModel,
    }
    config, deepspeed_config = case.config(ranks=ranks), case.deepspeed_config(ranks=ranks)
    if case.way == "sequential":
        return build_engine(config, deepspeed_config, device=device)
    with device:
        module = makers[case.way](config.model)
    shapes = {name: weight.shape for name, weight in module.named_parameters()}
    return Engine(module, deepspeed_config, optim=config.optim, shapes=shapes, device=device)


def _timed(step: Callable[[], None], device: Any) -> Callable[[], float]:
    import torch

    def seconds() -> float:
        torch.distributed.barrier()
        start_s = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start_s

    return seconds
