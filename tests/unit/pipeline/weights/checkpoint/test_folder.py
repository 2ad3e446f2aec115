"""Checkpoint folders: damage is detected, whole checkpoints are found and kept, those of other runs are refused."""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from common.command_line import UserError
from pipeline.config.model import ModelConfig, resolve_model
from pipeline.config.schema import Config, RunConfig
from pipeline.runtime.lease import Lease
from pipeline.runtime.world import World
from pipeline.weights.checkpoint.folder import (
    CheckpointFolder,
    damage_of,
    newest_whole_checkpoint,
    read_checkpoint,
)
from pipeline.weights.checkpoint.identity import identity_problems
from tests.helpers.checkpoints import FILES, flip_one_bit, write_checkpoint


def test_a_whole_checkpoint_has_no_damage(tmp_path: Path) -> None:
    assert damage_of(write_checkpoint(tmp_path, 1)) is None


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_damage(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path, 1)
    (path / name).unlink()
    assert damage_of(path) == f"{name} is missing"


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_damage(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path, 1)
    (path / name).write_bytes(FILES[name][:-1])
    assert damage_of(path) == f"{name} has {len(FILES[name]) - 1} bytes instead of {len(FILES[name])}"


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_damage(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path, 1)
    flip_one_bit(path / name)
    assert damage_of(path) == f"{name} does not match its hash in manifest.json"


def test_a_folder_without_readable_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8")[:-5], encoding="utf-8")
    assert damage_of(path) == "no readable manifest.json"
    manifest.unlink()
    assert damage_of(path) == "no readable manifest.json"


def test_a_flipped_bit_in_a_name_of_the_manifest_is_damage(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1)
    manifest = path / "manifest.json"
    first, second = list(FILES)[:2]
    manifest.write_text(manifest.read_text(encoding="utf-8").replace(f'"{first}"', f'"{second}"'), encoding="utf-8")
    assert damage_of(path) == "no readable manifest.json"


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        write_checkpoint(tmp_path, step)
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "step_00000010"


def test_damaged_checkpoints_are_skipped_with_a_warning(tmp_path: Path, pipeline_log: pytest.LogCaptureFixture) -> None:
    whole, flipped, unsealed = (write_checkpoint(tmp_path, step) for step in (1, 2, 3))
    flip_one_bit(flipped / "training_state.json")
    (unsealed / "manifest.json").unlink()
    assert newest_whole_checkpoint(tmp_path) == whole
    assert [record.getMessage() for record in pipeline_log.records] == [
        f"checkpoint {unsealed} is damaged: no readable manifest.json; looking for an older one",
        f"checkpoint {flipped} is damaged: training_state.json does not match its hash in manifest.json; looking for"
        " an older one",
    ]


def test_the_remains_of_a_killed_save_are_not_a_checkpoint(
    tmp_path: Path, pipeline_log: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path, 2).rename(tmp_path / ".step_00000002.partial")
    assert newest_whole_checkpoint(tmp_path) is None
    assert pipeline_log.records == []


