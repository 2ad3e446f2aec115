"""The inside of the sandbox: a script that uses only the standard library and is started anew for every program.

    supervisor     enters the namespaces, waits for at most the program's time limit, prints how the program ended
      └─ init      process 1 of the new pid namespace: builds the file system, reaps processes
          └─ program    without privileges, within its limits: sandbox_program.py

When process 1 of a pid namespace ends, the kernel ends all others in it, and only then can process 1 be reaped. So
nothing of the program is left once the supervisor has reaped init. Without namespaces, init adopts orphans instead and
kills its descendants; a program can evade this on purpose.

Only faults of the sandbox are written to standard error; the program cannot write there.
"""

import ctypes
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# From Linux's headers sched.h, mount.h, fcntl.h, prctl.h. System calls this recent have the same number everywhere.
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
AT_FDCWD, AT_RECURSIVE, OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = -100, 0x8000, 1, 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
MS_NOSUID, MS_NODEV, MS_PRIVATE = 2, 4, 1 << 18
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
SECCOMP_MODE_FILTER, KEYCTL_JOIN_SESSION_KEYRING = 2, 1
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}

NOBODY = 65534
# A range that is given neither to people nor to packages. Each program gets its own user, so that it cannot signal
# another program's processes, and they do not count for its limits.
FIRST_USER, N_USERS = 60_000, 5_000
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
WORKING_FOLDER = "/tmp"
Settings = dict[str, Any]
_libc = ctypes.CDLL(None, use_errno=True)


