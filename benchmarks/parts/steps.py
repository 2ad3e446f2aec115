"""Times of whole training steps and their peak memory, many models in turns in one process group; started on ranks.

Every case trains under the real DeepSpeed engine on one micro batch of random tokens a step, the optimizer's update
included. Its memory is measured first, in its second step, alone: on a GPU what torch's allocator gave out at most
since before the engine was built; on the CPU the same, as torch's profiler records it. Then all cases step in turns
(harness.in_turns); a step is as long as on the slowest rank.
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

from benchmarks.parts.harness import REPOSITORY, answer, in_turns, on_ranks
from common.command_line import command_parser
from pipeline.config.deepspeed import Precision, fill_deepspeed_config, precision, read_deepspeed_config
from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, OptimConfig, TrainConfig
from pipeline.model.formulas import parameter_count, training_flops

Way = Literal["sequential", "naive", "transformers", "liger", "lingua"]
MEASURED_STEP = "the measured step"
BUCKETS = {"reduce_bucket_size", "stage3_prefetch_bucket_size"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model, and how it is trained.

    way: our head-sequential loss, the naive sum of the same model (naive.py), or a peer (peers.py).
    linear_heads: each head is one matrix, with an unembedding of its own, as lingua's are.
    json: a file of ds_configs/ by name.
    """

    way: Way = "sequential"
    n_future_tokens: int = 1
    linear_heads: bool = False
    dim: int
    n_layers: int
    n_heads: int
    vocab_size: int
    seq_len: int
    micro_batch_size: int
    activation_checkpointing: bool = False
    compile: bool = False
    json: str = "zero1_fp32"

    @property
    def name(self) -> str:
        """What tables and reports call it."""
        linear = ", linear heads" if self.linear_heads and self.way != "lingua" else ""
        compiled = ", compiled" if self.compile else ""
        return f"{self.way}{linear}{compiled}, n = {self.n_future_tokens}"

    @property
    def model(self) -> ModelConfig:
        """The shape."""
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
        """Model FLOPs, forward and backward; what is computed twice counts once. Lingua's heads are unembeddings."""
        flops = training_flops(self.model, seq_len=self.seq_len)
        return flops.total - (flops.heads if self.way == "lingua" else 0)

    @property
    def precision(self) -> Precision:
        """What its matrices are multiplied in."""
        return precision(self._values)

    @property
    def _values(self) -> dict[str, Any]:
        return read_deepspeed_config(REPOSITORY / "ds_configs" / f"{self.json}.json")

    def config(self, *, ranks: int) -> Config:
        """Return the recipe of one micro batch on each rank."""
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
        """Return the filled DeepSpeed JSON; buckets are at most an eighth of the model, or would hide it."""
        values = self._values
        zero = values["zero_optimization"]
        for limit in BUCKETS & zero.keys():
            zero[limit] = min(zero[limit], parameter_count(self.model) // 8)
        filled, problems = fill_deepspeed_config(values, self.config(ranks=ranks), data_ranks=ranks)
        assert not problems, problems
        return filled


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a case took: seconds of each step that counts, and bytes on the fullest rank.

    peak_bytes: the most within a step.
    resident_bytes: between steps: weights, optimizer state, buffers.
    """

    case: Case
    seconds: list[float]
    peak_bytes: int
    resident_bytes: int


def measure(
    cases: Sequence[Case], *, ranks: int, threads: int, warm_up: int, repeats: int, **variables: str
) -> tuple[list[Measured], str]:
    """Measure all cases in one process group; return what they took, and the device's name."""
    todo = {"cases": [asdict(case) for case in cases], "warm_up": warm_up, "repeats": repeats}
    found = on_ranks("benchmarks.parts.steps", todo, ranks=ranks, threads=threads, **variables)
    measured = [
        Measured(case=case, seconds=seconds, peak_bytes=peak, resident_bytes=resident)
        for case, seconds, (peak, resident) in zip(cases, found["seconds"], found["bytes"], strict=True)
    ]
    return measured, found["device"]


def measure_here(path: Path) -> None:
    """Be one of the ranks; rank 0 leaves the answer."""
    import torch

    from pipeline.monitoring.environment import device_name
    from pipeline.runtime.collectives import from_every_rank
    from pipeline.runtime.world import world_from_environment
    from pipeline.training.process_group import process_group

    todo = json.loads(path.read_text(encoding="utf-8"))
    cases, world = [Case(**values) for values in todo["cases"]], world_from_environment()
    with process_group(world) as device:
        ready = [_prepare(case, ranks=world.world_size, device=device) for case in cases]
        steps = {str(index): _timed(step, device) for index, (step, _) in enumerate(ready)}
        own_s = in_turns(steps, warm_up=todo["warm_up"], repeats=todo["repeats"])
        of_ranks = from_every_rank([list(own_s.values()), [n_bytes for _, n_bytes in ready]])
        name = device_name(device)
        del ready, steps
    if world.is_main:
        seconds = [_slowest(times_of_ranks) for times_of_ranks in zip(*(times for times, _ in of_ranks), strict=True)]
        n_bytes = [max(of_case) for of_case in zip(*(of_rank for _, of_rank in of_ranks), strict=True)]
        answer(path, {"seconds": seconds, "bytes": n_bytes, "device": name, "torch": torch.__version__})


def _slowest(times_of_ranks: Sequence[Sequence[float]]) -> list[float]:
    return [max(times) for times in zip(*times_of_ranks, strict=True)]


def _prepare(case: Case, *, ranks: int, device: Any) -> tuple[Callable[[], None], tuple[int, int]]:
    """Build the case's engine and take two steps; return how to take more; and bytes: peak of the second, before it."""
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
    """Return the most bytes that `step` holds, and those that `begin` has left before it."""
    import torch

    before = torch.cuda.memory_allocated()
    begin()
    resident = torch.cuda.memory_allocated() - before
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before, resident


def _bytes_on_cpu(begin: Callable[[], None], step: Callable[[], None]) -> tuple[int, int]:
    """The same of the CPU's allocator, by what the profiler records of it."""
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
    from pipeline.training.engine import Engine, build_engine

    makers: dict[Way, Callable[[ModelConfig], nn.Module]] = {
        "naive": lambda model: NaiveModel(model, activation_checkpointing=case.activation_checkpointing),
        "transformers": lambda model: Llama(model, compiled=case.compile),
        "liger": lambda model: Llama(model, kernels="liger"),
        "lingua": LinguaModel,
    }

    class PeerEngine(Engine):
        """The same engine around another module."""

        def _build(self, config: Config, deepspeed_config: dict[str, Any]) -> nn.Module:
            with self._device:
                return makers[case.way](config.model)

        def _timed(self, module: nn.Module, deepspeed_config: dict[str, Any]) -> nn.Module:
            return module

    make = build_engine if case.way == "sequential" else PeerEngine
    return make(case.config(ranks=ranks), case.deepspeed_config(ranks=ranks), device=device)


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


if __name__ == "__main__":
    parser = command_parser("benchmarks.parts.steps", description=__doc__)
    parser.add_argument("--todo", type=Path, required=True, help="written by harness.on_ranks")
    measure_here(parser.parse_args().todo)
