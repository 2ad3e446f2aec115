"""Training state on disk: save beside and rename, find the newest whole one, load, prune.

    checkpoints/step_00001000/
        weights_and_moments/        fp32 weights and Adam's moments, each rank's slices in one file (sharded_state.py)
        training_state.json         step, tokens, data position, health, resolved config
        manifest.json               size and hash of every file above; written last (manifest.py)

What a run needs to go on exactly is: weights, moments, the data loader's position, and the recent losses by which
spikes are judged. The learning rate is a function of the step, and after the initialisation nothing is random but the
order of samples, which has a seed of its own. Nothing there depends on how many ranks there were or how they shared the
model: a run goes on with any other number, ZeRO stage or pipeline.

A save is taken in the training thread (a copy of the state in the host's memory) and written in another: each rank its
part, then the hash of what it wrote; rank 0 gathers the hashes, seals the folder, renames it, and deletes the oldest.
All of it goes through a gloo group of its own, so that it never meets the training's collectives.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

from common.command_line import UserError, raise_if_any
from common.files import sync_folder, write_json
from pipeline.config.schema import CheckpointConfig
from pipeline.runtime.collectives import from_every_rank, from_main
from pipeline.runtime.lease import Lease
from pipeline.runtime.logs import logger
from pipeline.runtime.world import World
from pipeline.weights.checkpoint import manifest
from pipeline.weights.checkpoint.state import HostCopies, Slice, save_state

STATE, SHARDED = "training_state.json", "weights_and_moments"

# What makes a run that run: with another value, a checkpoint belongs to another one.
IDENTITY = {
    "model": None,  # every field
    "data": ("seq_len", "shuffle_seed", "shuffle_algo", "shuffle_block_size", "num_canonical_nodes"),
    "train": ("batch_tokens", "seed"),
}
_NO_IDENTITY = {"size", "init_from", "new_heads"}  # shorthand for other fields, and where the weights once came from
_SLOWEST_SAVE = timedelta(days=1)  # the watchdog is who notices a disk that hangs


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint: its folder and its training_state.json."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps that it has finished."""
        return self.state["step"]


class HoldsState(Protocol):
    """Whatever holds the weights and optimizer state of this rank."""

    def state(self, *, copies: HostCopies | None) -> dict[str, Slice]:
        """Return this rank's slices by weight and kind, copied into `copies` if given, else in shared memory."""
        ...


class CheckpointFolder:
    """A run's `checkpoints/` folder. Every rank must call each method."""

    def __init__(
        self, directory: Path, *, policy: CheckpointConfig, run_config: dict[str, Any], world: World, lease: Lease
    ) -> None:
        """Create the process group and the writer thread of the saves; every rank must call it.

        Args:
            directory: the run's `checkpoints/`; must exist before the first save.
            policy: how checkpoints are written, and which of them are kept.
            run_config: the run's resolved config, which every checkpoint records and `find` compares.
            world: this rank's place among all.
            lease: the right to write into the run directory; each save checks it.
        """
        self._directory, self._policy, self._run_config = directory, policy, run_config
        self._world, self._lease = world, lease
        self._launch = from_main(lease.token)
        self._group = dist.new_group(backend="gloo", timeout=_SLOWEST_SAVE)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._copies = HostCopies() if policy.asynchronous else None
        self._pending: Future[str | None] | None = None

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, the same on every rank; damaged ones are named aloud.

        Each rank verifies its share of the files.
        """
        candidates = sorted(self._directory.glob("step_*"), reverse=True) if self._world.is_main else []
        for path in from_main(candidates):
            damage = manifest.damage_of(path, share=self._world.rank, n_shares=self._world.world_size)
            damages = [damage for damage in from_every_rank(damage) if damage]
            if not damages:
                return read_checkpoint(path)
            if self._world.is_main:
                _warn_of_damage(path, damages[0])
        return None

    def find(self, *, resume: bool) -> Checkpoint | None:
        """Return the checkpoint to go on from, the same on every rank, or None for a fresh run.

        Raises:
            UserError: it is another run's (names every difference), or `resume` is off and there is one.
        """
        found = self.newest()
        if found is None:
            return None
        if not resume:
            raise UserError(f"--no-resume, but {found.path} exists; set another run.name, or delete the old run")
        problems = identity_problems(saved=found.state["config"], now=self._run_config)
        if not (found.path / SHARDED).is_dir() or "health" not in found.state:
            problems.append("an earlier version of this program wrote it")
        raise_if_any(problems, heading=f"cannot go on from {found.path}; set another run.name, or undo the change")
        return found

    def begin(self, step: int, *, engine: HoldsState, state: dict[str, Any]) -> None:
        """Take the state after `step` steps and begin to write it; the save before must be finished.

        Args:
            step: finished.
            engine: whose weights and moments to take.
            state: what else to put into training_state.json; plain values.
        """
        assert self._pending is None
        parts = engine.state(copies=self._copies)
        state = {
            "step": step,
            "tokens": step * self._run_config["train"]["batch_tokens"],
            "config": self._run_config,
            **state,
        }
        self._pending = self._writer.submit(self._write, self._directory / f"step_{step:08d}", parts, state)

    @property
    def is_written(self) -> bool:
        """Whether `finish` would return at once, as far as this rank knows; another may learn it steps later."""
        return self._pending is None or self._pending.done()

    @property
    def has_failed(self) -> bool:
        """Whether `finish` would tell of a failure, as far as this rank knows; another may learn it steps later."""
        return self._pending is not None and self._pending.done() and self._pending.result() is not None

    def finish(self) -> str | None:
        """Wait until what was begun is whole, if anything was; else return what failed, the same on every rank.

        The checkpoints before it are then untouched.
        """
        pending, self._pending = self._pending, None
        return pending.result() if pending is not None else None

    def _write(self, final: Path, parts: dict[str, Slice], state: dict[str, Any]) -> str | None:
        """Write, seal and rename; return what failed, the same on every rank, or None."""
        start_s = time.perf_counter()
        partial = final.with_name(f".{final.name}.{self._launch}.partial")  # never another start's

        def begin() -> None:
            self._lease.check()
            for leftover in self._directory.glob(".step_*"):  # of a save, or its end, that was killed
                shutil.rmtree(leftover)
            partial.mkdir(parents=True)

        def end(entries: list[manifest.Entries]) -> None:
            write_json(partial / STATE, state)
            of_all = {name: entry for of_rank in entries for name, entry in of_rank.items()}
            manifest.write_manifest(
                partial, {**of_all, **manifest.entries_of(partial, [f"{SHARDED}/.metadata", STATE])}
            )
            self._lease.check()
            if final.exists():  # a damaged one of the same step, which `newest` passed over
                remove_folder(final)
            os.replace(partial, final)
            sync_folder(self._directory)
            logger.info("saved %s (%.1f s)", final, time.perf_counter() - start_s)
            prune_checkpoints(self._directory, newest=final, policy=self._policy)

        _, failure = self._try(begin, only_main=True)
        if failure is None:
            _, failure = self._try(lambda: save_state(parts, partial / SHARDED, group=self._group))
        if failure is None:
            mine = f"{SHARDED}/__{self._world.rank}_"
            names = [name for name in manifest.files_in(partial) if name.startswith(mine)]
            entries, failure = self._try(lambda: manifest.entries_of(partial, names))
        if failure is None:
            _, failure = self._try(lambda: end(entries), only_main=True)
        if failure is not None and self._world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        return failure

    def _try(self, part: Callable[[], Any], *, only_main: bool = False) -> tuple[list[Any], str | None]:
        """Do a part of a save on every rank, or on rank 0; return every rank's result, and what failed first."""
        result, failure = None, None
        try:
            if self._world.is_main or not only_main:
                result = part()
        except (OSError, CheckpointException) as error:
            failure = _told(error)
        results = from_every_rank((result, failure), group=self._group)
        return [result for result, _ in results], next((failure for _, failure in results if failure), None)


