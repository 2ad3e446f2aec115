"""Training state on disk: save beside and rename, verify by manifest, find the newest whole one, load, prune.

    checkpoints/step_00001000/
        weights_and_moments/        fp32 weights and Adam's moments, each rank's slices in one file (sharded_state.py)
        training_state.json         step, tokens, data position, resolved config
        manifest.json               size and hash of every file above; written last

A folder without a manifest, or with files that differ from it, is not a checkpoint. What a run needs to go on exactly
is: weights, moments, and the data loader's position. The learning rate is a function of the step, and after the
initialisation nothing is random but the order of samples, which has a seed of its own. Nothing there depends on how
many ranks there were or how they shared the model: a run goes on with any other number, ZeRO stage or pipeline.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import xxhash

from common.command_line import UserError, raise_if_any
from common.files import write_json
from pipeline.config import Config
from pipeline.data import TrainingData
from pipeline.distributed import World, from_main, logger
from pipeline.engine import Engine

MANIFEST, STATE, SHARDED = "manifest.json", "training_state.json", "weights_and_moments"

# What makes a run that run: with another value, a checkpoint belongs to another one.
IDENTITY = {
    "model": None,  # every field
    "data": ("seq_len", "shuffle_seed", "shuffle_algo", "shuffle_block_size", "num_canonical_nodes"),
    "train": ("batch_tokens", "seed"),
}
_NO_IDENTITY = {"size", "init_from", "new_heads"}  # shorthand for other fields, and where the weights once came from


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint: its folder and its training_state.json."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps that it has finished."""
        return self.state["step"]


class CheckpointFolder:
    """A run's checkpoints/. All ranks call each method together."""

    def __init__(self, config: Config, *, world: World) -> None:
        self._config, self._world = config, world
        self._directory = config.run_dir / "checkpoints"

    def find(self, *, resume: bool) -> Checkpoint | None:
        """Return the checkpoint to go on from, the same on every rank, or None for a fresh run.

        Raises:
            UserError: it is another run's (names every difference), or `resume` is off and there is one.
        """
        path = from_main(newest_whole_checkpoint(self._directory) if self._world.is_main else None)
        if path is None:
            return None
        if not resume:
            raise UserError(f"--no-resume, but {path} exists; set another run.name, or delete the old run")
        found = read_checkpoint(path)
        problems = identity_problems(saved=found.state["config"], now=self._config.as_dict())
        if not (path / SHARDED).is_dir():
            problems.append(f"it has no {SHARDED}: an earlier version wrote it")
        raise_if_any(problems, heading=f"cannot go on from {path}; set another run.name, or undo the change")
        return found

    def load(self, checkpoint: Checkpoint, *, engine: Engine, data: TrainingData) -> None:
        """Restore weights, moments and data position."""
        engine.load(checkpoint.path / SHARDED, step=checkpoint.step)
        data.load_state_dict(checkpoint.state["data"])

    def save(self, step: int, *, engine: Engine, data: TrainingData) -> None:
        """Write the state beside its place, seal it with a manifest, rename it, and prune the oldest."""
        final = self._directory / f"step_{step:08d}"
        partial = self._directory / f".{final.name}.partial"
        if self._world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        engine.save(partial / SHARDED)
        dist.barrier()
        if self._world.is_main:
            state = {
                "step": step,
                "tokens": step * self._config.train.batch_tokens,
                "data": data.state_dict(),
                "config": self._config.as_dict(),
            }
            seal(partial, state)
            shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same step, which `find` passed over
            os.replace(partial, final)
            prune_checkpoints(self._directory, newest=final, keep=self._config.checkpoint.keep)
            logger.info("saved %s", final)
        dist.barrier()


def seal(directory: Path, state: dict[str, Any]) -> None:
    """Write training_state.json, and then the manifest that makes of the folder a whole checkpoint."""
    write_json(directory / STATE, state)
    write_json(directory / MANIFEST, _manifest(directory))


def newest_whole_checkpoint(directory: Path) -> Path | None:
    """Return the newest checkpoint whose files all match its manifest, or None; damaged ones are named aloud."""
    for candidate in sorted(directory.glob("step_*"), reverse=True):
        damage = checkpoint_damage(candidate)
        if damage is None:
            return candidate
        logger.warning("checkpoint %s is damaged (%s); looking for an older one", candidate, damage)
    return None


def checkpoint_damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None if every file is as it was written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"no readable {MANIFEST}"
    for name, expected in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if _xxh64(path) != expected["xxh64"]:
            return f"{name} has another hash than when it was written"
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, which is known to be whole."""
    return Checkpoint(path=path, state=json.loads((path / STATE).read_text(encoding="utf-8")))


def prune_checkpoints(directory: Path, *, newest: Path, keep: int) -> None:
    """Delete all but `keep` checkpoints up to `newest`, the one just saved.

    Later ones are damaged, or the run would have gone on from them; what a killed save left goes too.
    """
    kept = sorted(path for path in directory.glob("step_*") if path.name <= newest.name)[-keep:]
    for path in [*directory.glob("step_*"), *directory.glob(".step_*.partial")]:
        if path not in kept:
            shutil.rmtree(path)


def identity_problems(*, saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return where two resolved configs are not the same run, one line each."""
    problems = []
    for section, fields in IDENTITY.items():
        for field in fields or sorted(set(now[section]) - _NO_IDENTITY):
            before, after = saved.get(section, {}).get(field), now[section][field]
            if before != after:
                problems.append(f"it was saved with {section}.{field}={before!r}, and this run has {after!r}")
    return problems


def _manifest(directory: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): {"bytes": path.stat().st_size, "xxh64": _xxh64(path)} for path in files}


def _xxh64(path: Path) -> str:
    digest = xxhash.xxh64()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
