"""The output folder of write_shards: who may write into it, when it counts as finished, what its root holds.

    DIR/train/part-00000/shard.00000.mds ...   written by workers (`part_writer`)
    DIR/train/index.json                       the parts' indexes merged, which streaming reads
    DIR/val/...                                the same
    DIR/tokenizer.model                        the SentencePiece model, if it is one
    DIR/metadata.json                          written last: where it is, all else is
    DIR/work/                                  plan.json and the marks of finished parts, while unfinished

An *identity* is all that decides which bytes are written: format, arguments, tokenizer, sources. A folder belongs to
one identity for good; another one is refused, never overwritten.

Parts are written by *shares*, each a run by itself, on any machine that sees the folder. The first to come writes the
plan, and the others compare theirs with it. A run locks, in one file, the byte whose number is that of each of its
parts (POSIX locks: network file systems know them, and they end with the process); what finishes the folder locks the
whole file. So any two runs that would write the same are refused, however they were cut.
"""

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command_line import UserError
from common.files import write_json
from common.s3 import S3Path
from data_prep.shards.part_writer import SPLITS, WORK_FOLDER, Part
from data_prep.workers import WRITE_ERRORS

FORMAT_VERSION = 1
METADATA = "metadata.json"
TOKENIZER_MODEL = "tokenizer.model"
INDEX = "index.json"
_LOCK = ".lock"
_PLAN = "plan.json"
_SPOILED = "spoiled.txt"
_COMPARED = {"format_version", "tokenizer", "sources", "listing", "arguments"}  # the rest follows from these
_MOST_SHOWN = 6  # differences; one file more shifts all parts after it

Identity = dict[str, Any]


@dataclass(frozen=True)
class Share:
    """The `number`-th of `total` shares of a corpus, counted from 1: every `total`-th part."""

    number: int = 1
    total: int = 1

    @property
    def is_whole(self) -> bool:
        return self.total == 1

    def of(self, parts: Sequence[Part]) -> Sequence[Part]:
        """Return this share's parts, in order; none if there are fewer parts than shares."""
        return parts[self.number - 1 :: self.total]

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


@contextmanager
def locked(out: Path, parts: Sequence[Part] | None = None) -> Iterator[None]:
    """Hold these parts of the folder for this process, or all of it; make it if it is missing.

    Raises:
        UserError: another process holds one of them; or the folder cannot be made, or not be written meanwhile.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write to --out {out}: {error.strerror}") from error
    try:
        _lock(descriptor, out, parts)
        yield
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        raise UserError(
            f"cannot write to --out {out}: {error.strerror}; make room, and the same command continues it"
        ) from error
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path, parts: Sequence[Part] | None) -> None:
    places = [(0, 0)] if parts is None else [(1, part.index) for part in parts]  # a length of 0 is all there can be
    try:
        for length, start in places:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except (BlockingIOError, PermissionError) as error:
        raise UserError(
            f"another write_shards is writing to {out}, or to the same share of it; wait for it, or choose another"
            " --out"
        ) from error
    except OSError as error:
        print(f"warning: {out} is on a file system without locks ({error.strerror}): start nothing twice", flush=True)


def is_finished(out: Path | S3Path, identity: Identity) -> bool:
    """Return whether `out`, on a disk or in S3, holds finished shards of this identity.

    Raises:
        UserError: it holds finished shards of another identity; the message says what differs.
    """
    metadata = read_json(out / METADATA)
    if metadata is None:
        return False
    refuse_difference(metadata, identity, out=out, state="was finished")
    if isinstance(out, Path):
        shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)  # a run killed after its last word
    return True


def claim(
    out: Path,
    identity: Identity,
    parts: Sequence[Part],
    *,
    share: Share,
    tokenizer_model: Path | None,
    facts: Mapping[str, Any],
) -> None:
    """Plan an empty folder as this run's, or take up an unfinished one of the same identity and the same files.

    Args:
        out: the folder; this run holds its share's parts.
        identity: what decides which bytes are written.
        parts: all of the corpus, this share's and others'.
        share: which of them are this run's.
        tokenizer_model: kept with the plan for `finish`, which may run where the file is not.
        facts: what else `finish` needs to know, kept with the plan too.

    Raises:
        UserError: the folder holds something else.
    """
    work = out / WORK_FOLDER
    plan = {**identity, "listing": {part.name: _described(part) for part in parts}, **facts}
    # in this order: what other shares write comes after their plan
    strangers = sorted({path.name for path in out.iterdir()} - {_LOCK, WORK_FOLDER})
    if read_json(work / _PLAN) is None:
        if strangers:
            raise UserError(f"--out {out} is not empty and no shards of ours (it holds {strangers[0]}); choose another")
        work.mkdir(exist_ok=True)
        if tokenizer_model is not None:
            copied = work / f"{TOKENIZER_MODEL}.{uuid.uuid4().hex}"
            shutil.copyfile(tokenizer_model, copied)
            copied.replace(work / TOKENIZER_MODEL)
        _create_json(work / _PLAN, plan)
    refuse_difference(read_plan(out), plan, out=out, state="holds an unfinished run")
    (work / f"shares-of-{share.total}").touch()
    for part in share.of(parts):
        for staging in work.glob(f"{part.name}.staging-*"):  # of killed workers
            shutil.rmtree(staging)


def read_plan(out: Path) -> dict[str, Any]:
    """Return the plan of an unfinished folder: its identity, `listing` with an entry for each part, and the facts.

    Raises:
        UserError: there is none, or a share found that what was written cannot be trusted.
    """
    plan = read_json(out / WORK_FOLDER / _PLAN)
    if plan is None:
        raise UserError(f"{out} holds no shards of write_shards, finished or not; give the folder of its --out")
    with suppress(FileNotFoundError):
        reason = (out / WORK_FOLDER / _SPOILED).read_text(encoding="utf-8")
        raise UserError(f"{out} must be deleted and written again: {reason}")
    return plan


def shares_with(out: Path, parts: Sequence[int]) -> str:
    """Return which shares have these parts, as --part was last given; "" if the folder was not written in shares."""
    marks = sorted((out / WORK_FOLDER).glob("shares-of-*"), key=lambda path: path.stat().st_mtime_ns)
    total = int(marks[-1].name.rpartition("-")[2]) if marks else 1
    return " ".join(f"{number}/{total}" for number in sorted({index % total + 1 for index in parts}) if total > 1)


def finish(out: Path, metadata: dict[str, Any], *, parts: Sequence[Part]) -> None:
    """Merge the indexes, copy the tokenizer's model, and write metadata.json, in this order."""
    for split in metadata["splits"]:
        write_json(out / split / INDEX, _merged_index(out / split, parts))
    if (out / WORK_FOLDER / TOKENIZER_MODEL).exists():
        shutil.copyfile(out / WORK_FOLDER / TOKENIZER_MODEL, out / TOKENIZER_MODEL)
    write_json(out / METADATA, metadata)
    shutil.rmtree(out / WORK_FOLDER)


