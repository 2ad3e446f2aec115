"""Limits, ratios and utilisation of the benchmark of training steps."""

from dataclasses import replace
from importlib.util import find_spec

import pytest

from benchmarks.parts.steps import Case, CaseTimes
from benchmarks.train_step import SHAPES, cases_of, figures, flops_ratio, table
from tests.conftest import run_module

TINY = Case(dim=64, n_layers=5, n_heads=4, vocab_size=2048, seq_len=64, micro_batch_size=8)


@pytest.mark.parametrize("shape", ["deep", "7B"])
@pytest.mark.parametrize("n", [2, 8])
def test_the_limit_is_the_flops_of_further_unembeddings(shape: str, n: int) -> None:
    one, more = SHAPES[shape], replace(SHAPES[shape], n_future_tokens=n)
    further = 6 * (n - 1) * one.vocab_size * one.dim
    assert flops_ratio(more, one) == pytest.approx(1 + further / one.flops_per_token, rel=1e-12)


def test_case_names_are_unique() -> None:
    cases = cases_of(TINY, heads=[4], peers=["transformers", "lingua"], compiled=True)
    assert cases[0] == TINY
    assert len({case.name for case in cases}) == len(cases) == 11


def test_ratios_are_taken_within_rounds() -> None:
    measured = [
        CaseTimes(case=TINY, seconds=[1.0, 2.0, 30.0], peak_bytes=10**6, resident_bytes=0),
        CaseTimes(case=replace(TINY, n_future_tokens=4), seconds=[2.0, 4.0, 60.0], peak_bytes=10**6, resident_bytes=0),
    ]
    limit = flops_ratio(measured[1].case, TINY)
    text = table(figures(measured, device="cpu", ranks=1))
    last = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert last[2:] == ["2 (2 to 2)", f"{limit:.3f}", f"{2 / limit:.3f}", "128", "1.0", "1.000"]  # 512 tokens in 4 s


def test_mfu_is_given_if_the_peak_of_the_device_is_known() -> None:
    case = replace(TINY, json="zero1_bf16")
    seconds = [case.flops_per_token * 512 / 989e12 / 0.5]  # half of an H200's peak
    (row,) = figures(
        [CaseTimes(case=case, seconds=seconds, peak_bytes=1, resident_bytes=0)], device="NVIDIA H200", ranks=4
    )
    assert row["mfu"] == pytest.approx(0.5)
    assert row["tokens_per_s"] == pytest.approx(4 * 512 / seconds[0])
    assert "| 50.0% |" in table([row])


@pytest.mark.skipif(find_spec("liger_kernel") is not None, reason="liger-kernel is installed")
def test_a_missing_peer_is_reported_before_anything_is_measured() -> None:
    done = run_module("benchmarks.train_step", "--peers", "liger")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--peers liger needs the package liger-kernel" in done.stderr
