"""The benchmarks of the training step: limits, ratios, turns; peers compute what they are compared with."""

import re
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from benchmarks.growth import AXES, points_of
from benchmarks.loader_rate import samples_per_s
from benchmarks.parts.harness import in_turns, markdown, ratio
from benchmarks.parts.naive import NaiveModel
from benchmarks.parts.peers import LinguaModel, Llama
from benchmarks.parts.steps import Case, Measured, measure
from benchmarks.train_step import SHAPES, cases_of, figures, flops_ratio, table
from pipeline.model.network import initialise
from tests.conftest import run_module
from tests.helpers.references import as_transformers_llama, tiny_config, tiny_model

TINY = Case(dim=64, n_layers=5, n_heads=4, vocab_size=2048, seq_len=64, micro_batch_size=8)


@pytest.mark.parametrize("shape", ["deep", "7B"])
@pytest.mark.parametrize("n", [2, 8])
def test_the_limit_is_the_flops_of_further_unembeddings(shape: str, n: int) -> None:
    one, more = SHAPES[shape], replace(SHAPES[shape], n_future_tokens=n)
    further = 6 * (n - 1) * one.vocab_size * one.dim
    assert flops_ratio(more, one) == pytest.approx(1 + further / one.flops_per_token, rel=1e-12)


def test_lingua_has_no_heads_but_unembeddings() -> None:
    ours = replace(TINY, n_future_tokens=4, linear_heads=True)
    assert ours.flops_per_token - replace(ours, way="lingua").flops_per_token == 4 * 6 * TINY.dim**2


def test_every_case_has_a_name_of_its_own() -> None:
    cases = cases_of(TINY, heads=[4], peers=["transformers", "lingua"], compiled=True)
    assert cases[0] == TINY
    assert len({case.name for case in cases}) == len(cases) == 11


def test_ratios_are_taken_within_rounds() -> None:
    assert ratio([2.0, 4.0, 60.0], [1.0, 2.0, 30.0]).upper == 2
    measured = [
        Measured(case=TINY, seconds=[1.0, 2.0, 30.0], peak_bytes=10**6, resident_bytes=0),
        Measured(case=replace(TINY, n_future_tokens=4), seconds=[2.0, 4.0, 60.0], peak_bytes=10**6, resident_bytes=0),
    ]
    limit = flops_ratio(measured[1].case, TINY)
    text = table(figures(measured, device="cpu", ranks=1))
    last = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert last[2:] == ["2 (2 to 2)", f"{limit:.3f}", f"{2 / limit:.3f}", "128", "1.0", "1.000"]  # 512 tokens in 4 s


def test_utilisation_is_that_of_a_rank_on_a_device_whose_peak_is_known() -> None:
    case = replace(TINY, json="zero1_bf16")
    seconds = [case.flops_per_token * 512 / 989e12 / 0.5]  # half of an H200's peak
    (row,) = figures(
        [Measured(case=case, seconds=seconds, peak_bytes=1, resident_bytes=0)], device="NVIDIA H200", ranks=4
    )
    assert row["mfu"] == pytest.approx(0.5)
    assert row["tokens_per_s"] == pytest.approx(4 * 512 / seconds[0])
    assert "| 50.0% |" in table([row])


def test_rounds_turn_around_and_the_first_do_not_count() -> None:
    calls: list[str] = []

    def case(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    found = in_turns({name: lambda name=name: case(name) for name in "ab"}, warm_up=1, repeats=2)  # type: ignore[misc]
    assert "".join(calls) == "baabba"
    assert found == {"a": [3, 6], "b": [4, 5]}


@pytest.mark.skipif(find_spec("liger_kernel") is not None, reason="liger-kernel is installed")
def test_a_peer_that_is_not_installed_is_asked_for_before_anything_is_measured() -> None:
    done = run_module("benchmarks.train_step", "--peers", "liger")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--peers liger needs the package liger-kernel" in done.stderr


def test_a_table_is_markdown() -> None:
    assert markdown([["a", "long"], ["x", "1"]]) == "| a | long |\n|---|------|\n| x | 1    |"


def test_growth_is_held_against_the_flops_of_the_first_point() -> None:
    axis = AXES["micro_batch"]
    measured = [Measured(case=axis.case(value), seconds=[0.5], peak_bytes=1, resident_bytes=1) for value in axis.values]
    assert [point.expected_s for point in points_of(axis, measured)] == [0.5 * value for value in axis.values]


def test_a_paced_model_asks_for_what_its_flops_allow() -> None:
    # the 7B: 2 x 3 FLOPs for each of 6.7e9 weights and more for attention, 4,096 times, at 989e12 a second
    assert 989e12 / (6 * 8.5e9) / 4096 < samples_per_s("7B", mfu=1) < 989e12 / (6 * 6.7e9) / 4096


def test_linguas_heads_give_the_naive_sum_of_linear_heads() -> None:
    """Our linear heads are one matrix more than lingua's; with the identity in it they compute the same."""
    config = tiny_config(head_type="linear", replicated_unembedding=True)
    naive = NaiveModel(config).double()
    initialise(naive, seed=1)
    lingua = LinguaModel(config).double()
    lingua.trunk.load_state_dict(naive.trunk.state_dict())
    lingua.norm.load_state_dict(naive.heads.norm.state_dict())
    with torch.no_grad():
        for index, head in enumerate(lingua.heads):
            head.weight.copy_(naive.heads.unembedding(index).weight)  # type: ignore[operator]
            naive.heads.layers[index].weight.copy_(torch.eye(config.dim))  # type: ignore[operator]
    tokens = torch.randint(97, (3, 11), generator=torch.Generator().manual_seed(1))
    targets = torch.randint(97, (3, 11, 4), generator=torch.Generator().manual_seed(2))
    results: list[Any] = [model(tokens, targets) for model in (naive, lingua)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=0)
    for loss, _ in results:
        loss.backward()
    ours, theirs = naive.trunk.tok_embeddings.weight.grad, lingua.trunk.tok_embeddings.weight.grad
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(lingua.heads[2].weight.grad, naive.heads.unembedding(2).weight.grad)


def test_transformers_learns_from_the_same_targets() -> None:
    ours = tiny_model(n_future_tokens=1)
    config = ours.config
    peer = Llama(config)
    peer.llama.load_state_dict(as_transformers_llama(ours).state_dict())
    tokens = torch.randint(97, (3, 11), generator=torch.Generator().manual_seed(1))
    targets = torch.randint(97, (3, 11, 1), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(peer(tokens, targets)[1], ours(tokens, targets)[1], rtol=1e-5, atol=1e-5)


def test_all_ways_train_side_by_side_and_the_naive_sum_holds_more() -> None:
    cases = cases_of(TINY, heads=[4], peers=["transformers", "lingua"], compiled=False)
    measured, device = measure(cases, ranks=1, threads=1, warm_up=0, repeats=1, DS_ACCELERATOR="cpu")
    assert device == "cpu"
    assert all(len(one.seconds) == 1 for one in measured)
    peaks = {one.case.name: one.peak_bytes for one in measured}
    assert all(one.peak_bytes > one.resident_bytes for one in measured)
    assert peaks["sequential, n = 4"] < 1.02 * peaks["sequential, n = 1"]
    assert peaks["naive, n = 4"] - peaks["sequential, n = 4"] > 2 * 4 * 8 * 64 * 2048  # two heads' logits at least
    assert re.match(r"\| way +\| step, s", table(figures(measured, device=device, ranks=1)))
