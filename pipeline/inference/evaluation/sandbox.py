"""Run generated programs where they can do no harm, and find out whether they pass their checks.

Every program runs in its own processes (`sandbox_init.py`), in new namespaces: without network, without a view of other
processes, and with one small temporary folder as the only place to write. It has no privileges, and limits on time,
memory, files and processes. On a machine that forbids namespaces there are only the limits, which the user must allow.

A program has passed when its process sends back a random proof, which it can read only after the last check. So a
program that exits early, or prints "passed", fails. A program written to forge the proof could still do so.
"""

import json
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from common.command_line import UserError

_MIB = 1024**2
_INIT = Path(__file__).with_name("sandbox_init.py")
_PROGRAM = Path(__file__).with_name("sandbox_program.py")
# Folders with sockets, secrets and users' files; /tmp becomes the program's folder. If the interpreter is in one of
# them, its folder is made visible again.
_HIDDEN = ("/dev", "/home", "/media", "/mnt", "/proc", "/root", "/run", "/srv", "/sys", "/var")
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
    """Address space of each process."""
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


def run_program(program: str, checks: str, *, isolation: Isolation, limits: Limits) -> ProgramResult:
    """Run a program and then its checks in the same module; return the result after all its processes have ended.

    Raises:
        SandboxError: the sandbox does not work.
    """
    proof = secrets.token_hex(16).encode()
    ours, theirs = socket.socketpair()
    with ours, theirs, os.fdopen(os.memfd_create("program"), "r+b") as program_file:
        ours.send(proof)
        program_file.write(f"{program}\0{checks}".encode("utf-8", "surrogatepass"))  # no Python source holds a NUL
        program_file.seek(0)
        report = _supervised(program_file, theirs, isolation, limits)
        ours.setblocking(False)
        try:
            message = ours.recv(4096)
        except BlockingIOError:
            message = b""
        return _result(message, proof=proof, report=report)


def _supervised(program_file: BinaryIO, channel: socket.socket, isolation: Isolation, limits: Limits) -> dict[str, int]:
    """Run `sandbox_init` to its end, and return its report on how the program ended; empty if it was killed.

    Raises:
        SandboxError: `sandbox_init` failed or did not end.
    """
    settings = json.dumps(_settings(isolation, limits, channel=channel.fileno()))
    process = subprocess.Popen(
        [os.path.realpath(sys.executable), "-s", "-S", "-P", "-B", str(_INIT), settings],
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
        report, faults = process.communicate(timeout=limits.timeout_s + _FINISH_S)
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


def _settings(isolation: Isolation, limits: Limits, *, channel: int) -> dict[str, object]:
    """Return the settings for `sandbox_init`."""
    return {
        "namespaces": isolation is Isolation.FULL,
        "parent_pid": os.getpid(),
        "channel": channel,
        "runner": _PROGRAM.read_text(encoding="utf-8"),
        "readable": [sys.base_prefix],
        "hidden": _hidden_folders(Path.home()),
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
    """Return the folders that are hidden from programs, including this user's home."""
    is_hidden_already = any(home.is_relative_to(folder) for folder in (*_HIDDEN, "/tmp"))
    return [*_HIDDEN] if is_hidden_already or home == Path("/") else [*_HIDDEN, str(home)]


def _result(message: bytes, *, proof: bytes, report: dict[str, int]) -> ProgramResult:
    """Return the result from the program's message and the supervisor's report, which is empty if it was killed."""
    if message == proof:
        return ProgramResult(outcome="passed")
    if report.get("timed_out"):
        return ProgramResult(outcome="timed out")
    raised = " ".join(message.decode("utf-8", "replace").split())[:300]
    if raised:
        return ProgramResult(outcome="out of memory" if raised.startswith("MemoryError") else "failed", detail=raised)
    exit_code = report.get("exit_code", -signal.SIGKILL)
    if exit_code < 0:
        return ProgramResult(outcome="killed", detail=signal.Signals(-exit_code).name)
    return ProgramResult(outcome="failed", detail=f"exited with code {exit_code} before its checks ended")
