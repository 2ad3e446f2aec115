"""The checkpoints of a run: saving in the background, finding the newest whole one, pruning.

    checkpoints/step_00001000/
        weights_and_moments/        fp32 weights and Adam's moments, one file of slices per rank (state.py)
        training_state.json         step, tokens, data position, health, resolved config
        manifest.json               size and hash of every file above; written last (manifest.py)

This is all that a run needs to continue exactly: weights, moments, the position of the data loader, and the recent
losses that spikes are compared with. The learning rate is a function of the step, and after initialisation only the
order of samples is random, which has its own seed. Nothing depends on the number of ranks or on how they share the
model, so a run can continue with another number of ranks, another ZeRO stage or another pipeline.

To save, the training thread copies the state into host memory, and a second thread writes it. Each rank writes its
part and hashes it. Rank 0 gathers the hashes, writes the manifest, renames the folder to its final name, and deletes
old checkpoints. The saves have their own gloo group, so they never mix with the collectives of training.
"""

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

from common.command_line import UserError, raise_if_any
from common.files import sync_folder, write_json
from common.small_files import read_json
from pipeline.config.schema import CheckpointConfig
from pipeline.runtime.collectives import from_every_rank, from_main
from pipeline.runtime.lease import Lease
from pipeline.runtime.logs import logger
from pipeline.runtime.world import World
from pipeline.weights.checkpoint import manifest
from pipeline.weights.checkpoint.files import METADATA, stored_files
from pipeline.weights.checkpoint.identity import changed_corpus, identity_problems, other_data_message
from pipeline.weights.checkpoint.listing import (
    checkpoints_in,
    make_way,
    partial_of,
    path_of,
    prune_checkpoints,
    remove_leftovers,
)
from pipeline.weights.checkpoint.state import HostCopies, Slice, save_state

STATE, SHARDED = "training_state.json", "weights_and_moments"

_SLOWEST_SAVE = timedelta(days=1)  # long, since it is the watchdog that notices a disk that hangs


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint: its folder and the contents of its training_state.json."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of optimizer steps it was saved after."""
        return self.state["step"]


class HoldsState(Protocol):
    """Whatever holds the weights and optimizer state of this rank."""

    def state(self, *, copies: HostCopies | None) -> dict[str, Slice]:
        """Return this rank's slices by weight and kind, copied into `copies` if given, else in shared memory."""
        ...


