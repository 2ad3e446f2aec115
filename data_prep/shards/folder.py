"""The folder that write_shards writes to: which runs may write into it, and its plan while it is unfinished.

    DIR/train/part-00000/shard.00000.mds ...   written by workers (`part_writer`)
    DIR/train/index.json                       the indexes of all parts, merged, as streaming reads them
    DIR/val/...                                the same for the other split
    DIR/tokenizer.model                        the SentencePiece model, unless the tokens are bytes
    DIR/report.json                            what was kept and dropped (`tally`)
    DIR/metadata.json                          written last: a folder that has it is finished
    DIR/work/                                  plan.json and the marks of finished parts; removed at the end

A folder belongs to one identity (`identity`) for good. A run with another identity is refused; nothing is overwritten.

Several runs may write to one folder, each a share of the parts (`RunShare`), on any machines that see it. The first run
writes the plan, and the others compare theirs with it. All runs lock the same file: a run that writes a share locks the
byte at the index of each of its parts, and a run that writes or finishes everything locks the whole file. So two runs
that would write the same part exclude each other, whatever shares they have. The locks are POSIX locks because network
file systems support them, and because they end with the process.
"""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.command_line import UserError, say
from common.files import partial_path, write_json, write_text
from common.s3 import S3Path
from common.shard_format import METADATA, TOKENIZER_MODEL
from common.small_files import read_small_file
from common.tokenizers import BYTES
from data_prep.shards.identity import Identity, checked_plan, read_json, refuse_difference, refuse_link
from data_prep.shards.parts import WORK_FOLDER, Part, RunShare
from data_prep.workers import write_problem

_LOCK = ".lock"
_PLAN = "plan.json"
_SPOILED = "spoiled.txt"
_MOST_MODEL_BYTES = 256 << 20
_SHARES_MARK = re.compile(r"shares-of-[1-9]\d{0,5}")