def test_a_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_whole_checkpoint(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_that_omits_what_a_checkpoint_needs_is_damage(tmp_path: Path, name: str) -> None:
    """Whether or not the file is there."""
    path = write_checkpoint(tmp_path, 1, files={other: FILES[other] for other in FILES if other != name})
    assert damage_of(path) == f"manifest.json does not list {name}"
    (path / name).write_bytes(FILES[name])
    assert damage_of(path) == f"manifest.json does not list {name}"


@pytest.mark.parametrize("share", [0, 1])
def test_every_share_looks_for_what_a_checkpoint_needs(tmp_path: Path, share: int) -> None:
    path = write_checkpoint(tmp_path, 1, files={"training_state.json": FILES["training_state.json"]})
    assert damage_of(path, share=share, n_shares=2) == "manifest.json does not list weights_and_moments/.metadata"


@pytest.mark.parametrize(
    "contents", ["[]", '{"training_state.json": 3}', '{"a": {"bytes": "7", "xxh64": 1}}', "[" * 9999]
)
def test_a_manifest_of_another_shape_is_damage(tmp_path: Path, contents: str) -> None:
    path = write_checkpoint(tmp_path, 1)
    (path / "manifest.json").write_text(contents)
    assert damage_of(path) == "no readable manifest.json"


def test_a_fifo_among_the_files_is_damage(tmp_path: Path) -> None:
    """And nobody waits for it."""
    for name in ("manifest.json", *FILES):
        path = write_checkpoint(tmp_path, 1)
        (path / name).unlink()
        os.mkfifo(path / name)
        assert damage_of(path) in ("no readable manifest.json", f"{name} is missing")
        (path / name).unlink()


@pytest.mark.parametrize("state", [b"[]", b"{}", b'{"step": "1", "config": {}}', b'{"step": 1}'])
def test_a_state_of_another_shape_is_named(tmp_path: Path, state: bytes) -> None:
    path = write_checkpoint(tmp_path, 1, files={**FILES, "training_state.json": state})
    with pytest.raises(UserError, match=r"training_state\.json does not hold the step and the config of a run"):
        read_checkpoint(path)


@pytest.fixture
def saved() -> dict[str, Any]:
    return Config(model=resolve_model(ModelConfig(size="0.3B"))).as_dict()


IDENTITY_CHANGES = [
    ("model", "dim", 512),
    ("model", "n_layers", 20),
    ("model", "n_heads", 8),
    ("model", "n_kv_heads", 8),
    ("model", "vocab_size", 258),
    ("model", "n_future_tokens", 1),
    ("model", "head_type", "linear"),
    ("model", "head_order", "causal"),
    ("model", "replicated_unembedding", True),
    ("model", "shorten_trunk", False),
    ("model", "multiple_of", 64),
    ("model", "ffn_dim_multiplier", 1.5),
    ("model", "norm_eps", 1e-6),
    ("model", "rope_theta", 1e6),
    ("data", "seq_len", 2048),
    ("data", "shuffle_seed", 2),
    ("data", "shuffle_algo", "py1s"),
    ("data", "shuffle_block_size", 1024),
    ("data", "num_canonical_nodes", 8),
    ("train", "batch_tokens", 4096),
    ("train", "seed", 2),
]


@pytest.mark.parametrize(("section", "field", "value"), IDENTITY_CHANGES)
def test_a_difference_that_makes_another_run_is_named(
    saved: dict[str, Any], section: str, field: str, value: Any
) -> None:
    now = copy.deepcopy(saved)
    now[section][field] = value
    assert identity_problems(saved=saved, now=now) == [
        f"it was saved with {section}.{field}={saved[section][field]!r}, and this run has {value!r}"
    ]


def test_all_differences_are_listed(saved: dict[str, Any]) -> None:
    now = copy.deepcopy(saved)
    for section, field, value in IDENTITY_CHANGES:
        now[section][field] = value
    problems = identity_problems(saved=saved, now=now)
    assert len(problems) == len(IDENTITY_CHANGES)
    for section, field, _ in IDENTITY_CHANGES:
        assert any(f" {section}.{field}=" in problem for problem in problems)


def test_every_field_of_the_architecture_is_tested_above(saved: dict[str, Any]) -> None:
    tried = {field for section, field, _ in IDENTITY_CHANGES if section == "model"}
    assert tried == set(saved["model"]) - {"size", "init_from", "new_heads"}


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("run", "dir", "elsewhere"),
        ("model", "size", None),  # shorthand for the dimensions that follow from it
        ("model", "init_from", "weights"),
        ("model", "new_heads", "fresh"),
        ("data", "shards", "moved"),
        ("data", "num_workers", 0),
        ("train", "total_tokens", 10**9),
        ("train", "micro_batch_size", 8),
        ("train", "eval_every_steps", 0),
        ("train", "activation_checkpointing", True),
        ("train", "compile", True),
        ("parallel", "pipeline_stages", 2),
        ("optim", "lr", 1e-4),
        ("optim", "warmup_steps", 5),
        ("checkpoint", "keep", 9),
        ("log", "every_steps", 1),
    ],
)
def test_fields_that_may_change_are_ignored(saved: dict[str, Any], section: str, field: str, value: Any) -> None:
    now = copy.deepcopy(saved)
    assert now[section][field] != value
    now[section][field] = value
    assert identity_problems(saved=saved, now=now) == []


@pytest.fixture
def _world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def run_in(directory: Path, **model: Any) -> CheckpointFolder:
    config = Config(run=RunConfig(dir=str(directory), name="run"), model=resolve_model(ModelConfig(**model)))
    world = World(rank=0, local_rank=0, world_size=1, local_world_size=1)
    return CheckpointFolder(
        config.run_dir / "checkpoints", policy=config.checkpoint, run_config=config.as_dict(), world=world,
        lease=Lease(config.run_dir, launch=world.launch),
    )  # fmt: skip


def files_of(config: dict[str, Any]) -> dict[str, bytes]:
    return {**FILES, "training_state.json": json.dumps({"step": 3, "config": config, "health": {}}).encode()}


@pytest.mark.usefixtures("_world_of_one")
def test_a_run_finds_its_checkpoint(tmp_path: Path, saved: dict[str, Any]) -> None:
    same_run, other_run = run_in(tmp_path, size="0.3B"), run_in(tmp_path, size="0.3B", head_order="causal")
    assert same_run.find(resume=True) is None
    path = write_checkpoint(tmp_path / "run" / "checkpoints", 3, files=files_of(saved))
    found = same_run.find(resume=True)
    assert found is not None
    assert (found.path, found.step) == (path, 3)
    with pytest.raises(UserError, match=r"--no-resume, but .* exists"):
        same_run.find(resume=False)
    with pytest.raises(UserError, match=r"saved with model\.head_order='parallel', and this run has 'causal'"):
        other_run.find(resume=True)


@pytest.mark.usefixtures("_world_of_one")
def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path: Path, saved: dict[str, Any]) -> None:
    state = {"step": 3, "config": saved}  # without the losses that spikes are compared with
    files = {**FILES, "training_state.json": json.dumps(state).encode()}
    write_checkpoint(tmp_path / "run" / "checkpoints", 3, files=files)
    with pytest.raises(UserError, match=r"cannot continue from .* written by an earlier version of this program"):
        run_in(tmp_path, size="0.3B").find(resume=True)
