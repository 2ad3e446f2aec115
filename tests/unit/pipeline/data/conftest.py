"""For all tests of training data: a world of one rank, and shared memory that ends with the test."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from common.mds import streaming
from pipeline.runtime.world import World, world_from_environment
from tests.helpers.batches import close_training_data


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world of one rank, as streaming and `world_from_environment` read it; it ends with the test."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    return world_from_environment()


@pytest.fixture(autouse=True)
def closed_shared_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close a test's shared memory after it: streaming waits for the end of the process, and open files run out."""
    cleanups: list[Callable[[], None]] = []
    monkeypatch.setattr(streaming.base.shared.memory, "atexit", SimpleNamespace(register=cleanups.append))
    yield
    close_training_data()
    for cleanup in cleanups:
        cleanup()
