"""Stop requests, with real signals sent to this process."""

import os
import signal
from collections.abc import Iterator

import pytest

from pipeline.stop import STOPPED_EXIT_CODE, StopRequest

STOPPING = (signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield StopRequest()
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    """Signal this process; the handler has run when this returns (it is the main thread's own signal)."""
    os.kill(os.getpid(), number)


def test_nothing_is_requested_at_first(stop: StopRequest) -> None:
    assert not stop.requested


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_requests_a_stop(stop: StopRequest, number: signal.Signals) -> None:
    send(number)
    assert stop.requested


def test_more_signals_change_nothing(stop: StopRequest) -> None:
    for number in (*STOPPING, *STOPPING):
        send(number)
        assert stop.requested


def test_an_interrupt_from_the_keyboard_is_not_caught(stop: StopRequest) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not stop.requested


def test_the_exit_code_says_try_again() -> None:
    assert STOPPED_EXIT_CODE == os.EX_TEMPFAIL