def _told(error: OSError | CheckpointException) -> str:
    """Return one line on what went wrong, without torch's traceback of every rank."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {cause}"
    return str(error)


def seal_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Write training_state.json, and then the manifest that makes of the folder a whole checkpoint."""
    write_json(directory / STATE, state)
    manifest.write_manifest(directory, manifest.entries_of(directory, manifest.files_in(directory)))


def newest_whole_checkpoint(directory: Path) -> Path | None:
    """Return the newest checkpoint whose files all match its manifest, or None; damaged ones are named aloud."""
    for candidate in sorted(directory.glob("step_*"), reverse=True):
        damage = manifest.damage_of(candidate)
        if damage is None:
            return candidate
        _warn_of_damage(candidate, damage)
    return None


def _warn_of_damage(checkpoint: Path, damage: str) -> None:
    logger.warning("checkpoint %s is damaged (%s); looking for an older one", checkpoint, damage)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, which is known to be whole."""
    return Checkpoint(path=path, state=json.loads((path / STATE).read_text(encoding="utf-8")))


def prune_checkpoints(directory: Path, *, newest: Path, policy: CheckpointConfig) -> None:
    """Delete all but the last `keep` checkpoints up to `newest`, the one just saved, and those kept for good.

    Later ones are damaged, or the run would have gone on from them. What cannot be deleted is left, aloud.
    """
    up_to_newest = sorted(path for path in directory.glob("step_*") if path.name <= newest.name)
    kept = set(up_to_newest[-policy.keep :])
    if policy.keep_every_steps:
        kept |= {path for path in up_to_newest if int(path.name.removeprefix("step_")) % policy.keep_every_steps == 0}
    for path in set(directory.glob("step_*")) - kept:
        try:
            remove_folder(path)
        except OSError as error:
            logger.warning("%s cannot be deleted (%s)", path, error.strerror)


def remove_folder(checkpoint: Path) -> None:
    """Delete a checkpoint; one that is half deleted when the run is killed has no longer a checkpoint's name."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.deleted")
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed)


def identity_problems(*, saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return where two resolved configs are not the same run, one line each."""
    problems = []
    for section, fields in IDENTITY.items():
        for field in fields or sorted(set(now[section]) - _NO_IDENTITY):
            before, after = saved.get(section, {}).get(field), now[section][field]
            if before != after:
                problems.append(f"it was saved with {section}.{field}={before!r}, and this run has {after!r}")
    return problems
