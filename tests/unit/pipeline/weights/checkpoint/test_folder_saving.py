"""Saving in the background: the copied state is written, and a failed save leaves earlier checkpoints intact."""

import json
import os
import re
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.config.schema import CheckpointConfig, Config
from pipeline.runtime.lease import Lease
from pipeline.runtime.world import Launch, World
from pipeline.weights.checkpoint.folder import CheckpointFolder
from pipeline.weights.checkpoint.manifest import damage_of
from pipeline.weights.checkpoint.state import HostCopies, Slice, state_of, weight_reader
from tests.helpers.deepspeed_like import engine_of

ALONE = World(rank=0, local_rank=0, world_size=1, local_world_size=1)
SHAPES = {"weight": torch.Size([64, 128])}


class OneWeight:
    """The part of an engine that saving needs."""

    def __init__(self) -> None:
        self.module = nn.Linear(128, 64, bias=False)
        self._engine = engine_of(self.module)

    def state(self, *, copies: HostCopies | None) -> dict[str, Slice]:
        return state_of(self._engine, shapes=SHAPES, copies=copies)


@pytest.fixture(autouse=True)
def _world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def folder_in(run_dir: Path, launch: Launch = ALONE.launch, **policy: Any) -> CheckpointFolder:
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    lease = Lease(run_dir, launch=launch)
    lease.take()
    return CheckpointFolder(
        run_dir / "checkpoints", policy=CheckpointConfig(**policy), run_config=Config().as_dict(), world=ALONE,
        lease=lease,
    )  # fmt: skip


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Make writes beyond this file size fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def saved_weight(checkpoint: Path) -> Tensor:
    return weight_reader(checkpoint / "weights_and_moments", SHAPES)("weight")


def begin(folder: CheckpointFolder, step: int, engine: OneWeight) -> None:
    folder.begin(step, engine=engine, state={"data": {"epoch": 3}})


def test_the_copied_state_is_written_while_training_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, engine, may_write = folder_in(tmp_path), OneWeight(), threading.Event()
    taken = engine.module.weight.detach().clone()
    write = folder._write
    monkeypatch.setattr(folder, "_write", lambda *parts: (may_write.wait(), write(*parts))[1])
    begin(folder, 5, engine)
    engine.module.weight.data.zero_()  # the next step
    assert names(tmp_path) == []
    may_write.set()
    assert folder.finish() is None
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert (path.name, damage_of(path)) == ("step_00000005", None)
    assert torch.equal(saved_weight(path), taken)
    state = json.loads((path / "training_state.json").read_text())
    assert (state["step"], state["data"]) == (5, {"epoch": 3})


@pytest.mark.parametrize("asynchronous", [True, False])
def test_later_saves_leave_kept_checkpoints_intact(tmp_path: Path, asynchronous: bool) -> None:
    folder, engine = folder_in(tmp_path, keep=1, keep_every_steps=2, asynchronous=asynchronous), OneWeight()
    for step in (1, 2, 3):
        engine.module.weight.data.fill_(step)
        begin(folder, step, engine)
        assert folder.finish() is None
    assert names(tmp_path) == ["step_00000002", "step_00000003"]
    for step in (2, 3):
        assert (saved_weight(tmp_path / "checkpoints" / f"step_{step:08d}") == step).all()


def test_a_failed_save_is_reported_and_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    folder, engine = folder_in(tmp_path, keep=1), OneWeight()
    begin(folder, 1, engine)
    assert folder.finish() is None
    with files_of_at_most(50_000):  # of 98 kB
        begin(folder, 2, engine)
        while not folder._pending.done():  # type: ignore[union-attr]
            pass
    assert folder.has_failed
    failure = folder.finish()
    assert failure is not None
    assert failure.startswith("rank 0: ")
    assert "File too large" in failure or "unexpected pos" in failure
    assert names(tmp_path) == ["step_00000001"]
    assert damage_of(tmp_path / "checkpoints" / "step_00000001") is None
    begin(folder, 3, engine)  # there is room again
    assert (folder.finish(), folder.has_failed) == (None, False)
    assert names(tmp_path) == ["step_00000003"]


def test_an_unwritable_folder_is_a_failed_save(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").write_text("in the way")
    begin(folder, 1, OneWeight())
    assert "Not a directory" in str(folder.finish())


def test_the_remains_of_a_killed_save_are_deleted_first(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    (tmp_path / "checkpoints" / ".step_00000007.partial" / "weights_and_moments").mkdir(parents=True)
    begin(folder, 8, OneWeight())
    assert folder.finish() is None
    assert names(tmp_path) == ["step_00000008"]


@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "fifo"])
def test_no_stranger_makes_a_save_fail(tmp_path: Path, kind: str) -> None:
    """Whether it has the name of the saved checkpoint, of another one, or of the remains of a killed save."""
    folder, checkpoints = folder_in(tmp_path, keep=1), tmp_path / "checkpoints"
    (tmp_path / "mine").mkdir()
    for name in ("step_00000003", "step_00000002", ".step_00000001.partial", "step_best", "step_00000004.bad"):
        {
            "link": lambda path: path.symlink_to(tmp_path / "mine"),
            "dangling link": lambda path: path.symlink_to("nowhere"),
            "file": lambda path: path.touch(),
            "fifo": lambda path: os.mkfifo(path),
        }[kind](checkpoints / name)
    for step in (3, 4):
        begin(folder, step, OneWeight())
        assert folder.finish() is None
    left = [re.sub("aside-.*", "aside", name) for name in names(tmp_path)]
    assert left == [
        ".step_00000001.partial", "step_00000002", "step_00000003.aside", "step_00000004", "step_00000004.bad",
        "step_best",
    ]  # fmt: skip
    assert (tmp_path / "mine").is_dir()


def test_a_launch_that_lost_its_lease_writes_nothing(tmp_path: Path) -> None:
    """Neither before nor during a save; the later launch can save the same step."""
    first, second = Launch(job="7"), Launch(job="7", restart=1)
    folder, engine = folder_in(tmp_path, first), OneWeight()
    begin(folder, 1, engine)
    assert folder.finish() is None
    folder_in(tmp_path, second)
    begin(folder, 2, engine)
    assert folder.finish() == "7, start 2 has taken the run over"
    assert names(tmp_path) == ["step_00000001"]

    folder = folder_in(tmp_path, first)
    whole = folder._lease.check
    looks = iter((whole, lambda: (folder_in(tmp_path, second), whole())))
    folder._lease.check = lambda: next(looks)()  # type: ignore[method-assign, assignment]
    begin(folder, 3, engine)
    assert folder.finish() == "7, start 2 has taken the run over"
    assert names(tmp_path) == ["step_00000001"]
    later = folder_in(tmp_path, second)
    begin(later, 3, engine)
    assert later.finish() is None
    assert damage_of(tmp_path / "checkpoints" / "step_00000003") is None
