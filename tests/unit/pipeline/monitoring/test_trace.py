"""The time of a step by part: real traces of a model with slowed parts, and a handwritten trace of a GPU."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from pipeline.model.network import MultiTokenModel
from pipeline.monitoring.trace import PartTimes, as_table, times_of_parts
from pipeline.runtime.ranges import STEP, profiler_range
from tests.helpers.references import tiny_config

PAUSE_S = 0.1


class Slow(torch.autograd.Function):
    """The identity with a slow backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        time.sleep(PAUSE_S)
        return gradients[0]


def pause(*_: object) -> None:
    time.sleep(PAUSE_S)


def slow_backward(module: object, inputs: object, output: Tensor) -> Tensor:
    applied: Tensor = Slow.apply(output)
    return applied


def train_step(model: MultiTokenModel) -> None:
    tokens_BT = torch.zeros(2, 24, dtype=torch.int64)
    targets_BTN = torch.zeros(2, 24, model.config.n_future_tokens, dtype=torch.int64)
    loss, _ = model(tokens_BT, targets_BTN)
    loss.backward()


def profiled(step: Callable[[], None], folder: Path) -> tuple[dict[str, PartTimes], float]:
    """Return the parts' times in two steps, and the steps' mean wall time as the trace has it."""
    with profile() as profiler:
        for _ in range(2):
            with profiler_range(STEP):
                step()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    lengths_s = [event["dur"] / 1e6 for event in events if event["name"] == "train: step"]
    assert len(lengths_s) == 2
    return times_of_parts(events), sum(lengths_s) / 2


@pytest.mark.parametrize("order", ["parallel", "causal"])
def test_slowed_parts_show_and_all_parts_add_up(tmp_path: Path, order: str) -> None:
    """Forward and backward of the trunk, of a head, and of the unembedding, in steps of two micro batches."""
    model = MultiTokenModel(tiny_config(head_order=order, n_future_tokens=3), activation_checkpointing=True)
    model.trunk.layers[0].register_forward_hook(slow_backward)
    model.heads.layers[1].register_forward_pre_hook(pause)
    model.heads.layers[1].register_forward_hook(slow_backward)

    def step() -> None:
        with profiler_range("data"):
            pause()
        train_step(model)
        train_step(model)
        pause()

    times, wall_s = profiled(step, tmp_path)
    assert sum(part.total_s for part in times.values()) == pytest.approx(wall_s, rel=1e-6)
    expected = {
        "data": (PAUSE_S, 0),
        "trunk": (0, 2 * PAUSE_S),
        # heads in a chain are computed again in their backward; the others are not
        "head 2": (2 * PAUSE_S, (2 if order == "parallel" else 4) * PAUSE_S),
        "other": (PAUSE_S, 0),
    }
    assert list(times) == ["data", "trunk", "head 1", "head 2", "head 3", "unembedding", "heads", "gradients", "other"]
    for name, found in times.items():
        forward_s, backward_s = expected.get(name, (0, 0))
        assert found.forward_s >= forward_s, (name, times)  # a pause that is given to another part is missing here
        assert found.backward_s >= backward_s, (name, times)
    for name in ("trunk", "head 1", "head 3", "unembedding"):
        assert times[name].forward_s > 0, name
        assert times[name].backward_s > 0, name


def event(name: str, start: int, end: int, *, category: str = "user_annotation", thread: int = 1, **args: int) -> Any:
    return {"ph": "X", "name": name, "cat": category, "ts": start, "dur": end - start, "tid": thread, "args": args}


def kernel(name: str, launch: int, start: int, end: int) -> list[Any]:
    return [
        event("cudaLaunchKernel", launch, launch + 1, category="cuda_runtime", correlation=start),
        event(name, start, end, category="kernel", thread=7, correlation=start),
    ]


def test_on_a_gpu_a_moment_belongs_to_the_running_kernel() -> None:
    """The host runs ahead: it launches everything in the first tenth of the step, and then waits."""
    events = [
        event("train: step", 0, 1_000_000),
        event("train: data", 0, 20),
        event("train: trunk", 20, 40),
        event("aten::mm", 25, 30, category="cpu_op", **{"Sequence number": 5}),
        event("train: heads", 40, 70),
        event("train: head 1", 45, 65),
        event("train: gradients", 70, 90),
        event("autograd::engine::evaluate_function: MmBackward0", 72, 80, category="cpu_op", thread=2,
              **{"Sequence number": 5, "Fwd thread id": 1}),
        event("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 82, 84, category="cpu_op",
              thread=2),
        event("train: optimizer", 90, 100),
        *kernel("gemm", 26, 1_000, 101_000),
        *kernel("gemm", 50, 101_000, 301_000),
        *kernel("gemm", 75, 301_000, 601_000),
        *kernel("ncclDevKernel_ReduceScatter", 83, 500_000, 700_000),  # 100 ms of it behind the backward
        *kernel("adam", 95, 800_000, 900_000),
    ]  # fmt: skip
    times = {name: (found.forward_s, found.backward_s) for name, found in times_of_parts(events).items()}
    near = pytest.approx
    assert times["trunk"] == (near(0.1, abs=1e-4), near(0.3, abs=1e-4))
    assert times["head 1"] == (near(0.2, abs=1e-4), 0)
    assert times["communication"] == (near(0.099, abs=1e-4), 0)
    assert times["optimizer"] == (near(0.1, abs=1e-4), 0)
    assert times["other"] == (near(0.2, abs=1e-3), 0)
    assert sum(sum(both) for both in times.values()) == near(1)


def test_the_table_ends_with_the_step() -> None:
    times = {
        "data": PartTimes(forward_s=0.25, backward_s=0),
        "trunk": PartTimes(forward_s=0.25, backward_s=0.5),
    }
    assert as_table(times).splitlines() == [
        "seconds per step   forward  backward     total   share",
        "data                                    0.2500   25.0%",
        "trunk               0.2500    0.5000    0.7500   75.0%",
        "step                                    1.0000  100.0%",
    ]
