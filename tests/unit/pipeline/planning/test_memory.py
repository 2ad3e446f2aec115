"""The memory model compared with real DeepSpeed engines on two CPU ranks; a benchmark covers all modes."""

import pytest

from benchmarks.plan_memory import Case, cases, measured, predicted

CASES = [
    Case(json="zero1_bf16"),
    Case(json="zero2_fp32", activation_checkpointing=True),
    Case(json="zero3_bf16", n_future_tokens=1),
    Case(json="zero1_fp32", stages=2),
]


def test_predicted_memory_is_within_a_tenth_of_the_allocated() -> None:
    for case, n_bytes in zip(CASES, measured(CASES), strict=True):
        assert predicted(case) == pytest.approx(n_bytes, rel=0.1), case


def test_the_benchmark_has_every_mode() -> None:
    modes = {(case.json, case.ranks, case.stages) for case in cases(ranks=(1, 2), stages=(1, 2))}
    assert len(modes) == 2 * 9 + 3