class CheckpointFolder:
    """A run's `checkpoints/` folder. Every rank must call each method."""

    def __init__(
        self, directory: Path, *, policy: CheckpointConfig, run_config: dict[str, Any], world: World, lease: Lease,
        corpus: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Create the process group and the writer thread of the saves; every rank must call it.

        Args:
            directory: the run's `checkpoints/`; must exist before the first save.
            policy: how checkpoints are written, and which of them are kept.
            run_config: the run's resolved config, which every checkpoint records and `find` compares.
            world: this rank's place among all.
            lease: the right to write into the run directory; each save checks it.
            corpus: from `shard_folder.corpus_of`, which every checkpoint records and `find` compares.
        """
        self._directory, self._policy, self._run_config, self._corpus = directory, policy, run_config, corpus
        self._world, self._lease = world, lease
        self._launch = from_main(lease.token)
        self._group = dist.new_group(backend="gloo", timeout=_SLOWEST_SAVE)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._copies = HostCopies() if policy.asynchronous else None
        self._pending: Future[str | None] | None = None

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, the same on every rank, or None; warn about damaged ones.

        Each rank verifies a share of the files.
        """
        candidates = checkpoints_in(self._directory) if self._world.is_main else []
        for path in from_main(candidates):
            damage = damage_of(path, share=self._world.rank, n_shares=self._world.world_size)
            damages = [damage for damage in from_every_rank(damage) if damage]
            if not damages:
                return read_checkpoint(path)
            if self._world.is_main:
                _warn_about_damage(path, damages[0])
        return None

    def find(self, *, resume: bool, other_data: bool = False) -> Checkpoint | None:
        """Return the checkpoint to continue from, the same on every rank, or None for a fresh run.

        Args:
            resume: if off, there must be none.
            other_data: go on although the shards are not those of the checkpoint; the checkpoint that is returned has
                no position in the data then.

        Raises:
            UserError: the newest checkpoint belongs to another run (lists every difference), or there is one although
                `resume` is off.
        """
        found = self.newest()
        if found is None:
            return None
        if not resume:
            raise UserError(f"--no-resume, but {found.path} exists; set another run.name, or delete the old run")
        problems = identity_problems(saved=found.state["config"], now=self._run_config)
        if "health" not in found.state:
            problems.append("it was written by an earlier version of this program")
        raise_if_any(problems, heading=f"cannot continue from {found.path}; set another run.name, or undo the change")
        changed = changed_corpus(saved=found.state.get("corpus"), now=self._corpus)
        if changed and not other_data:
            raise UserError(other_data_message(found.path, changed, saved=found.state["config"], now=self._run_config))
        return replace(found, state={**found.state, "data": None}) if changed else found

    def begin(self, step: int, *, engine: HoldsState, state: dict[str, Any]) -> None:
        """Copy the state after `step` steps, and start to write it; the previous save must be finished.

        Args:
            step: number of finished optimizer steps.
            engine: holds the weights and moments.
            state: further values for training_state.json, as JSON types.
        """
        assert self._pending is None
        parts = engine.state(copies=self._copies)
        state = {
            "step": step,
            "tokens": step * self._run_config["train"]["batch_tokens"],
            "config": self._run_config,
            "corpus": self._corpus,
            **state,
        }
        self._pending = self._writer.submit(self._write, path_of(self._directory, step), parts, state)

    @property
    def is_written(self) -> bool:
        """True if `finish()` would not block on this rank; other ranks may get there some steps later."""
        return self._pending is None or self._pending.done()

    @property
    def has_failed(self) -> bool:
        """True if this rank knows that the save failed; other ranks may learn it some steps later."""
        return self._pending is not None and self._pending.done() and self._pending.result() is not None

    def finish(self) -> str | None:
        """Wait for the current save, if there is one; return why it failed, the same on every rank, or None.

        A failed save leaves the earlier checkpoints untouched.
        """
        pending, self._pending = self._pending, None
        return pending.result() if pending is not None else None

    def _write(self, final: Path, parts: dict[str, Slice], state: dict[str, Any]) -> str | None:
        """Write the files and the manifest, and rename the folder; return what failed, or None.

        The result is the same on every rank.
        """
        start_s = time.perf_counter()
        partial = partial_of(final, launch=self._launch)

        def begin() -> None:
            self._lease.check()
            remove_leftovers(self._directory)
            partial.mkdir(parents=True)

        def end(entries: list[manifest.Entries]) -> None:
            write_json(partial / STATE, state)
            of_all = {name: entry for of_rank in entries for name, entry in of_rank.items()}
            manifest.write_manifest(
                partial, {**of_all, **manifest.entries_of(partial, [f"{SHARDED}/{METADATA}", STATE])}
            )
            self._lease.check()
            make_way(final)
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
        """Do a part of a save on every rank, or on rank 0 only; return the ranks' results, and the first failure."""
        result, failure = None, None
        try:
            if self._world.is_main or not only_main:
                result = part()
        except (OSError, CheckpointException) as error:
            failure = _one_line(error)
        results = from_every_rank((result, failure), group=self._group)
        return [result for result, _ in results], next((failure for _, failure in results if failure), None)


def _one_line(error: OSError | CheckpointException) -> str:
    """Return one line about an error, without the tracebacks of all ranks that torch adds."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {cause}"
    return str(error)


def seal_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Write training_state.json and then the manifest, which makes the folder a whole checkpoint."""
    write_json(directory / STATE, state)
    manifest.write_manifest(directory, manifest.entries_of(directory, manifest.files_in(directory)))


def damage_of(checkpoint: Path, *, share: int = 0, n_shares: int = 1) -> str | None:
    """Return what is wrong with a checkpoint, or None; see `manifest.damage_of`.

    Its manifest must list the state, and every file of the weights that their metadata names.

    Raises:
        UserError: a name leads out of the folder, or the metadata is not that of a checkpoint.
    """
    metadata = f"{SHARDED}/{METADATA}"
    damage = manifest.damage_of(checkpoint, needed=(STATE, metadata), share=share, n_shares=n_shares)
    if damage is not None:
        return damage
    parts = (f"{SHARDED}/{name}" for name in stored_files(checkpoint / SHARDED))
    return manifest.unlisted(manifest.read_entries(checkpoint), needed=parts)


def newest_whole_checkpoint(directory: Path) -> Path | None:
    """Return the newest checkpoint whose files all match its manifest, or None; warn about damaged ones."""
    for candidate in checkpoints_in(directory):
        damage = damage_of(candidate)
        if damage is None:
            return candidate
        _warn_about_damage(candidate, damage)
    return None


def _warn_about_damage(checkpoint: Path, damage: str) -> None:
    logger.warning("checkpoint %s is damaged: %s; looking for an older one", checkpoint, damage)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, which must be whole.

    Raises:
        UserError: its training_state.json is not like those that this project writes.
    """
    state = read_json(path / STATE)
    if (
        not isinstance(state, dict)
        or not isinstance(state.get("step"), int)
        or not isinstance(state.get("config"), dict)
    ):
        raise UserError(f"{path / STATE} does not hold the step and the config of a run; do not use this checkpoint")
    return Checkpoint(path=path, state=state)
