"""The counted peak against the real CPU allocator, and the peaks of one head, several heads, and the naive sum."""

import gc
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks import memory
from benchmarks.memory import Step, prepared
from pipeline.config.model import ModelConfig
from pipeline.model.formulas import parameter_count

# A head's logits take 16 MiB, and all weights 14 MiB, in fp32.
FOUR_HEADS = ModelConfig(dim=128, n_layers=6, n_heads=4, vocab_size=8192, n_future_tokens=4)
SEQUENTIAL = Step(config=FOUR_HEADS, seq_len=256, micro_batch=2)
NAIVE = replace(SEQUENTIAL, naive=True)
ONE_HEAD = replace(SEQUENTIAL, config=replace(FOUR_HEADS, n_future_tokens=1))
NAIVE_ONE_HEAD = replace(ONE_HEAD, naive=True)
counted_peak = cache(memory.counted_peak)


def allocated_peak(step: Step, trace: Path) -> int:
    """Run the step for real; return the peak of the CPU allocator in bytes, as the profiler recorded it.

    Weights, batch and earlier gradients exist before the profiler starts, and are added.
    """
    model, batch = prepared(step)
    resident = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None), *batch]
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss, _ = model(*batch)
        loss.backward()
    profiler.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"] if e["name"] == "[memory]"]
    first = min(events, key=lambda event: event["ts"])["args"]
    most = max(event["args"]["Total Allocated"] for event in events)
    return sum(tensor.nbytes for tensor in resident) + most - (first["Total Allocated"] - first["Bytes"])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("step", [ONE_HEAD, SEQUENTIAL, NAIVE], ids=["one_head", "sequential", "naive"])
def test_the_count_matches_the_allocator(step: Step, dtype: str, tmp_path: Path) -> None:
    step = replace(step, dtype=dtype)
    assert counted_peak(step).total == pytest.approx(allocated_peak(step, tmp_path / "trace.json"), rel=1e-4)


def test_the_count_matches_with_recomputation_and_earlier_gradients(tmp_path: Path) -> None:
    step = replace(SEQUENTIAL, activation_checkpointing=True, gradients_exist=True)
    # recomputation also saves the random state before each layer, 5 kB, which no operator returns
    assert counted_peak(step).total == pytest.approx(allocated_peak(step, tmp_path / "trace.json"), rel=1e-3)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_sequential_heads_take_the_memory_of_one(dtype: str) -> None:
    sequential, one_head = (counted_peak(replace(step, dtype=dtype)).total for step in (SEQUENTIAL, ONE_HEAD))
    assert sequential <= 1.02 * one_head


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_naive_heads_add_the_memory_of_their_logits(dtype: str) -> None:
    """Each further head replaces a trunk layer, so it adds only its logits and its pass through the norm."""
    naive, naive_one_head, sequential = (
        counted_peak(replace(step, dtype=dtype)).total for step in (NAIVE, NAIVE_ONE_HEAD, SEQUENTIAL)
    )
    positions = NAIVE.micro_batch * NAIVE.seq_len
    # the norm keeps 8 bytes per element: its fp32 values before and after the gain, or the fp32 input and both in bf16
    more = 3 * (NAIVE.logits_bytes + positions * FOUR_HEADS.dim * 8)
    assert naive - naive_one_head == pytest.approx(more, rel=1e-3)
    assert naive - sequential > 3 * NAIVE.logits_bytes


def test_a_peak_is_divided_by_kind() -> None:
    weights = 2 * parameter_count(FOUR_HEADS)
    later = counted_peak(replace(NAIVE, gradients_exist=True))
    assert later.weights == later.gradients == weights
    # the log-probabilities of four heads, and two gradients of the first head in the backward pass
    assert later.logits == 6 * NAIVE.logits_bytes
    assert counted_peak(NAIVE).total == later.total - weights


def test_attention_that_may_hold_the_scores_is_refused() -> None:
    with sdpa_kernel(SDPBackend.MATH), pytest.raises(RuntimeError, match="another kernel"):
        memory.counted_peak(SEQUENTIAL)


def test_the_command_prints_a_table_and_writes_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = Step(config=ModelConfig(dim=16, n_layers=2, n_heads=2, vocab_size=40, n_future_tokens=1), seq_len=8)
    monkeypatch.setattr(
        memory, "MODELS", {"tiny": [tiny, replace(tiny, config=replace(tiny.config, n_future_tokens=2))]}
    )
    memory.main(["--json", str(tmp_path / "memory.json")])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    counted = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))["counted"]
    assert len(rows) == 8
    assert [peak["step"]["naive"] for peak in counted] == 8 * [False, True]
    assert all(peak["peak_bytes"] == sum(peak["at_peak_bytes"].values()) for peak in counted)
    assert all(row.split("|")[6].strip() == "1.000" for row in rows[::2])
