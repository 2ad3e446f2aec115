"""Several heads communicate no more than one: each parameter and gradient as often, in no more calls."""

import pytest

from benchmarks.collectives import Counted, counted

WAYS = [("zero3_fp32", False), ("zero3_fp32", True), ("zero2_fp32", False)]


def test_four_heads_gather_and_reduce_no_more_than_one() -> None:
    found = {(one.json, one.tight, one.n_future_tokens): one for one in counted(WAYS, heads=(1, 4))}
    for json, tight in WAYS:
        one, four = found[json, tight, 1], found[json, tight, 4]
        # Without room to keep them, ZeRO-3 gathers parameters again for the backward.
        for counts in (one, four):
            assert counts.gathered == pytest.approx(2 if tight else 1, rel=0.01), counts
            assert counts.reduced == pytest.approx(1, rel=0.01), counts
        assert calls(four) <= calls(one)


def calls(counts: Counted) -> int:
    """Return the number of collectives."""
    return counts.gathers + counts.reduces
