"""Run generated programs where they can do no harm, and find out whether they pass their checks.

Every program runs in its own processes (`sandbox_init.py`), in new namespaces: without network, without a view of other
processes, and with one small temporary folder as the only place to write. It has no privileges, and limits on time,
memory, files and processes. On a machine that forbids namespaces there are only the limits, which the user must allow.

A program has passed when its process sends back a random proof (`sandbox_program.py`). The proof and the checks come
only after the program's own code has ended, which that process confirms with a random key. So a program that exits
early, reads its descriptors, writes to all of them or replaces functions fails. Checks call the program's functions and
look at its objects, so they share a process with it: a program that searches the interpreter's frames for the key, or
whose objects claim to equal everything, can still pass.
"""

import json
import math
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from common.command_line import UserError
from pipeline.inference.evaluation.sandbox_init import descendants_of
from pipeline.inference.evaluation.seccomp import filter_program

_MIB = 1024**2
_INIT = Path(__file__).with_name("sandbox_init.py")
_PROGRAM = Path(__file__).with_name("sandbox_program.py")
# Programs see these folders of the root, and none with sockets, FIFOs, secrets or users' files; /tmp becomes the
# program's folder. The folders of the interpreter and its libraries are made visible again.
_VISIBLE = ("bin", "etc", "gnu", "lib", "lib32", "lib64", "libx32", "nix", "sbin", "tmp", "usr")
_POLL_S = 0.1
_N_OWN = 2  # init and the program; only further processes can take more than the limit of one
_MESSAGE_BYTES = 4096
_FINISH_S = 60  # time beyond a program's limit that an overloaded machine may need to start and end it


class Isolation(Enum):
    """The isolation of a program; the values are descriptions for users."""

    FULL = "network, files, processes, user, limits of time, memory, file size and processes"
    WEAK = "limits of time, memory, file size and processes; NOT the network, NOT files"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The resources that one program may use."""

    timeout_s: float = 3.0
    """Wall time, including the start of the interpreter."""
    memory_MiB: int = 1024
    """Address space of each process, and memory of all processes together."""
    folder_MiB: int = 64
    """Size of all files in the working folder, and of each of them."""
    max_tasks: int = 32
    """Additional processes and threads."""
    max_open_files: int = 64
    """Open files of each process."""


@dataclass(frozen=True, kw_only=True)
class ProgramResult:
    """The result of a program."""

    outcome: str
    """"passed", "failed" (by an exception or an early exit), "timed out", "out of memory" or "killed" (by a signal)."""
    detail: str = ""
    """The exception, the exit code or the signal, if there is one."""


class SandboxError(RuntimeError):
    """The sandbox itself does not work, so nothing is known about the program."""


def find_isolation(*, allow_weak: bool) -> Isolation:
    """Return the strongest isolation that works on this machine; runs a trivial program to find out.

    Raises:
        UserError: none works, or only the weak one does and `allow_weak` is off.
    """
    problems = []
    for isolation in (Isolation.FULL, Isolation.WEAK) if allow_weak else (Isolation.FULL,):
        try:
            result = run_program("x = 1", "assert x == 1", isolation=isolation, limits=Limits(timeout_s=_FINISH_S))
        except SandboxError as error:
            problems.append(str(error).splitlines()[-1])
            continue
        if result.outcome == "passed":
            return isolation
        problems.append(f"a trivial program {result.outcome} ({result.detail})")
    advice = "" if allow_weak else (
        "; this needs Linux 5.12 or newer and the right to create namespaces (as root, or with user namespaces); in a "
        "container or virtual machine that you can afford to lose, --allow_weak_sandbox runs generated programs with "
        f"{Isolation.WEAK.value}"
    )  # fmt: skip
    raise UserError(f"generated programs cannot be isolated here: {'; '.join(problems)}{advice}")


def weaknesses() -> list[str]:
    """Return what no isolation can do on this machine, a sentence each; usually nothing."""
    own = Path(f"/proc/{os.getpid()}")
    found = {
        f"there is no filter of system calls for {platform.machine()}: programs can use Unix sockets and keys, and take"
        " memory that does not count": not filter_program(),
        "the memory of a program's processes cannot be counted, so each process may take the whole limit": not all(
            path.is_file() for path in (own / "smaps_rollup", own / "task" / own.name / "children")
        ),
    }
    return [weakness for weakness, is_there in found.items() if is_there]


def run_program(
    program: str, checks: str, *, isolation: Isolation, limits: Limits, packages: Sequence[Path] = ()
) -> ProgramResult:
    """Run a program and then its checks in the same module; return the result after all its processes have ended.

    Args:
        program: the source of the program.
        checks: code that raises if the program is wrong.
        isolation: what isolates them.
        limits: the resources that they may use.
        packages: folders of packages that they may import, beside the standard library.

    Raises:
        SandboxError: the sandbox does not work.
    """
    key, proof = (secrets.token_hex(16).encode() for _ in range(2))
    messages: list[bytes] = []
    ours, theirs = socket.socketpair()
    with ours, os.fdopen(os.memfd_create("program"), "r+b") as program_file:
        ours.send(key)
        program_file.write(program.encode("utf-8", "surrogatepass"))
        program_file.seek(0)
        answers = proof + checks.encode("utf-8", "surrogatepass")
        partner = threading.Thread(target=lambda: messages.append(_converse(ours, key=key, answers=answers)))
        partner.start()
        try:
            settings = _settings(isolation, limits, channel=theirs.fileno(), packages=packages)
            report = _supervised(program_file, theirs, settings, isolation, limits)
        finally:
            theirs.close()
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)  # the partner still reads what has been sent
            partner.join()
        return _result(messages[0], proof=proof, report=report)


def _converse(ours: socket.socket, *, key: bytes, answers: bytes) -> bytes:
    """Send the proof and the checks once the key has come back; return what came instead of it, or after it."""
    message = b""
    with suppress(OSError):  # the program has ended
        while len(message) < len(key) and (part := ours.recv(len(key) - len(message))):
            message += part
        if message == key:
            message = b""
            ours.sendall(answers)
            ours.shutdown(socket.SHUT_WR)
        elif message:
            ours.shutdown(socket.SHUT_WR)
        while part := ours.recv(_MESSAGE_BYTES):
            message = (message + part)[:_MESSAGE_BYTES]
    return message


def _supervised(
    program_file: BinaryIO, channel: socket.socket, settings: dict[str, object], isolation: Isolation, limits: Limits
) -> dict[str, int]:
    """Run `sandbox_init` to its end, and return its report on how the program ended; empty if it was killed.

    Raises:
        SandboxError: `sandbox_init` failed or did not end.
    """
    process = subprocess.Popen(
        [os.path.realpath(sys.executable), "-s", "-S", "-P", "-B", str(_INIT), json.dumps(settings)],
        stdin=program_file,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[channel.fileno()],
        # an interpreter from a cluster's module system may need this to find its libraries; no other variable is passed
        env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
        cwd="/",
        start_new_session=True,
    )
    try:
        report, faults = _watched(process, limits)
    except _TooMuchMemoryError:
        process.kill()
        return {"out_of_memory": 1}
    except subprocess.TimeoutExpired:
        faults = b"the program's supervisor did not end"
    finally:
        process.kill()
        process.wait()
    if faults:
        raise SandboxError(faults.decode(errors="replace").strip())
    if process.returncode and isolation is Isolation.FULL:  # the program cannot have caused this
        raise SandboxError(f"the program's supervisor ended with {process.returncode}; the machine may lack memory")
    return json.loads(report or "{}")


class _TooMuchMemoryError(Exception):
    """The processes of a program together use more memory than its limit."""


def _watched(process: "subprocess.Popen[bytes]", limits: Limits) -> tuple[bytes, bytes]:
    """Wait for the supervisor, and count the memory of its descendants meanwhile; return what it has printed.

    The kernel limits each process; only of several can the sum be too large.

    Raises:
        subprocess.TimeoutExpired: the supervisor did not end.
        _TooMuchMemoryError: the processes use too much memory.
    """
    deadline_s = time.monotonic() + limits.timeout_s + _FINISH_S
    while True:
        try:
            return process.communicate(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline_s:
                raise
        programs = descendants_of(process.pid)
        if len(programs) > _N_OWN and sum(map(_memory_bytes, programs)) > limits.memory_MiB * _MIB:
            raise _TooMuchMemoryError


def _memory_bytes(pid: int) -> int:
    """Return the memory of a process; what it shares with others counts in proportion."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss:", "SwapPss:")))


