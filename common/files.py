"""Files that appear whole or not at all, names that must stay inside a folder, and files that survive faults.

Files that appear whole are written under another name in the same folder, flushed to disk, then renamed. A process that
is killed leaves such a name behind; the next process on the same machine that writes into the folder removes it.
"""

import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from common.command_line import UserError
from common.small_files import open_regular_file

PARTIAL_NAME = re.compile(r"\..*\.partial-(?P<machine>[0-9a-f]{8})-(?P<process>[1-9]\d{0,8})-[0-9a-f]{8}")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_MOST_OF_NAME = 40  # characters of a name that its partial name repeats: names have at most 255 bytes


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed to `path`, else removed."""
    partial = partial_path(path)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """Return a new name beside `path` for a file or folder that is not complete yet, unique across machines.

    What killed processes have left in the folder under such names is removed first.
    """
    remove_leftovers(path.parent)
    return path.with_name(f".{path.name[:_MOST_OF_NAME]}.partial-{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


@functools.cache
def remove_leftovers(folder: Path) -> None:
    """Remove what dead processes of this machine have left in a folder under partial names; once per process."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            named = PARTIAL_NAME.fullmatch(entry.name)
            if named is None or named["machine"] != _machine() or _is_alive(int(named["process"])):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):  # another process may have removed it
                    os.unlink(entry)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


@functools.cache
def _machine() -> str:
    """Return a name of what processes share whose numbers mean the same: the boot of a machine, and a container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink("/proc/self/ns/pid")
    except OSError:  # not on Linux
        boot = ""
    return hashlib.sha256(f"{socket.gethostname()} {boot}".encode()).hexdigest()[:8]


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON (`json_text`) to `path`, whole or not at all."""
    write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return JSON that every reader of UTF-8 accepts.

    Names of files and texts of records may hold lone surrogates, which become six characters such as \\udc80. Numbers
    that are not finite become null, and values without a JSON type strings.
    """
    try:
        text = json.dumps(value, indent=indent, default=_as_text, ensure_ascii=False, allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(value, default=_as_text), parse_constant=lambda _: None)
        text = json.dumps(finite, indent=indent, ensure_ascii=False)
    return _LONE_SURROGATE.sub(lambda found: rf"\\u{ord(found[0]):04x}", text)


def _as_text(value: Any) -> str:
    return value.decode("utf-8", errors="backslashreplace") if isinstance(value, bytes) else str(value)


def refuse_to_replace(path: Path, *, head: bytes, kind: str) -> None:
    """Refuse to write a file in the place of anything but an earlier one of the same kind, or an empty file.

    Args:
        path: the file to write.
        head: what files of the kind begin with.
        kind: the kind, as in "is not a picture".

    Raises:
        UserError: there is something else in its place, or its folder does not exist.
    """
    try:
        if not path.parent.is_dir():
            raise UserError(f"{path} cannot be written: there is no folder {path.parent}")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; choose another name")
        if path.exists():
            with open_regular_file(path, name=path) as file:
                found = file.read(len(head))
            if found not in (b"", head):
                raise UserError(f"{path} exists already, and is not {kind}; choose another name, or move it away")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def append_line(path: Path, line: str) -> None:
    """Append a line to `path`, and flush it to disk. If a killed process left its last line incomplete, end that first.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def inside(folder: Path, name: Any, *, named_in: str = "") -> Path:
    """Return the path of the file `name` in `folder` or below it, if the name comes from an untrusted file.

    Symbolic links are followed: they belong to the file system, and clusters store data behind them.

    Args:
        folder: the folder that the name is relative to.
        name: the name; may be any value that a file can hold.
        named_in: name of the file in `folder` that holds the name.

    Raises:
        UserError: the name is absolute, leads out of the folder, or is not a file name.
    """
    return folder / name_inside(name, named_in=folder / named_in)


def name_inside(name: Any, *, named_in: object) -> PurePosixPath:
    """Return a file name that was found in the file `named_in`, relative to that file's folder.

    Raises:
        UserError: the name is absolute, leads out of the folder, or is not a file name.
    """
    pure = PurePosixPath(name) if isinstance(name, str) and "\0" not in name else None
    if pure is None or not pure.parts or pure.is_absolute() or ".." in pure.parts:
        raise UserError(
            f"{named_in} names the file {name!r}, which is not a path inside that folder; do not use the files that"
            " came with it"
        )
    return pure


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a regular file's bytes.

    Raises:
        BadFileError: it cannot be opened, or is not a regular file.
    """
    with open_regular_file(path, name=path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(directory: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PatientFile:
    """Appends to a file; what the disk refuses stays in memory until it is accepted.

    Args:
        open_at: returns the path of the file, whose folder must exist. It is called before each attempt to open the
            file, and may prepare it.
    """

    def __init__(self, open_at: Callable[[], Path]) -> None:
        self._open_at = open_at
        self._file: IO[bytes] | None = None
        self._unwritten = b""

    def write(self, data: bytes) -> OSError | UserError | None:
        """Append; return the error because of which data has to wait, or None.

        If the process is killed, what it wrote last may be incomplete in the file.
        """
        self._unwritten += data
        try:
            if self._file is None:
                self._file = _opened_for_appending(self._open_at())
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except (OSError, UserError) as error:
            return error
        return None

    def close(self) -> OSError | UserError | None:
        """Try once more to write what waits, and close the file; return the error because of which the rest is lost."""
        error = self.write(b"") if self._unwritten else None
        if self._file is not None:
            self._file.close()
        return error


def _opened_for_appending(path: Path) -> IO[bytes]:
    """Open a file without waiting, as a FIFO would wait for its reader.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return open(descriptor, "ab", buffering=0)


def hold_lock(path: Path) -> str | None:
    """Try to lock `path` until this process ends; return None if that worked, else who holds the lock.

    Nothing is locked if the file system has no locks. Processes forked from this one do not hold the lock.
    """
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read().strip()
        file.close()
        return holder or "another process"
    except OSError:
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _LOCKS.append(file)
    return None


_LOCKS: list[IO[str]] = []  # kept open, because closing a file releases its lock