@contextmanager
def locked(out: Path, parts: Sequence[Part] | None = None) -> Iterator[None]:
    """Lock these parts of the folder for this process, or the whole folder; make the folder if it is missing.

    Raises:
        UserError: another process has locked one of them, or the folder cannot be made or, later, written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise UserError(f"cannot write to --out {out}: {error.strerror}") from error
    try:
        _lock(descriptor, out, parts)
        yield
    except OSError as error:
        if (problem := write_problem(error)) is None:
            raise
        raise UserError(f"cannot write to --out {out}: {problem}") from error
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path, parts: Sequence[Part] | None) -> None:
    ranges = [(0, 0)] if parts is None else [(1, part.index) for part in parts]  # a length of 0 is the whole file
    try:
        for length, start in ranges:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except (BlockingIOError, PermissionError) as error:
        raise UserError(
            f"another write_shards is writing to {out}, or to the same share of it; wait until it ends, or choose"
            " another --out"
        ) from error
    except OSError as error:
        say(
            f"warning: {out} is on a file system without locks: {error.strerror}; do not start the same run twice",
        )


def is_finished(out: Path | S3Path, identity: Identity) -> bool:
    """Return whether `out`, on a disk or in S3, holds finished shards of this identity.

    Raises:
        UserError: it holds finished shards of another identity; the message says what differs.
    """
    metadata = read_json(out / METADATA)
    if metadata is None:
        return False
    refuse_difference(metadata, identity, out=out, state="was finished")
    if isinstance(out, Path):  # in case a run was killed after it wrote metadata.json
        shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return True


def claim(
    out: Path,
    identity: Identity,
    parts: Sequence[Part],
    *,
    share: RunShare,
    model: Path | None,
    facts: Mapping[str, Any],
) -> None:
    """Write the plan of this run into an empty folder, or continue an unfinished one that has the same plan.

    Args:
        out: the folder; this run has locked the parts of its share.
        identity: the identity of the shards to write.
        parts: all parts of the corpus, not just those of this share.
        share: the parts that this run writes.
        model: the SentencePiece model, which is copied into the work folder and read from there, because the file may
            change, or not exist where other shares and the last step run.
        facts: further entries of the plan, for the last step (`merge.plan_facts`).

    Raises:
        UserError: the folder holds something else.
    """
    work = out / WORK_FOLDER
    plan = {**identity, "listing": {part.name: _listing_summary(part) for part in parts}, **facts}
    # list the folder before reading the plan: other shares write their files after the plan
    foreign = sorted({path.name for path in out.iterdir()} - {_LOCK, WORK_FOLDER})
    refuse_link(work)
    if read_json(work / _PLAN) is None:
        if foreign:
            raise UserError(
                f"--out {out} is not empty, and does not hold shards (it holds {foreign[0]}); choose another folder"
            )
        work.mkdir(exist_ok=True)
        if model is not None:
            copied = partial_path(work / TOKENIZER_MODEL)
            shutil.copyfile(model, copied)
            copied.replace(work / TOKENIZER_MODEL)
        _create_json(work / _PLAN, plan)
    refuse_difference(read_plan(out), plan, out=out, state="holds an unfinished run")
    tokenizer_model(out, plan)
    (work / f"shares-of-{share.total}").touch()
    for part in share.of(parts):
        for staging in work.glob(f"{part.name}.staging-*"):  # left by killed workers
            shutil.rmtree(staging)


def read_plan(out: Path) -> dict[str, Any]:
    """Return the plan of an unfinished folder: its identity, `listing` with an entry for each part, and the facts.

    Raises:
        UserError: there is no plan, it is damaged, or a share found that the shards written so far may be wrong.
    """
    refuse_link(out / WORK_FOLDER)
    path, spoiled = out / WORK_FOLDER / _PLAN, out / WORK_FOLDER / _SPOILED
    plan = read_json(path)
    if plan is None:
        raise UserError(
            f"{out} holds no shards, finished or unfinished; give the folder that write_shards got as --out"
        )
    if spoiled.exists():
        reason = read_small_file(spoiled).decode(errors="replace")
        raise UserError(f"{out} cannot be continued: {reason}")
    return checked_plan(plan, path=path)


def tokenizer_model(out: Path, plan: Mapping[str, Any]) -> bytes | None:
    """Return the SentencePiece model in the work folder, or None if the tokens are bytes.

    Raises:
        UserError: it is not that of the plan.
    """
    if plan["tokenizer"]["kind"] == BYTES:
        return None
    path = out / WORK_FOLDER / TOKENIZER_MODEL
    refuse_link(path)
    content = read_small_file(path, most_bytes=_MOST_MODEL_BYTES)
    if hashlib.sha256(content).hexdigest() != plan["tokenizer"]["sha256"]:
        raise UserError(f"{path} is not the tokenizer of these shards; copy the model of --tokenizer there")
    return content


def shares_with(out: Path, parts: Sequence[int]) -> str:
    """Return which shares write these parts, in the latest division by --part; "" if the folder has no shares."""
    marks = [path for path in (out / WORK_FOLDER).iterdir() if _SHARES_MARK.fullmatch(path.name)]
    latest = max(marks, key=lambda path: path.lstat().st_mtime_ns, default=None)
    total = 1 if latest is None else int(latest.name.rpartition("-")[2])
    return " ".join(f"{number}/{total}" for number in sorted({index % total + 1 for index in parts}) if total > 1)


def spoil(out: Path, reason: str) -> None:
    """Make all shares, and the last step, refuse the folder from now on; what was written stays."""
    write_text(out / WORK_FOLDER / _SPOILED, reason)


def _listing_summary(part: Part) -> str:
    """Return a hash of a part's pieces and a few words on them, for the message when two machines see other files."""
    listing = hashlib.sha256(repr(part).encode()).hexdigest()
    return f"{listing[:16]}: {len(part.pieces)} from {part.pieces[0].path}"


def _create_json(path: Path, value: Any) -> None:
    """Write a whole file unless it exists: if several runs try at once, one wins, also on network file systems."""
    mine = partial_path(path)
    write_json(mine, value)
    try:
        os.link(mine, path)
    except FileExistsError:
        pass
    except OSError:  # the file system has no hard links
        mine.replace(path)
    mine.unlink(missing_ok=True)
