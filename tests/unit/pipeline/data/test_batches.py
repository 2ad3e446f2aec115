"""Batches compared with a naive cut, every window once an epoch, exact positions, validation on several ranks."""

import json
import subprocess
import sys
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.command_line import UserError
from common.tokenizers import ByteTokenizer
from pipeline.config.schema import Config
from pipeline.data.batches import Batch, TrainingData, batch_from_windows, windows_per_epoch
from tests.conftest import REPOSITORY
from tests.helpers.batches import SEQ_LEN, config_for, training_data, validation_data

N_WINDOWS, LOOKAHEAD = 24, 3


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows 0-23 for training and 100-123 for validation; window w holds 10 w, 10 w + 1, ..., which identifies it."""
    from common.mds import streaming

    root = tmp_path_factory.mktemp("windows")
    width = SEQ_LEN + LOOKAHEAD
    for split, first in (("train", 0), ("val", 100)):
        with streaming.MDSWriter(out=str(root / split), columns={"tokens": f"ndarray:uint16:{width}"}) as writer:
            for window in range(first, first + N_WINDOWS):
                writer.write({"tokens": np.arange(10 * window, 10 * window + width, dtype=np.uint16)})
    return root


def windows_of(batch: Batch) -> list[int]:
    return (batch.tokens_BT[:, 0] // 10).tolist()


def read(data: TrainingData, n_batches: int) -> list[list[int]]:
    return [windows_of(batch) for batch in islice(data, n_batches)]


def resumed(config: Config, state: dict[str, Any]) -> TrainingData:
    """Return the data as a new process opens it, at a position that went through training_state.json."""
    data = training_data(config)
    data.load_state_dict(json.loads(json.dumps(state)))
    return data


@pytest.mark.parametrize(("seq_len", "n_future_tokens", "width"), [(5, 1, 6), (5, 3, 8), (5, 3, 13), (1, 4, 5)])
def test_targets_are_the_tokens_ahead(seq_len: int, n_future_tokens: int, width: int) -> None:
    windows_BW = torch.randint(1000, (3, width), generator=torch.Generator().manual_seed(1))
    batch = batch_from_windows(windows_BW, seq_len=seq_len, n_future_tokens=n_future_tokens)
    assert batch.tokens_BT.tolist() == [window[:seq_len] for window in windows_BW.tolist()]
    assert batch.targets_BTN.shape == (3, seq_len, n_future_tokens)
    for b in range(3):
        for t in range(seq_len):
            for i in range(n_future_tokens):
                assert batch.targets_BTN[b, t, i] == windows_BW[b, t + 1 + i]


def test_a_batch_moves_with_its_numbers(shards: Path) -> None:
    batch = next(training_data(config_for(shards)))
    moved = batch.to(torch.device("meta"))
    assert moved.tokens_BT.device.type == moved.targets_BTN.device.type == "meta"
    assert moved.ids_B == batch.ids_B != ()
    assert moved.read_ids_B == batch.read_ids_B == batch.ids_B


def test_batches_are_moved_to_a_device_and_widened_there(shards: Path) -> None:
    data = training_data(config_for(shards), device=torch.device("meta"))
    validation = validation_data(config_for(shards), n_windows=4, device=torch.device("meta"))
    for batch in (next(data), next(iter(validation))):
        assert batch.tokens_BT.device.type == batch.targets_BTN.device.type == "meta"
        assert batch.tokens_BT.dtype == batch.targets_BTN.dtype == torch.int64
        assert batch.targets_BTN.untyped_storage().nbytes() == batch.tokens_BT.untyped_storage().nbytes()  # one window


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_know_the_numbers_of_their_windows(shards: Path, num_workers: int) -> None:
    data = training_data(config_for(shards, num_workers=num_workers))
    batches = list(islice(data, 8))  # 6 are an epoch
    assert [list(batch.ids_B) for batch in batches] == [windows_of(batch) for batch in batches]
    in_order = list(chain.from_iterable(windows_of(batch) for batch in batches))
    assert data.take_consumed().samples == [(0, in_order[:24]), (1, in_order[24:])]
    resumed_data = resumed(config_for(shards), data.state_dict())
    assert resumed_data.take_consumed().samples == []
    (later,) = read(resumed_data, 1)
    assert resumed_data.take_consumed().samples == [(1, later)]


def test_training_batches_hold_whole_windows(shards: Path) -> None:
    batch = next(training_data(config_for(shards)))
    assert batch.tokens_BT.dtype == batch.targets_BTN.dtype == torch.int64
    for row, window in enumerate(windows_of(batch)):
        assert batch.tokens_BT[row].tolist() == [10 * window + t for t in range(SEQ_LEN)]
        assert batch.targets_BTN[row].tolist() == [[10 * window + t + 1, 10 * window + t + 2] for t in range(SEQ_LEN)]


def test_every_epoch_has_every_window_once_in_another_order(shards: Path) -> None:
    data = training_data(config_for(shards))
    epochs = [[window for batch in read(data, 6) for window in batch] for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(N_WINDOWS))
    orders = {tuple(epoch) for epoch in epochs}
    assert len(orders) == 3
    assert tuple(range(N_WINDOWS)) not in orders


def test_the_order_depends_only_on_the_seed(shards: Path) -> None:
    order = read(training_data(config_for(shards)), 6)
    assert read(training_data(config_for(shards)), 6) == order
    assert read(training_data(config_for(shards, num_workers=2)), 6) == order
    halves = read(training_data(config_for(shards, micro_batch_size=12)), 2)
    assert list(chain(*halves)) == list(chain(*order))
    assert read(training_data(config_for(shards, shuffle_seed=2)), 6) != order


@pytest.mark.parametrize(("n_before", "num_workers"), [(1, 0), (5, 0), (6, 0), (7, 0), (5, 2)])
def test_a_resumed_run_reads_exactly_the_remaining_batches(shards: Path, n_before: int, num_workers: int) -> None:
    config = config_for(shards, num_workers=num_workers)  # 6 batches an epoch
    uninterrupted = training_data(config)
    read(uninterrupted, n_before)
    state = uninterrupted.state_dict()
    expected = read(uninterrupted, 8)
    assert read(resumed(config, state), 8) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("n_before", [5, 6, 7, 8, 9])
def test_a_position_among_the_repeated_windows(shards: Path, n_before: int, num_workers: int) -> None:
    config = config_for(shards, num_canonical_nodes=16, num_workers=num_workers)  # 8 batches an epoch, of 24 windows
    uninterrupted = training_data(config)
    read(uninterrupted, n_before)
    data = resumed(config, uninterrupted.state_dict())
    assert data.state_dict()["sample_in_epoch"] == uninterrupted.state_dict()["sample_in_epoch"]
    uninterrupted.take_consumed()
    assert read(data, 12) == read(uninterrupted, 12)
    assert data.take_consumed().samples == uninterrupted.take_consumed().samples
    assert data.state_dict() == uninterrupted.state_dict()


@pytest.mark.parametrize(
    ("key", "value"),
    [("epoch", "1"), ("epoch", -2), ("sample_in_epoch", None), ("sample_in_epoch", 1.5), ("sample_in_epoch", 2**70),
     ("num_canonical_nodes", 10**9), ("shuffle_seed", True), ("initial_physical_nodes", 0)],
)  # fmt: skip
def test_a_position_that_cannot_be_is_named(shards: Path, key: str, value: object) -> None:
    data = training_data(config_for(shards))
    state = data.state_dict()
    with pytest.raises(UserError, match=f"cannot be resumed: {key}={value!r:.40}; resume from an earlier"):
        data.load_state_dict({**state, key: value})
    with pytest.raises(UserError, match="cannot be resumed: epoch=None, sample_in_epoch=None"):
        data.load_state_dict([])  # type: ignore[arg-type]


def test_a_run_can_be_resumed_several_times(shards: Path) -> None:
    config = config_for(shards)
    uninterrupted = read(training_data(config), 20)
    state: dict[str, Any] = {}
    batches: list[list[int]] = []
    for n_batches in (2, 3, 1, 8, 6):  # within an epoch, to its end, from its end, across, a whole one
        data = resumed(config, state) if state else training_data(config)
        batches += read(data, n_batches)
        state = data.state_dict()
    assert batches == uninterrupted


def test_the_incomplete_batch_of_an_epoch_is_dropped(shards: Path) -> None:
    config = config_for(shards, micro_batch_size=7)  # 3 batches, 3 windows left over
    data = training_data(config)
    first = read(data, 3)
    state = data.state_dict()
    second = read(data, 3)
    for epoch in (first, second):
        assert [len(batch) for batch in epoch] == [7, 7, 7]
        assert len({window for batch in epoch for window in batch}) == 21
    assert read(resumed(config, state), 3) == second


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_is_a_whole_number_of_steps(shards: Path, num_workers: int) -> None:
    config = config_for(shards, windows_per_step=16, num_workers=num_workers)  # 4 of the 6 batches are one step
    data = training_data(config)
    epochs = [read(data, 4) for _ in range(3)]
    for epoch in epochs:
        assert len({window for batch in epoch for window in batch}) == 16
    assert len({frozenset(chain(*epoch)) for epoch in epochs}) > 1, (
        "the windows that are left out must not always be the same"
    )
    before = training_data(config)
    read(before, 4)
    assert read(resumed(config, before.state_dict()), 8) == epochs[1] + epochs[2]


@pytest.mark.parametrize(
    ("n_windows", "num_canonical_nodes", "expected"),
    [(24, 1, 16), (32, 1, 32), (33, 1, 32), (31, 2, 32), (31, 1, 16), (17, 64, 64), (15, 1, 0)],
)
def test_the_windows_of_an_epoch_include_repeated_ones(n_windows: int, num_canonical_nodes: int, expected: int) -> None:
    found = windows_per_epoch(n_windows, windows_per_step=16, num_canonical_nodes=num_canonical_nodes)
    assert found == expected


def test_waiting_time_is_counted(shards: Path) -> None:
    data = training_data(config_for(shards))
    waited_s = [data.wait_s]
    for _ in range(3):
        next(data)
        waited_s.append(data.wait_s)
    assert waited_s[0] == 0
    assert waited_s == sorted(set(waited_s))


def test_each_window_of_written_shards_is_read_once(byte_shards: Path) -> None:
    from common.mds import streaming

    split = streaming.StreamingDataset(local=str(byte_shards / "train"), batch_size=1)
    expected = sorted(tuple(split[index]["tokens"][:32].tolist()) for index in range(len(split)))
    data = training_data(config_for(byte_shards, micro_batch_size=1, seq_len=32))
    assert sorted(tuple(batch.tokens_BT[0].tolist()) for batch in islice(data, len(expected))) == expected


KILLED = """
import os, signal, sys
from multiprocessing import resource_tracker
from pathlib import Path
from pipeline.runtime.world import world_from_environment
from tests.helpers.batches import config_for, training_data
world_from_environment()
data = training_data(config_for(Path(sys.argv[1])))
data.load_state_dict({**data.state_dict(), "epoch": 5, "sample_in_epoch": 4})
next(data)
number = data._loader.dataset._shm_prefix_int
print(number, Path(f"/dev/shm/{number:06}_resume").stat().st_ino, flush=True)
os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)  # when a cgroup is killed, so is Python's cleaner
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_shared_memory_of_a_killed_run_does_not_stop_the_next(shards: Path) -> None:
    expected = read(training_data(config_for(shards)), 1)
    command = [sys.executable, "-c", KILLED, str(shards)]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert killed.returncode == -9, killed.stderr
    number, inode = map(int, killed.stdout.split())
    left = Path("/dev/shm") / f"{number:06}_resume"
    assert read(training_data(config_for(shards)), 1) == expected
    assert not left.exists() or left.stat().st_ino != inode  # any other start frees the name, and may reuse it


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_validation_windows_are_dealt_to_the_ranks(shards: Path, n_ranks: int) -> None:
    config = config_for(shards, micro_batch_size=3)
    dealt = []
    for rank in range(n_ranks):
        validation = validation_data(config, n_windows=12, replica=rank, n_replicas=n_ranks)
        first, second = ([windows_of(batch) for batch in validation] for _ in range(2))
        assert first == second
        assert [len(batch) for batch in first] == [3] * (12 // 3 // n_ranks)
        dealt += [window for batch in first for window in batch]
    assert sorted(dealt) == list(range(100, 112))


def test_validation_reads_the_val_splits_text(byte_shards: Path) -> None:
    config = config_for(byte_shards, micro_batch_size=5, seq_len=32)
    batches = list(validation_data(config, n_windows=100))
    assert len(batches) == 20
    text = ByteTokenizer().decode(torch.cat([batch.tokens_BT for batch in batches]).flatten().tolist())
    package = Path(json.__file__).parent
    assert any(source.read_text(encoding="utf-8").startswith(text[:3000]) for source in package.glob("*.py"))


def test_both_splits_can_be_open_at_once(shards: Path) -> None:
    config = config_for(shards)
    data = training_data(config)
    validation = validation_data(config, n_windows=8)
    undisturbed = read(training_data(config), 8)
    batches = []
    for _ in range(8):
        batches += read(data, 1)
        assert [windows_of(batch) for batch in validation] == [[100, 101, 102, 103], [104, 105, 106, 107]]
    assert batches == undisturbed
