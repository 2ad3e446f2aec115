"""Several heads send no more over the network than one: every parameter and gradient as often, in no more calls."""

import pytest

from benchmarks.collectives import Counted, counted

WAYS = [("zero3_fp32", False), ("zero3_fp32", True), ("zero2_fp32", False)]


def test_four_heads_gather_and_reduce_as_one_does() -> None:
    found = {(one.json, one.tight, one.n_future_tokens): one for one in counted(WAYS, heads=(1, 4))}
    for json, tight in WAYS:
        one, four = found[json, tight, 1], found[json, tight, 4]
        # ZeRO-3 without room to keep them gathers parameters again for the backward
        for counts in (one, four):
            assert counts.gathered == pytest.approx(2 if tight else 1, rel=0.01), counts
            assert counts.reduced == pytest.approx(1, rel=0.01), counts
        assert calls(four) <= calls(one)


def calls(counts: Counted) -> int:
    """How many collectives there were."""
    return counts.gathers + counts.reduces