def spoil(out: Path, reason: str) -> None:
    """Make every share, and what would finish the folder, refuse it from now on; others may be writing to it."""
    (out / WORK_FOLDER / _SPOILED).write_text(reason, encoding="utf-8")


def abandon(out: Path) -> None:
    """Remove what an unfinished run wrote."""
    for name in (*SPLITS, WORK_FOLDER):
        shutil.rmtree(out / name, ignore_errors=True)


def _merged_index(folder: Path, parts: Sequence[Part]) -> dict[str, Any]:
    """The shards of all parts in order, their file names now relative to the split's folder."""
    shards = []
    for part in parts:
        index = read_json(folder / part.name / INDEX)
        if index is None:
            mark = folder.parent / WORK_FOLDER / f"{part.name}.json"
            raise UserError(f"{folder / part.name} is gone; delete {mark}, and run the same command again")
        for shard in index["shards"]:
            for key in ("raw_data", "zip_data"):
                if shard[key]:
                    shard[key]["basename"] = f"{part.name}/{shard[key]['basename']}"
            shards.append(shard)
    return {"version": 2, "shards": shards}


def _described(part: Part) -> str:
    """Return what a part's listing was, short enough to be read when two machines differ."""
    listing = hashlib.sha256(repr(part).encode()).hexdigest()
    return f"{listing[:16]}: {len(part.pieces)} from {part.pieces[0].path}"


def _create_json(path: Path, value: Any) -> None:
    """Write a file whole, unless it is there already: of many that try, one wins, on network file systems too."""
    mine = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    write_json(mine, value)
    try:
        os.link(mine, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        mine.replace(path)
    mine.unlink(missing_ok=True)


def read_json(path: Path | S3Path) -> dict[str, Any] | None:
    """Return what a file of ours says, or None if it is not there.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        value: Any = json.loads(stored)
        if not isinstance(value, dict):
            raise ValueError(f"{str(value)[:40]!r} is no object")
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON of ours ({error}); it was damaged: delete the folder, or choose another"
        ) from error
    return value


def refuse_difference(found: dict[str, Any], wanted: dict[str, Any], *, out: Path | S3Path, state: str) -> None:
    """Compare two identities, or two plans.

    Raises:
        UserError: they differ; the message says where.
    """
    differences = sorted(
        f"{key} {_short(old)} there, {_short(new)} now"
        for name in wanted.keys() & _COMPARED
        for key, old, new in _differences(name, found.get(name), wanted[name])
    )
    if differences:
        more = f"; and {len(differences) - _MOST_SHOWN} more" if len(differences) > _MOST_SHOWN else ""
        raise UserError(
            f"{out} {state} with other arguments: {'; '.join(differences[:_MOST_SHOWN])}{more}; choose another --out,"
            " or delete it"
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
