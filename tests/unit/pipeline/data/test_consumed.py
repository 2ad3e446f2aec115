"""The account of what batches consume: samples by epoch, and each fault once, unless nothing could be read."""

from pipeline.data.consumed import Account, Consumed
from pipeline.data.sample_record import NOTHING


def test_samples_are_grouped_by_epoch_and_replacements_counted() -> None:
    account = Account()
    account.add([3, 1], read_ids=[3, 1], faults=[], epoch=0)
    account.add([2, 7], read_ids=[2, 9], faults=["a"], epoch=0)
    account.add([4], read_ids=[4], faults=[], epoch=1)
    assert account.take() == Consumed(samples=[(0, [3, 1, 2, (7, 9)]), (1, [4])], faults=["a"], skipped_windows=1)
    assert account.take() == Consumed()


def test_validation_records_no_samples() -> None:
    account = Account()
    account.add([3, 1], read_ids=[3, 1], faults=[])
    assert account.take() == Consumed()


def test_a_fault_is_reported_once() -> None:
    account = Account()
    for _ in range(2):
        account.add([7], read_ids=[9], faults=["a"])
    assert account.take().faults == ["a"]
    account.add([7, 8], read_ids=[9, 9], faults=["a", "b"])
    assert account.take().faults == ["b"]


def test_a_known_fault_is_reported_again_if_nothing_could_be_read() -> None:
    account = Account()
    account.add([7], read_ids=[9], faults=["a"])
    account.take()
    for _ in range(2):
        account.add([7], read_ids=[NOTHING], faults=["a"])
    taken = account.take()
    assert (taken.faults, taken.nothing_left, taken.skipped_windows) == (["a"], True, 2)
    assert not account.take().nothing_left
