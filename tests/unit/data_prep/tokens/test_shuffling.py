from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.tokens.shuffling import DocumentShuffler, random_order, shuffled


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_an_order_has_each_number_once(n: int) -> None:
    assert sorted(random_order(n, seed=3, stream=1).tolist()) == list(range(n))
    assert shuffled(list("abc"), seed=0) == shuffled(list("abc"), seed=0)


def test_orders_never_change() -> None:
    """A run must be able to continue shards that an earlier version wrote."""
    assert random_order(8, seed=0, stream=0).tolist() == [1, 6, 2, 7, 3, 5, 0, 4]


def test_seeds_and_streams_give_independent_uniform_orders() -> None:
    orders = [random_order(50, seed=seed, stream=stream) for seed in range(40) for stream in range(5)]
    assert len({tuple(order.tolist()) for order in orders}) == 200
    places = np.array([order.tolist().index(0) for order in orders])
    assert abs(places.mean() - 24.5) < 3.5  # three standard deviations
    assert max(Counter(places.tolist()).values()) < 15


def test_documents_come_back_once_in_the_random_order(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    documents = [random.integers(0, 1 << 16, size=size, dtype=np.uint16) for size in random.integers(1, 5000, 200)]
    shuffler = DocumentShuffler(tmp_path / "waiting", seed=5, part_index=2)
    for document in documents:
        shuffler.add(document)
    found = [document.tolist() for document in shuffler.documents()]
    assert found == [documents[i].tolist() for i in random_order(200, seed=5, stream=2)]
    assert found != [document.tolist() for document in documents]
    assert not (tmp_path / "waiting").exists()


def test_an_empty_shuffler_gives_no_documents(tmp_path: Path) -> None:
    assert list(DocumentShuffler(tmp_path / "waiting", seed=0, part_index=0).documents()) == []
    assert not (tmp_path / "waiting").exists()
