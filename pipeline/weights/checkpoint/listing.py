"""The names in a run's `checkpoints/`: which belong to the run, which a killed save has left, and how they go.

    step_00001000                 a checkpoint; nothing else has such a name
    .step_00001000.*.partial      a save that is not finished, or was killed
    .step_00001000.*.deleted      a deletion that is not finished, or was killed

Only folders with exactly these names belong to the run. Everything else there is somebody else's: it is never read,
never deleted, and in nobody's way. A link to a folder is between the two. The run continues from it, since whoever
needs room moves checkpoints to another disk, but it is never deleted.
"""

import os
import re
import shutil
import uuid
from pathlib import Path

from pipeline.config.schema import CheckpointConfig
from pipeline.runtime.logs import logger

_CHECKPOINT = re.compile(r"step_([0-9]{8}|[1-9][0-9]{8,17})")  # at least eight digits, as `path_of` writes them
_LEFT = re.compile(rf"\.{_CHECKPOINT.pattern}(\..+)?\.(partial|deleted)")


def path_of(directory: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` steps in the folder `directory`."""
    return directory / f"step_{step:08d}"


def step_of(path: Path) -> int | None:
    """Return the step that a checkpoint's name tells, or None if no checkpoint has this name."""
    found = _CHECKPOINT.fullmatch(path.name)
    return int(found[1]) if found else None


def checkpoints_in(directory: Path) -> list[Path]:
    """Return the folders in `directory` that are named like checkpoints, newest first; damaged ones and links too."""
    found = [(step, path) for path in _folders_in(directory) if (step := step_of(path)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def partial_of(checkpoint: Path, *, launch: str) -> Path:
    """Return the folder that becomes `checkpoint` when it is complete; no other launch uses it."""
    return checkpoint.with_name(f".{checkpoint.name}.{launch}.partial")


def remove_leftovers(directory: Path) -> None:
    """Delete what killed saves and deletions have left in `directory`; only one process may save there."""
    for path in _folders_in(directory):
        if _LEFT.fullmatch(path.name) and not path.is_symlink():
            _delete(path)


def make_way(checkpoint: Path) -> None:
    """Free the name of a checkpoint: delete an earlier one, which is damaged; move anything else aside, with a warning.

    Raises:
        OSError: the folder cannot be written.
    """
    if _is_own(checkpoint):
        remove_folder(checkpoint)
    elif os.path.lexists(checkpoint):
        aside = checkpoint.with_name(f"{checkpoint.name}.aside-{uuid.uuid4().hex[:8]}")
        checkpoint.rename(aside)
        logger.warning(
            "%s was in the way of a checkpoint and no checkpoint of this run; it is now %s", checkpoint, aside
        )


def prune_checkpoints(directory: Path, *, newest: Path, policy: CheckpointConfig) -> None:
    """Delete all checkpoints but the last `keep` up to `newest`, and those that `keep_every_steps` keeps for good.

    `newest` was just saved. Checkpoints of later steps are damaged, or the run would have continued from them, so they
    are deleted too. A checkpoint that cannot be deleted is left, with a warning. Links are left too.
    """
    own = {path: step_of(path) or 0 for path in checkpoints_in(directory) if _is_own(path)}
    up_to_newest = [path for path, step in own.items() if step <= own[newest]]
    kept = set(up_to_newest[: policy.keep])
    if policy.keep_every_steps:
        kept |= {path for path in up_to_newest if own[path] % policy.keep_every_steps == 0}
    for path in own.keys() - kept:
        try:
            remove_folder(path)
        except OSError as error:
            logger.warning("%s cannot be deleted: %s", path, error.strerror)


def remove_folder(checkpoint: Path) -> None:
    """Delete a checkpoint; it is renamed first, so that a deletion that is killed leaves no damaged checkpoint.

    Raises:
        OSError: it cannot be renamed.
    """
    doomed = checkpoint.with_name(f".{checkpoint.name}.{uuid.uuid4().hex[:8]}.deleted")
    checkpoint.rename(doomed)
    _delete(doomed)


def _folders_in(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_own(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _delete(folder: Path) -> None:
    """Delete a folder; what cannot be deleted is left for the next save, with a warning."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        logger.warning("%s cannot be deleted: %s", folder, error.strerror)
