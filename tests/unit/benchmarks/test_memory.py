"""The counted peak against the real CPU allocator; n heads for the memory of one; what the naive sum pays."""

import gc
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks import memory
from benchmarks.memory import Step, prepared
from benchmarks.parts.naive import NaiveModel
from common.command_line import UserError
from pipeline.config.model import ModelConfig
from pipeline.model.formulas import parameter_count
from pipeline.model.network import MultiTokenModel, initialise

# a head's logits take 16 MiB, all weights 14 MiB in fp32
FOUR_HEADS = ModelConfig(dim=128, n_layers=6, n_heads=4, vocab_size=8192, n_future_tokens=4)
SEQUENTIAL = Step(config=FOUR_HEADS, seq_len=256, micro_batch=2)
NAIVE = replace(SEQUENTIAL, naive=True)
ONE_HEAD = replace(SEQUENTIAL, config=replace(FOUR_HEADS, n_future_tokens=1))
NAIVE_ONE_HEAD = replace(ONE_HEAD, naive=True)
counted_peak = cache(memory.counted_peak)


def allocated_peak(step: Step, trace: Path) -> int:
    """Run the step for real; return the most bytes that the CPU allocator had given out, as the profiler recorded.

    Weights, batch and earlier gradients are there before the profiler starts, and are added.
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
def test_the_count_is_what_the_allocator_gave_out(step: Step, dtype: str, tmp_path: Path) -> None:
    step = replace(step, dtype=dtype)
    assert counted_peak(step).total == pytest.approx(allocated_peak(step, tmp_path / "trace.json"), rel=1e-4)


def test_so_it_is_with_recomputation_and_earlier_gradients(tmp_path: Path) -> None:
    step = replace(SEQUENTIAL, activation_checkpointing=True, gradients_exist=True)
    # recomputation also keeps the random state at each layer's beginning, 5 kB, which no operator returns
    assert counted_peak(step).total == pytest.approx(allocated_peak(step, tmp_path / "trace.json"), rel=1e-3)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_heads_in_sequence_take_the_memory_of_one(dtype: str) -> None:
    sequential, one_head = (counted_peak(replace(step, dtype=dtype)).total for step in (SEQUENTIAL, ONE_HEAD))
    assert sequential <= 1.02 * one_head


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_naive_heads_pay_for_their_logits(dtype: str) -> None:
    """A head more than one is a layer less in the trunk: what it adds is its logits, and its pass through the norm."""
    naive, naive_one_head, sequential = (
        counted_peak(replace(step, dtype=dtype)).total for step in (NAIVE, NAIVE_ONE_HEAD, SEQUENTIAL)
    )
    positions = NAIVE.micro_batch * NAIVE.seq_len
    # the norm keeps 8 bytes an element: fp32 before and after the gain; or the input in fp32, and those two in bf16
    more = 3 * (NAIVE.logits_bytes + positions * FOUR_HEADS.dim * 8)
    assert naive - naive_one_head == pytest.approx(more, rel=1e-3)
    assert naive - sequential > 3 * NAIVE.logits_bytes


def test_a_peak_names_what_it_holds() -> None:
    weights = 2 * parameter_count(FOUR_HEADS)
    later = counted_peak(replace(NAIVE, gradients_exist=True))
    assert later.weights == later.gradients == weights
    # the log-probabilities of four heads, and two gradients of the head that is back-propagated first
    assert later.logits == 6 * NAIVE.logits_bytes
    assert counted_peak(NAIVE).total == later.total - weights


def test_attention_that_may_hold_its_scores_is_refused() -> None:
    with sdpa_kernel(SDPBackend.MATH), pytest.raises(RuntimeError, match="another kernel"):
        memory.counted_peak(SEQUENTIAL)


HEADS = [
    {"head_order": order, "head_type": kind, "replicated_unembedding": replicated}
    for order in ("parallel", "causal", "anticausal")
    for kind in ("transformer", "linear")
    for replicated in (False, True)
]


@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: "-".join(map(str, heads.values())))
def test_the_naive_model_computes_the_same(heads: dict[str, Any]) -> None:
    config = ModelConfig(dim=16, n_layers=4, n_heads=2, vocab_size=40, n_future_tokens=3, multiple_of=16, **heads)
    generator = torch.Generator().manual_seed(1)
    tokens, targets = (torch.randint(40, shape, generator=generator) for shape in ((2, 7), (2, 7, 3)))
    results = []
    for model in (MultiTokenModel(config).double(), NaiveModel(config).double()):
        initialise(model, seed=1)
        loss, losses = model(tokens, targets)
        loss.backward()
        results.append((loss.detach(), losses, {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-14)


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


def test_a_missing_folder_is_named_before_the_counting(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        memory.main(["--json", str(tmp_path / "absent" / "memory.json")])
