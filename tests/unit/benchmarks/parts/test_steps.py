"""All ways to train, under the real engine."""

import re
from dataclasses import replace

from benchmarks.parts.steps import Case, time_steps
from benchmarks.train_step import cases_of, figures, table

TINY = Case(dim=64, n_layers=5, n_heads=4, vocab_size=2048, seq_len=64, micro_batch_size=8)


def test_linguas_heads_are_unembeddings_only() -> None:
    ours = replace(TINY, n_future_tokens=4, linear_heads=True)
    assert ours.flops_per_token - replace(ours, way="lingua").flops_per_token == 4 * 6 * TINY.dim**2


def test_all_ways_train_and_the_naive_sum_takes_more_memory() -> None:
    cases = cases_of(TINY, heads=[4], peers=["transformers", "lingua"], compiled=False)
    measured, device = time_steps(cases, ranks=1, threads=1, warm_up=0, repeats=1, DS_ACCELERATOR="cpu")
    assert device == "cpu"
    assert all(len(one.seconds) == 1 for one in measured)
    peaks = {one.case.name: one.peak_bytes for one in measured}
    assert all(one.peak_bytes > one.resident_bytes for one in measured)
    assert peaks["sequential, n = 4"] < 1.02 * peaks["sequential, n = 1"]
    assert (
        peaks["naive, n = 4"] - peaks["sequential, n = 4"] > 2 * 4 * 8 * 64 * 2048
    )  # at least the logits of two heads
    assert re.match(r"\| way +\| step, s", table(figures(measured, device=device, ranks=1)))
