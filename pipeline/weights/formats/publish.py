"""Output folders of exports: what may be replaced, and how, so that at any moment the old or the new one is whole.

    .demo.partial-...     an export that is being written; if its process is killed, a later one removes it
    .demo.former          the earlier export, for the moment between two renames
    demo                  the export

Only an export that `pipeline.convert` wrote, and nobody changed, is ever replaced. If a conversion is killed between
the two renames, the next one into the same output puts the earlier export back first.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.command_line import UserError, say
from common.files import partial_path, sync_folder
from pipeline.weights.formats.record import RECORD, files_in, read_record

_STATE, _CHECKPOINTS, _RUN = "training_state.json", "checkpoints", "config.yaml"


def checked_output(output: Path, *, source: Path) -> Path:
    """Return the resolved path of an output folder that can be written, or replaced without any loss.

    If a killed conversion had moved an earlier export aside, it is put back first.

    Args:
        output: the folder, as the user named it.
        source: the model that is converted.

    Raises:
        UserError: it is no folder, holds something else than an export of ours, or belongs to the input or to a run.
    """
    try:
        folder = output.resolve()
        problem = _misplaced(folder, model=source.resolve())
        if problem is None:
            _restore(folder)
            problem = _occupied(folder)
    except (OSError, RuntimeError) as error:  # the name is too long, or its links go round in circles
        problem = f"cannot be used: {getattr(error, 'strerror', None) or error}"
    if problem is not None:
        raise UserError(f"--output {output} {problem}")
    return folder


def _misplaced(folder: Path, *, model: Path) -> str | None:
    """Return why nothing may be written at this place, or None."""
    elsewhere = "give a folder elsewhere"
    if folder == model:
        return f"is the input itself; {elsewhere}"
    if model.is_relative_to(folder):
        return f"holds the input; {elsewhere}"
    for outer in (folder, *folder.parents):
        if outer.name == _CHECKPOINTS and (outer.parent / _RUN).is_file():
            return f"lies among the checkpoints of the run {outer.parent}; {elsewhere}"
        if outer != folder and (outer / _STATE).is_file():
            return f"lies in the checkpoint {outer}; {elsewhere}"
    return None


def _occupied(folder: Path) -> str | None:
    """Return why a folder cannot be replaced, or None if it does not exist, is empty, or is an unchanged export."""
    if not os.path.lexists(folder):
        return None
    if not folder.is_dir():
        return "is a file; give a folder"
    names = sorted(os.listdir(folder))
    if not names:
        return None
    record = read_record(folder)
    if record is None:
        return f"holds {names[0]!r}, and no export of pipeline.convert; give a new or empty folder"
    found = files_in(folder)
    del found[RECORD]
    changed = [name for name, size in sorted(found.items()) if record.files.get(name) != size]
    if changed:
        return f"holds an export in which {changed[0]!r} was added or changed; move it away, or give a new folder"
    return None


@contextmanager
def published_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which replaces `folder` on success and is removed on failure.

    Args:
        folder: from `checked_output`.

    Raises:
        UserError: the folder cannot be created, or the disk is full.
    """
    partial, former = partial_path(folder), former_of(folder)
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.replace(former)
        partial.replace(folder)
        sync_folder(folder.parent)
        shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if former.exists() and not folder.exists():
            former.replace(folder)


def former_of(folder: Path) -> Path:
    """Return where an earlier export of `folder` is while a new one takes its place."""
    return folder.with_name(f".{folder.name}.former")


def _restore(folder: Path) -> None:
    """Undo what a conversion has left that was killed between its two renames, or just after them.

    Raises:
        OSError: a folder cannot be renamed.
    """
    former = former_of(folder)
    if not former.is_dir():
        return
    if os.path.lexists(folder):
        shutil.rmtree(former, ignore_errors=True)
    else:
        former.rename(folder)
        say(f"put {folder} back, which a killed conversion had moved aside", file=sys.stderr)
