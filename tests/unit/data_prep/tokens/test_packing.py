import numpy as np
import numpy.typing as npt
import pytest

from data_prep.tokens.packing import WindowPacker, WindowShape, documents_in_windows, windows_of


def _windows_one_by_one(stream: list[int], *, seq_len: int, lookahead: int) -> list[list[int]]:
    """Return the windows of the contract, from a plain loop."""
    windows = []
    start = 0
    while start + seq_len + lookahead <= len(stream):
        windows.append(stream[start : start + seq_len + lookahead])
        start += seq_len
    return windows


def _stream(length: int) -> npt.NDArray[np.uint16]:
    return np.random.default_rng(length).integers(0, 1 << 16, size=length, dtype=np.uint16)


@pytest.mark.parametrize("length", [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 100, 101, 102])
@pytest.mark.parametrize(("seq_len", "lookahead"), [(3, 2), (4, 1), (1, 1), (2, 5)])
def test_windows_match_a_plain_loop(length: int, seq_len: int, lookahead: int) -> None:
    stream, shape = _stream(length), WindowShape(seq_len, lookahead)
    expected = _windows_one_by_one(stream.tolist(), seq_len=seq_len, lookahead=lookahead)
    windows = windows_of(stream, shape)
    assert windows.tolist() == expected
    assert windows.shape == (len(expected), seq_len + lookahead)
    assert windows.dtype == np.uint16
    assert shape.count(length) == len(expected)


@pytest.mark.parametrize(("seq_len", "lookahead"), [(3, 2), (4, 1), (2, 5), (64, 8)])
def test_windows_do_not_depend_on_how_the_stream_arrives(seq_len: int, lookahead: int) -> None:
    shape, stream = WindowShape(seq_len, lookahead), _stream(997)
    whole = windows_of(stream, shape)
    for seed in range(5):
        cuts = np.sort(np.random.default_rng(seed).integers(0, len(stream), size=60))
        packer = WindowPacker(shape)
        arrivals = np.split(stream, cuts)
        batches = [packer.add(list(arrivals[i : i + 3])) for i in range(0, len(arrivals), 3)]
        assert np.array_equal(np.concatenate(batches), whole)
        in_windows = len(whole) * seq_len + lookahead
        assert packer.tail_tokens == len(stream) - in_windows


def test_a_short_stream_is_all_tail() -> None:
    packer = WindowPacker(WindowShape(8, 2))
    assert packer.add([_stream(3), _stream(6)]).shape == (0, 10)
    assert packer.tail_tokens == 9
    assert packer.add([]).shape == (0, 10)
    assert packer.add([_stream(1)]).shape == (1, 10)
    assert packer.tail_tokens == 0


def test_every_position_of_a_window_has_all_its_targets() -> None:
    shape = WindowShape(6, 3)
    stream = np.arange(100, dtype=np.uint16)
    seen = [
        (int(window[t]), [int(token) for token in window[t + 1 : t + 4]])
        for window in windows_of(stream, shape)
        for t in range(shape.seq_len)
    ]
    assert seen == [(position, [position + 1, position + 2, position + 3]) for position in range(len(seen))]
    assert len(seen) == 96


@pytest.mark.parametrize("first", [0, 65_530])
def test_documents_count_from_0_in_every_window(first: int) -> None:
    shape = WindowShape(7, 3)
    lengths = np.random.default_rng(first).integers(1, 9, size=200)
    owners = np.repeat(np.arange(first, first + 200), lengths)
    found = documents_in_windows(windows_of(owners.astype(np.uint16), shape))
    expected = _windows_one_by_one(owners.tolist(), seq_len=7, lookahead=3)
    assert found.dtype == np.uint16
    assert found.tolist() == [[owner - window[0] for owner in window] for window in expected]
