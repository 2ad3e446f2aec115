"""Batches of completions, and their seeds."""

import itertools

from pipeline.inference.evaluation.completion_log import CompletionId
from pipeline.inference.evaluation.completions import completion_seed, deal_batches


def test_every_completion_is_in_one_batch_of_one_temperature() -> None:
    batches = list(deal_batches(["a", "b", "c"], [0.1, 0.8], n_samples=5, batch_size=4))
    ids = [completion_id for batch in batches for completion_id in batch]
    assert sorted(ids) == sorted(itertools.starmap(CompletionId, itertools.product("abc", (0.1, 0.8), range(5))))
    assert all(len(batch) <= 4 and len({which.temperature for which in batch}) == 1 for batch in batches)
    assert any(len({which.task_id for which in batch}) > 1 for batch in batches)


def test_every_completion_has_its_own_seed() -> None:
    batches = list(deal_batches(["a", "b"], [0.1, 0.8], n_samples=50, batch_size=1))
    seeds = [completion_seed(seed, which) for seed in (1, 2) for (which,) in batches]
    assert len(set(seeds)) == len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
