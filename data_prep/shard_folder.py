"""The output folder of write_shards: who may write into it, when it counts as finished, what its root holds.

    DIR/train/part-00000/shard.00000.mds ...   written by workers (`part_writer`)
    DIR/train/index.json                       the parts' indexes merged, which streaming reads
    DIR/val/...                                the same
    DIR/tokenizer.model                        the SentencePiece model, if it is one
    DIR/metadata.json                          written last: where it is, all else is
    DIR/work/                                  plan.json and the marks of finished parts, while unfinished

An *identity* is all that decides which bytes are written: format, arguments, tokenizer, sources. A folder belongs to
one identity for good; another one is refused, never overwritten.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock

from common.command_line import UserError
from common.files import write_json
from data_prep.part_writer import SPLITS, WORK_FOLDER, Part

FORMAT_VERSION = 1
METADATA = "metadata.json"
TOKENIZER_MODEL = "tokenizer.model"
INDEX = "index.json"
_LOCK = ".lock"
_PLAN = "plan.json"
_COMPARED = {"format_version", "tokenizer", "sources", "listing", "arguments"}  # the rest follows from these

Identity = dict[str, Any]


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder for this process, which the kernel ends with it, kill -9 or not; make it if it is missing.

    Raises:
        UserError: another run holds it, or it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / _LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"another write_shards is writing to {out}; wait for it, or choose another --out") from error
    except OSError as error:
        raise UserError(f"cannot write to --out {out}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def is_finished(out: Path, identity: Identity) -> bool:
    """Return whether `out` holds finished shards of this identity.

    Raises:
        UserError: it holds finished shards of another identity; the message says what differs.
    """
    metadata = _read_json(out / METADATA)
    if metadata is None:
        return False
    _refuse_difference(metadata, identity, out=out, state="was finished")
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)  # a run killed after its last word
    return True


def claim(out: Path, identity: Identity, parts: Sequence[Part]) -> None:
    """Mark an empty folder as this run's, or take up an unfinished one of the same identity and the same files.

    Raises:
        UserError: the folder holds something else.
    """
    listing = json.dumps([asdict(part) for part in parts]).encode()
    plan = identity | {"listing": {"sha256": hashlib.sha256(listing).hexdigest()}}
    found = _read_json(out / WORK_FOLDER / _PLAN)
    if found is not None:
        _refuse_difference(found, plan, out=out, state="holds an unfinished run")
        for staging in (out / WORK_FOLDER).glob("*.staging-*"):  # of killed workers
            shutil.rmtree(staging)
        return
    strangers = sorted({path.name for path in out.iterdir()} - {_LOCK, WORK_FOLDER})
    if strangers:
        raise UserError(f"--out {out} is not empty and no shards of ours (it holds {strangers[0]}); choose another")
    (out / WORK_FOLDER).mkdir(exist_ok=True)
    write_json(out / WORK_FOLDER / _PLAN, plan)


def finish(out: Path, metadata: dict[str, Any], *, parts: Sequence[Part], tokenizer_model: Path | None) -> None:
    """Merge the indexes, copy the tokenizer's model, and write metadata.json, in this order."""
    for split in metadata["splits"]:
        write_json(out / split / INDEX, _merged_index(out / split, parts))
    if tokenizer_model is not None:
        shutil.copyfile(tokenizer_model, out / TOKENIZER_MODEL)
    write_json(out / METADATA, metadata)
    shutil.rmtree(out / WORK_FOLDER)


def abandon(out: Path) -> None:
    """Remove what an unfinished run wrote."""
    for name in (*SPLITS, WORK_FOLDER):
        shutil.rmtree(out / name, ignore_errors=True)


def _merged_index(folder: Path, parts: Sequence[Part]) -> dict[str, Any]:
    """The shards of all parts in order, their file names now relative to the split's folder."""
    shards = []
    for part in parts:
        for shard in json.loads((folder / part.name / INDEX).read_text(encoding="utf-8"))["shards"]:
            for key in ("raw_data", "zip_data"):
                if shard[key]:
                    shard[key]["basename"] = f"{part.name}/{shard[key]['basename']}"
            shards.append(shard)
    return {"version": 2, "shards": shards}


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}); it was damaged: delete the folder, or choose another"
        ) from error
    return value


def _refuse_difference(found: dict[str, Any], wanted: dict[str, Any], *, out: Path, state: str) -> None:
    differences = [
        f"{key} {_short(old)} there, {_short(new)} now"
        for name in wanted.keys() & _COMPARED
        for key, old, new in _differences(name, found.get(name), wanted[name])
    ]
    if differences:
        raise UserError(
            f"{out} {state} with other arguments: {'; '.join(sorted(differences))}; choose another --out, or delete it"
        )


def _differences(name: str, found: Any, wanted: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                yield f"{name}.{key}" if name != "arguments" else f"--{key}", found.get(key), wanted.get(key)
    elif found != wanted:
        yield name, found, wanted


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else f"{text[:77]}...{text[-77:]}"
