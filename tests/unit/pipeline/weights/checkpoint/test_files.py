"""Checkpoints made by somebody else: reading metadata and parts runs no code, and reads only inside the folder.

Hostile checkpoints are made by hand. Each test first shows that a trusting reader would run their code.
"""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from common.command_line import UserError
from pipeline.weights.checkpoint.files import METADATA, Reader
from pipeline.weights.checkpoint.folder import SHARDED
from pipeline.weights.formats.training import open_checkpoint
from tests.conftest import run_module
from tests.helpers.exports import exported
from tests.helpers.references import tiny_model
from tests.helpers.untrusted import OUTSIDE, Hostile, change_metadata, reseal, tiny_recipe, witness_in


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny byte-level model."""
    return exported(tmp_path_factory.mktemp("whole") / "checkpoint", tiny_model(vocab_size=258), to="deepspeed")


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to change and to `reseal`."""
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """The file that a `Hostile` would create."""
    return witness_in(tmp_path)


def refusal(checkpoint: Path) -> str:
    """Return the message with which opening a checkpoint or reading its weights is refused."""
    with pytest.raises(UserError) as error:
        open_checkpoint(checkpoint).read("trunk.tok_embeddings.weight")
    return str(error.value)


def test_an_unchanged_checkpoint_is_read(checkpoint: Path) -> None:
    change_metadata(checkpoint, lambda found: None)
    assert open_checkpoint(checkpoint).read("trunk.tok_embeddings.weight").shape == (258, 32)


@pytest.mark.parametrize("door", ["convert", "init_from"])
def test_nothing_in_the_metadata_of_a_checkpoint_is_run(
    door: str, checkpoint: Path, witness: Path, byte_shards: Path
) -> None:
    """With the commands that a user would type."""
    change_metadata(checkpoint, lambda found: Hostile(witness))
    if door == "convert":
        done = run_module(
            "pipeline.convert", "--input", checkpoint, "--to", "meta", "--output", witness.parent / "exported"
        )
    else:
        done = run_module(
            "pipeline.train", "--config", tiny_recipe(witness.parent, shards=byte_shards),
            "--deepspeed_config", "ds_configs/zero1_fp32.json", f"model.init_from={checkpoint}",
        )  # fmt: skip
    assert not witness.exists()
    assert done.returncode == 2, done.stderr
    named = f"{checkpoint / SHARDED / METADATA} names pathlib.Path.touch, which none of our checkpoints does"
    assert [line for line in done.stderr.splitlines() if "error" in line.lower()] == [
        f"pipeline.{'convert' if door == 'convert' else 'train'}: error: {named} and which could run anything;"
        " it was not read: do not use it"
    ]
    assert "Traceback" not in done.stderr


def test_nothing_nested_in_the_metadata_is_run(checkpoint: Path, witness: Path) -> None:
    def hide(found: Any) -> None:
        found.planner_data = {"a": [Hostile(witness)]}

    change_metadata(checkpoint, hide)
    assert "names pathlib.Path.touch" in refusal(checkpoint)
    assert not witness.exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_objects_other_than_tensors_are_refused_before_torch_unpickles_them(checkpoint: Path, witness: Path) -> None:
    """torch's loader reads them with `weights_only=False`."""
    folder = checkpoint / SHARDED
    shutil.rmtree(folder)
    state = {"trunk.tok_embeddings.weight/fp32": Hostile(witness)}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    reseal(checkpoint)
    assert "names torch.distributed.checkpoint.metadata.BytesStorageMetadata" in refusal(checkpoint)
    assert not witness.exists()
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    assert witness.exists()  # torch's own reader runs it


def test_nothing_in_the_parts_of_a_checkpoint_is_run(checkpoint: Path, witness: Path) -> None:
    buffer = io.BytesIO()
    torch.save(Hostile(witness), buffer)
    (checkpoint / SHARDED / "__0_0.distcp").write_bytes(buffer.getvalue())

    def point_there(found: Any) -> None:
        for place in found.storage_data.values():
            place.offset, place.length = 0, len(buffer.getvalue())

    change_metadata(checkpoint, point_there)
    assert refusal(checkpoint) == f"{checkpoint / SHARDED} holds parts that are not plain tensors; do not use it"
    assert not witness.exists()


@pytest.mark.parametrize("contents", [b"", None])
def test_parts_that_cannot_be_read_are_named(contents: bytes | None, checkpoint: Path) -> None:
    """The manifest fits them; None stands for damage in the middle of the file."""
    part = checkpoint / SHARDED / "__0_0.distcp"
    stored = part.read_bytes()
    part.write_bytes(stored[:100] + bytes(1000) + stored[1100:] if contents is None else contents)
    reseal(checkpoint)
    told = refusal(checkpoint)
    assert told.startswith(f"{checkpoint / SHARDED} holds weights that cannot be read: ")
    assert len(told) < 500


def test_metadata_that_is_a_fifo_is_not_waited_for(checkpoint: Path) -> None:
    (checkpoint / SHARDED / METADATA).unlink()
    os.mkfifo(checkpoint / SHARDED / METADATA)
    with pytest.raises(UserError, match="it is a FIFO, not a file"):
        Reader(checkpoint / SHARDED)


@pytest.mark.parametrize("name", OUTSIDE)
def test_parts_outside_of_the_checkpoint_are_refused(name: Any, checkpoint: Path) -> None:
    def lead_out(found: Any) -> None:
        for place in found.storage_data.values():
            place.relative_path = name

    change_metadata(checkpoint, lead_out)
    assert refusal(checkpoint).startswith(f"{checkpoint / SHARDED / METADATA} names the file {name!r}, which is not")


def _without_places(found: Any) -> None:
    found.storage_data = {}


def _of_other_dimensions(found: Any) -> None:
    for tensor in found.state_dict_metadata.values():
        tensor.chunks[0].sizes = torch.Size([1] * 9)


def _before_the_file(found: Any) -> None:
    for place in found.storage_data.values():
        place.offset = -1


@pytest.mark.parametrize(
    "change",
    [_without_places, _of_other_dimensions, _before_the_file, lambda found: [1], lambda found: {"a": found}],
)
def test_malformed_metadata_is_reported(change: Callable[[Any], Any], checkpoint: Path) -> None:
    change_metadata(checkpoint, change)
    assert f"{checkpoint / SHARDED / METADATA} is not the metadata of a checkpoint" in refusal(checkpoint)


@pytest.mark.parametrize("contents", [b"", b"no pickle", b"\x80\x04."])
def test_metadata_that_is_not_a_pickle_is_reported(contents: bytes, checkpoint: Path) -> None:
    (checkpoint / SHARDED / METADATA).write_bytes(contents)
    reseal(checkpoint)
    assert f"{checkpoint / SHARDED / METADATA} is not the metadata of a checkpoint" in refusal(checkpoint)


def test_missing_metadata_is_reported(checkpoint: Path) -> None:
    (checkpoint / SHARDED / METADATA).unlink()
    reseal(checkpoint)
    assert f"{checkpoint} is damaged: manifest.json does not list {SHARDED}/{METADATA}" in refusal(checkpoint)


def test_a_checkpoint_does_not_record_its_path(checkpoint: Path) -> None:
    """Neither does a converted one, which is written to a temporary folder."""
    metadata = (checkpoint / SHARDED / METADATA).read_bytes()
    assert b"PosixPath" not in metadata
    assert checkpoint.parent.name.encode() not in metadata
