"""Names in `checkpoints/`: the run's own are found and pruned; everything else is left alone, and in nobody's way."""

import os
from pathlib import Path

import pytest

from pipeline.config.schema import CheckpointConfig
from pipeline.weights.checkpoint.folder import newest_whole_checkpoint
from pipeline.weights.checkpoint.listing import (
    checkpoints_in,
    make_way,
    path_of,
    prune_checkpoints,
    remove_leftovers,
    step_of,
)
from tests.helpers.checkpoints import flip_one_bit, write_checkpoint


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def add_strangers(directory: Path) -> list[str]:
    """Put what is no checkpoint of the run into `directory`, with names like those of checkpoints; return the names."""
    for name in ("step_best", "step_00000020.bad", "step_20", "step_000000020", "xstep_00000020", ".step_00000020"):
        write_checkpoint(directory, 99).rename(directory / name)
    for name in (".step_00000050.a.partial", "step_00000060"):
        (directory / name).write_text("a file")
    for name in (".step_00000070.a.partial", "step_00000080"):
        os.mkfifo(directory / name)
    (directory / "step_00000090").symlink_to("nowhere")
    (directory / ".step_00000091.a.deleted").symlink_to(directory / "step_best")
    return names(directory)


@pytest.mark.parametrize(
    ("name", "step"),
    [("step_00000000", 0), ("step_00001000", 1000), ("step_99999999", 99_999_999), ("step_123456789", 123_456_789),
     ("step_1000", None), ("step_012345678", None), ("step_00001000.bad", None), ("step_0000100\u0660", None),
     ("step_", None), ("step_best", None), (f"step_{'9' * 5000}", None)],
)  # fmt: skip
def test_the_name_tells_the_step(name: str, step: int | None) -> None:
    assert step_of(Path(name)) == step
    if step is not None:
        assert path_of(Path("a"), step) == Path("a", name)


def test_strangers_are_neither_listed_nor_deleted(tmp_path: Path) -> None:
    strangers = add_strangers(tmp_path)
    older, newest = (write_checkpoint(tmp_path, step) for step in (9, 10))
    assert checkpoints_in(tmp_path) == [newest, older]
    assert newest_whole_checkpoint(tmp_path) == newest
    remove_leftovers(tmp_path)
    prune_checkpoints(tmp_path, newest=newest, policy=CheckpointConfig(keep=1))
    assert names(tmp_path) == sorted([*strangers, newest.name])
    assert names(tmp_path / "step_best") == ["manifest.json", "training_state.json", "weights_and_moments"]


def test_the_order_is_that_of_the_steps(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 5):
        path_of(tmp_path, step).mkdir()
    assert [step_of(path) for path in checkpoints_in(tmp_path)] == [100_000_000, 99_999_999, 5]


def test_a_checkpoint_that_was_moved_and_linked_is_found_and_never_deleted(tmp_path: Path) -> None:
    folder, other_disk = tmp_path / "checkpoints", tmp_path / "other_disk"
    write_checkpoint(other_disk, 7)
    for step in (8, 9):
        newest = write_checkpoint(folder, step)
    (folder / "step_00000007").symlink_to(other_disk / "step_00000007")
    prune_checkpoints(folder, newest=newest, policy=CheckpointConfig(keep=2))
    assert names(folder) == ["step_00000007", "step_00000008", "step_00000009"]
    flip_one_bit(newest / "training_state.json")
    flip_one_bit(folder / "step_00000008" / "training_state.json")
    assert newest_whole_checkpoint(folder) == folder / "step_00000007"


@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "fifo"])
def test_what_has_the_name_of_a_checkpoint_is_moved_aside(
    kind: str, tmp_path: Path, pipeline_log: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoints" / "step_00000010"
    path.parent.mkdir()
    target = write_checkpoint(tmp_path, 3)
    {
        "link": lambda: path.symlink_to(target),
        "dangling link": lambda: path.symlink_to("nowhere"),
        "file": lambda: path.write_text("mine"),
        "fifo": lambda: os.mkfifo(path),
    }[kind]()
    make_way(path)
    (aside,) = path.parent.iterdir()
    assert aside.name.startswith("step_00000010.aside-")
    assert f"{path} was in the way of a checkpoint" in pipeline_log.text
    assert names(target) == ["manifest.json", "training_state.json", "weights_and_moments"]
    assert not os.path.lexists(path)


def test_an_earlier_checkpoint_of_the_same_step_makes_way(tmp_path: Path) -> None:
    make_way(write_checkpoint(tmp_path, 1))
    make_way(path_of(tmp_path, 2))
    assert names(tmp_path) == []


def test_leftovers_of_killed_saves_and_deletions_are_deleted(tmp_path: Path) -> None:
    for name in (".step_00000007.partial", ".step_00000007.ab12.partial", ".step_00000007.deleted", "step_00000007"):
        write_checkpoint(tmp_path, 1).rename(tmp_path / name)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["step_00000007"]


def test_a_folder_that_does_not_exist_has_no_checkpoints(tmp_path: Path) -> None:
    assert checkpoints_in(tmp_path / "checkpoints") == []
    (tmp_path / "file").touch()
    assert checkpoints_in(tmp_path / "file") == []


@pytest.mark.parametrize(
    ("keep", "keep_every_steps", "kept"),
    [
        (1, 0, [10]),
        (2, 0, [9, 10]),
        (4, 0, [1, 2, 9, 10]),
        (9, 0, [1, 2, 9, 10]),
        (1, 2, [2, 10]),
        (1, 3, [9, 10]),
        (1, 1, [1, 2, 9, 10]),
    ],
)
def test_pruning_keeps_the_newest_and_every_nth(
    tmp_path: Path, keep: int, keep_every_steps: int, kept: list[int]
) -> None:
    for step in (1, 2, 9, 10):
        newest = write_checkpoint(tmp_path, step)
    policy = CheckpointConfig(keep=keep, keep_every_steps=keep_every_steps)
    prune_checkpoints(tmp_path, newest=newest, policy=policy)
    assert names(tmp_path) == [f"step_{step:08d}" for step in kept]


def test_pruning_keeps_the_saved_checkpoint_although_a_later_one_is_damaged(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 200)
    later = write_checkpoint(tmp_path, 300)
    flip_one_bit(later / "training_state.json")  # so the run continued from 200 and stopped at 250
    newest = write_checkpoint(tmp_path, 250)
    prune_checkpoints(tmp_path, newest=newest, policy=CheckpointConfig(keep=1))
    assert newest_whole_checkpoint(tmp_path) == newest
    assert names(tmp_path) == ["step_00000250"]
