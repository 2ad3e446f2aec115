"""Fixtures for the tests of monitoring."""

import pytest

from tests.helpers.monitored import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)