class FilterProgram(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def supervise(settings: Settings) -> None:
    """Run the program until it ends or its time is up; when nothing of it is left, print how it ended as JSON."""
    die_with_parent(signal.SIGKILL)
    if os.getppid() != settings["parent_pid"]:  # the parent has already ended
        return
    settings["user"] = FIRST_USER + os.getpid() % N_USERS
    if os.getuid() != 0:
        settings["max_tasks"] += n_tasks_of(os.getuid())  # RLIMIT_NPROC counts all processes of the user
    if settings["namespaces"]:
        enter_namespaces()
    status_read, status_write = os.pipe()
    init = in_child(run_init, settings, status_write)
    os.close(status_write)
    has_ended = bool(select.select([status_read], [], [], settings["timeout_s"])[0])
    if not has_ended:
        os.kill(init, signal.SIGKILL if settings["namespaces"] else signal.SIGTERM)
    init_status = os.waitpid(init, 0)[1]
    status = os.read(status_read, 16)
    if has_ended and not status and (settings["namespaces"] or os.WIFEXITED(init_status)):
        # init has written why, or the machine lacks memory; without namespaces the program could kill init
        sys.exit(f"the program's init ended early, with {os.waitstatus_to_exitcode(init_status)}")
    print(json.dumps({"timed_out": not has_ended, "exit_code": int(status or -signal.SIGKILL)}))


def run_init(settings: Settings, status_write: int) -> None:
    """Prepare the environment, run the program, and write its exit code or negative signal."""
    if settings["namespaces"]:
        die_with_parent(signal.SIGKILL)
        build_file_system(settings)
        run_to_end(settings, WORKING_FOLDER, status_write)
        return
    folder = tempfile.mkdtemp(prefix="sandbox-")
    if os.getuid() == 0:
        os.chown(folder, settings["user"], settings["user"])

    def leave_nothing(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        kill_descendants()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, leave_nothing)
    die_with_parent(signal.SIGTERM)
    run_to_end(settings, folder, status_write)
    leave_nothing()


def run_to_end(settings: Settings, folder: str, status_write: int) -> None:
    """Start the program, reap all processes that end until the program does, and write its exit code."""
    program = in_child(become_program, settings, folder)
    while True:
        pid, status = os.wait()
        if pid == program:
            os.write(status_write, b"%d" % os.waitstatus_to_exitcode(status))
            return


def become_program(settings: Settings, folder: str) -> None:
    """Drop privileges, set the limits, and replace this process by the program."""
    os.setsid()
    os.chdir(folder)
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(*[settings["user"]] * 3)
        os.setresuid(*[settings["user"]] * 3)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    die_with_parent(signal.SIGKILL)
    if os.uname().machine in SYS_KEYCTL:
        with suppress(OSError):  # a container may forbid it; the filter refuses keys in any case
            call("syscall", SYS_KEYCTL[os.uname().machine], KEYCTL_JOIN_SESSION_KEYRING, None)
    for name, wanted in {**settings["limits"], "RLIMIT_NPROC": settings["max_tasks"]}.items():
        most = resource.getrlimit(getattr(resource, name))[1]
        limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(getattr(resource, name), (limit, limit))
    command = [sys.executable, "-s", "-S", "-P", "-B", "-c", settings["runner"], str(settings["channel"])]
    command += settings["packages"]
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # for in_child if the exec fails; the exec closes it
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    filter_system_calls(bytes.fromhex(settings["filter"]))
    # the exec also drops the capabilities of a user namespace; equal hash seeds make sets iterate in equal order
    os.execve(command[0], command, {**os.environ, **settings["environment"], "PYTHONHASHSEED": "0"})


def filter_system_calls(instructions: bytes) -> None:
    """Install a seccomp filter for this process and all that it starts; its instructions take 8 bytes each."""
    if instructions:
        buffer = ctypes.create_string_buffer(instructions, len(instructions))
        program = FilterProgram(len(instructions) // 8, ctypes.addressof(buffer))
        call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


def enter_namespaces() -> None:
    """Leave the host's network, mounts and IPC; the next child starts a pid namespace. Non-root users become nobody."""
    uid, gid = os.getuid(), os.getgid()
    call("unshare", CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | (CLONE_NEWUSER if uid else 0))
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{NOBODY} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{NOBODY} {gid} 1")


def build_file_system(settings: Settings) -> None:
    """Make everything read-only, hide all but the system's and the interpreter's folders, and give the program one."""
    os.umask(0o022)
    devices = {path: clone_mount(path) for path in DEVICES}
    restrict_mount("/", flags=AT_RECURSIVE)
    readable = {path: clone_mount(path) for path in settings["readable"]}
    hidden = [path for path in settings["hidden"] if os.path.isdir(path)]
    for path in hidden:
        mount_tmpfs(path, "size=1m,mode=755")
    mount_tmpfs(WORKING_FOLDER, f"size={settings['folder_bytes']},nr_inodes=4096,mode=1777")
    for path, tree in devices.items():
        Path(path).touch()
        place_mount(tree, path)
    for path, tree in readable.items():
        os.makedirs(path, exist_ok=True)  # it may be in a hidden folder
        place_mount(tree, path)
    for path in hidden:
        restrict_mount(path)


def mount_tmpfs(path: str, options: str) -> None:
    """Mount an empty file system in memory."""
    call("mount", b"tmpfs", path.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options.encode())


def clone_mount(path: str) -> int:
    """Return a descriptor of a copy of the mounts at and below `path`, which stays visible if `path` is covered."""
    return call("syscall", SYS_OPEN_TREE, AT_FDCWD, path.encode(), OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC)


def place_mount(tree: int, path: str) -> None:
    """Mount a copy from `clone_mount` at `path`."""
    call("syscall", SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, path.encode(), MOVE_MOUNT_F_EMPTY_PATH)


def restrict_mount(path: str, *, flags: int = 0) -> None:
    """Make a mount read-only, without devices and set-user-id programs; with AT_RECURSIVE also all mounts below it."""
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, MS_PRIVATE, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, ctypes.byref(attributes), size)


def n_tasks_of(uid: int) -> int:
    """Return the number of threads of a user."""
    n_tasks = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process may have ended
            n_tasks += len(os.listdir(process / "task")) if process.stat().st_uid == uid else 0
    return n_tasks


def kill_descendants() -> None:
    """Kill and reap all descendants of this process, which adopts orphans.

    They are stopped first. A stopped process still counts for RLIMIT_NPROC, so no new process can take its place.
    """
    while True:
        stopped: set[int] = set()
        while new := descendants_of(os.getpid()) - stopped:
            signal_all(new, signal.SIGSTOP)
            stopped |= new
        signal_all(stopped, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def descendants_of(pid: int) -> set[int]:
    """Return the process ids of all descendants."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the process may have ended
            for child in map(int, children.read_text().split()):
                found |= {child} | descendants_of(child)
    return found


def signal_all(pids: set[int], signal_number: int) -> None:
    """Send a signal to processes, some of which may have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal_number)


def in_child(function: Callable[..., None], *arguments: object) -> int:
    """Run a function in a forked process that ends after it; return the process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        function(*arguments)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when its parent ends; a fork or a change of user resets this."""
    prctl(PR_SET_PDEATHSIG, signal_number)


def prctl(option: int, argument: int) -> None:
    """Call prctl(2)."""
    call("prctl", option, argument, 0, 0, 0)


def call(name: str, *arguments: Any) -> int:
    """Call a function of libc.

    Raises:
        OSError: the call failed; names the function.
    """
    result = getattr(_libc, name)(*arguments)
    if result < 0:
        error = ctypes.get_errno()
        called = f"system call {arguments[0]}" if name == "syscall" else name
        raise OSError(error, f"{called}: {os.strerror(error)}")
    return result


if __name__ == "__main__":
    supervise(json.loads(sys.argv[1]))