def _settings(isolation: Isolation, limits: Limits, *, channel: int, packages: Sequence[Path]) -> dict[str, object]:
    """Return the settings for `sandbox_init`."""
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if os.path.isdir(path)]
    # wheels keep the libraries of a package beside it
    beside = [path for package in packages for path in (package, package.with_name(f"{package.name}.libs"))]
    return {
        "namespaces": isolation is Isolation.FULL,
        "parent_pid": os.getpid(),
        "channel": channel,
        "runner": _PROGRAM.read_text(encoding="utf-8"),
        "readable": [
            sys.base_prefix,
            *map(os.path.realpath, libraries),
            *(str(path) for path in beside if path.is_dir()),
        ],
        "hidden": _hidden_folders(Path.home()),
        "packages": [str(package) for package in packages],
        # threads of numpy's libraries would count as tasks
        "environment": {"OPENBLAS_NUM_THREADS": "1"} if packages else {},
        "filter": filter_program().hex(),
        "timeout_s": limits.timeout_s,
        "max_tasks": limits.max_tasks,
        "folder_bytes": limits.folder_MiB * _MIB,
        "limits": {
            "RLIMIT_AS": limits.memory_MiB * _MIB,
            "RLIMIT_CORE": 0,
            "RLIMIT_CPU": math.ceil(limits.timeout_s) + 1,  # wall time is the limit; this ends processes that escape it
            "RLIMIT_FSIZE": limits.folder_MiB * _MIB,
            "RLIMIT_NOFILE": limits.max_open_files,
        },
    }


def _hidden_folders(home: Path) -> list[str]:
    """Return the folders that are hidden from programs: this user's home, and those of the root not in `_VISIBLE`."""
    hidden = [str(path) for path in sorted(Path("/").iterdir()) if path.name not in _VISIBLE and not path.is_symlink()]
    is_hidden_already = any(home.is_relative_to(folder) for folder in (*hidden, "/tmp"))
    return hidden if is_hidden_already or home == Path("/") else [*hidden, str(home)]


def _result(message: bytes, *, proof: bytes, report: dict[str, int]) -> ProgramResult:
    """Return the result from the program's message and the supervisor's report, which is empty if it was killed."""
    if message == proof:
        return ProgramResult(outcome="passed")
    if report.get("out_of_memory"):
        return ProgramResult(outcome="out of memory", detail="of all processes together")
    if report.get("timed_out"):
        return ProgramResult(outcome="timed out")
    raised = " ".join(message.decode("utf-8", "replace").split())[:300]
    if raised:
        return ProgramResult(outcome="out of memory" if raised.startswith("MemoryError") else "failed", detail=raised)
    exit_code = report.get("exit_code", -signal.SIGKILL)
    if exit_code < 0:
        return ProgramResult(outcome="killed", detail=signal.Signals(-exit_code).name)
    return ProgramResult(outcome="failed", detail=f"exited with code {exit_code} before its checks ended")
