"""Run generated programs, which may do anything, where they can do no harm, and learn whether they pass their checks.

Every program gets processes of its own (`sandbox_init.py` is what they run): new namespaces, in which there is no
network, nobody else's process, and no file to write but in a small folder that vanishes; no privileges, and limits on
time, memory, files and processes. A machine that forbids namespaces has the limits alone, which must be allowed.

A program has passed when its process sends back a random proof, which it can read only after the last check: to exit
early, or to print "passed", is to fail. It is not proof against programs written to forge it.
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
# Where a machine keeps sockets, secrets and people's files; /tmp becomes the program's folder. The interpreter is shown
# again if it is in one of them.
_HIDDEN = ("/dev", "/home", "/media", "/mnt", "/proc", "/root", "/run", "/srv", "/sys", "/var")
_FINISH_S = 60  # what an overloaded machine may take beyond a program's time to start and end it


class Isolation(Enum):
    """What keeps a program from doing harm; the value says it to people."""

    FULL = "network, files, processes, user, limits of time, memory, file size and processes"
    WEAK = "limits of time, memory, file size and processes; NOT the network, NOT files"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use.

    timeout_s: wall time, with the start of its interpreter.
    memory_MiB: address space of each of its processes.
    folder_MiB: files in its working folder; also the most for one file.
    max_tasks: processes and threads besides it.
    max_open_files: per process.
    """

    timeout_s: float = 3.0
    memory_MiB: int = 1024
    folder_MiB: int = 64
    max_tasks: int = 32
    max_open_files: int = 64


@dataclass(frozen=True, kw_only=True)
class ProgramResult:
    """What became of a program.

    outcome: passed, failed (an exception, or it exited early), timed out, out of memory, or killed (by a signal).
    detail: the exception, the exit code or the signal; empty if the outcome says it all.
    """

    outcome: str
    detail: str = ""


class SandboxError(RuntimeError):
    """The sandbox itself does not work: nothing is known of the program."""


def find_isolation(*, allow_weak: bool) -> Isolation:
    """Return the strongest isolation that works on this machine, tried out on a program.

    Raises:
        UserError: only a weak one does, and that is not allowed, or none.
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
        "; Linux 5.12 or newer and the right to make namespaces (root, or user namespaces) are needed; in a container "
        "or virtual machine that you can afford to lose, --allow_weak_sandbox runs generated programs within "
        f"{Isolation.WEAK.value}"
    )  # fmt: skip
    raise UserError(f"generated programs cannot be isolated here: {'; '.join(problems)}{advice}")


def run_program(program: str, checks: str, *, isolation: Isolation, limits: Limits) -> ProgramResult:
    """Run a program, then its checks in the same module, and return what became of them when nothing of it is left.

    Raises:
        SandboxError: the sandbox does not work.
    """
    proof = secrets.token_hex(16).encode()
    ours, theirs = socket.socketpair()
    with ours, theirs, os.fdopen(os.memfd_create("program"), "r+b") as source:
        ours.send(proof)
        source.write(f"{program}\0{checks}".encode("utf-8", "surrogatepass"))  # no Python source holds a NUL
        source.seek(0)
        report = _supervised(source, theirs, isolation, limits)
        ours.setblocking(False)
        try:
            message = ours.recv(4096)
        except BlockingIOError:
            message = b""
        return _result(message, proof=proof, report=report)


def _supervised(source: BinaryIO, channel: socket.socket, isolation: Isolation, limits: Limits) -> dict[str, int]:
    """Run `sandbox_init` to its end, and return how it says that the program ended; empty if it was killed."""
    settings = json.dumps(_settings(isolation, limits, channel=channel.fileno()))
    process = subprocess.Popen(
        [os.path.realpath(sys.executable), "-s", "-S", "-P", "-B", str(_INIT), settings],
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[channel.fileno()],
        # clusters load interpreters as modules that need this to find their libraries; nothing else gets through
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
    if process.returncode and isolation is Isolation.FULL:  # not by the program, which cannot reach it
        raise SandboxError(f"the program's supervisor ended with {process.returncode}; the machine may lack memory")
    return json.loads(report or "{}")


def _settings(isolation: Isolation, limits: Limits, *, channel: int) -> dict[str, object]:
    """Return what `sandbox_init` is told."""
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
            "RLIMIT_CPU": math.ceil(limits.timeout_s) + 1,  # wall time is the measure; this ends what escapes it
            "RLIMIT_FSIZE": limits.folder_MiB * _MIB,
            "RLIMIT_NOFILE": limits.max_open_files,
        },
    }


def _hidden_folders(home: Path) -> list[str]:
    """Return the folders that no program sees, this user's own among them."""
    is_hidden_already = any(home.is_relative_to(folder) for folder in (*_HIDDEN, "/tmp"))
    return [*_HIDDEN] if is_hidden_already or home == Path("/") else [*_HIDDEN, str(home)]


def _result(message: bytes, *, proof: bytes, report: dict[str, int]) -> ProgramResult:
    """Return what the program's message and the supervisor's report, empty if it was killed, mean."""
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
