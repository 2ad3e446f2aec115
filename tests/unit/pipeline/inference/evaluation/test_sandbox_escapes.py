"""Programs that try to escape from the sandbox or to outlive it."""

import ctypes
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.inference.evaluation.sandbox import ProgramResult
from tests.conftest import REPOSITORY, is_alive
from tests.helpers.hostile import DAEMON, FORK_BOMB, alive, assert_passes, needs_namespaces, run, wait_until

pytestmark = needs_namespaces


@pytest.fixture
def token() -> str:
    """A word that is on no other process's command line."""
    return uuid.uuid4().hex


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may write to and that the sandbox does not hide."""
    folder = Path(tempfile.mkdtemp(prefix=".sandbox-test-", dir=REPOSITORY))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_a_fork_bomb_fizzles_out(token: str) -> None:
    assert_passes(FORK_BOMB.format(token=token), "assert 0 < count <= 8, count", max_tasks=8)
    assert not alive(token)


def test_a_daemon_does_not_outlive_its_program(token: str) -> None:
    program = DAEMON.format(token=token) + "import time\ntime.sleep(600)"
    results: list[ProgramResult] = []
    began_s = time.monotonic()
    assert_passes("")
    timeout_s = max(3.0, 10 * (time.monotonic() - began_s))  # the daemon needs this long to start
    runner = threading.Thread(target=lambda: results.append(run(program, timeout_s=timeout_s)))
    runner.start()
    wait_until(lambda: alive(token))
    runner.join()
    assert results == [ProgramResult(outcome="timed out")]
    assert not alive(token)


def test_a_daemon_does_not_outlive_a_program_that_passes(token: str) -> None:
    assert_passes(DAEMON.format(token=token))
    assert not alive(token)


def test_nothing_outlives_a_killed_evaluation(token: str) -> None:
    code = "import sys; from pipeline.inference.evaluation.sandbox import *; "
    code += "run_program(sys.argv[1], '', isolation=Isolation.FULL, limits=Limits(timeout_s=600))"
    command = [sys.executable, "-c", code, DAEMON.format(token=token) + "os.execv(ARGUMENTS[0], ARGUMENTS)"]
    evaluation = subprocess.Popen(command, cwd=REPOSITORY)
    wait_until(lambda: len(alive(token)) == 2)
    started = psutil.Process(evaluation.pid).children(recursive=True)
    assert len(started) > 2  # also the supervisor and init
    evaluation.send_signal(signal.SIGKILL)
    evaluation.wait()
    wait_until(lambda: not any(map(is_alive, started)))


def test_a_program_cannot_signal_processes_outside() -> None:
    """If it could, this test process would be killed."""
    outside = os.getpid()
    run(f"import os\nos.kill({outside}, 9)")
    run("import os\nos.kill(os.getppid(), 9)")
    run("import os\nos.killpg(os.getpgid(os.getppid()), 9)")
    assert_passes(
        "import os\nfor pid in (-1, 1, os.getppid()):\n    try:\n        os.kill(pid, 9)\n    except OSError: pass"
    )


def test_no_file_outside_can_be_changed_or_removed(tmp_path: Path, open_folder: Path) -> None:
    tmp_path.chmod(0o777)
    for folder in (tmp_path, open_folder):
        (folder / "planted").write_text("whole")
        (folder / "planted").chmod(0o666)
    program = f"""
import os, subprocess, sys
places = [{str(tmp_path)!r}, {str(open_folder)!r}, "/", "/etc", "/usr", "/var/tmp", "/dev", "/dev/shm", "/run", "/root"]
places += [sys.base_prefix, os.path.dirname(os.__file__), os.path.expanduser("~"), "/proc/self", "/sys"]
written = []
for place in places:
    subprocess.run(["rm", "-rf", place + "/planted"])
    for name in ("planted", "intruder"):
        try:
            open(place + "/" + name, "w").close()
            written.append(place)
        except OSError:
            pass
"""
    assert_passes(program, "assert written == [], written")
    for folder in (tmp_path, open_folder):
        assert [path.name for path in folder.iterdir()] == ["planted"]
        assert (folder / "planted").read_text() == "whole"


def test_the_working_folder_is_small_and_new_each_time() -> None:
    assert_passes("import os", "assert os.listdir() == []\nopen('left', 'w').close()")
    assert_passes("import os", "assert os.listdir() == []")
    filling = "for i in range(100):\n    open(str(i), 'wb').write(bytes(1 << 20))"
    assert run(filling, folder_MiB=4).detail == "OSError: [Errno 28] No space left on device"


def test_there_is_no_network(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "socket"))
        (tmp_path / "socket").chmod(0o777)
        local.listen()
        program = f"""
import socket
reached = []
for family, address in [(socket.AF_INET, {listener.getsockname()}), (socket.AF_UNIX, {str(tmp_path / "socket")!r}),
                        (socket.AF_INET, ("8.8.8.8", 53))]:
    try:
        with socket.socket(family) as client:
            client.settimeout(2)
            client.connect(address)
            reached.append(address)
    except OSError:
        pass
"""
        assert_passes(program, "assert reached == [], reached")
        exec(program, reachable := {"__name__": "here"})  # the same code outside the sandbox
        assert reachable["reached"][:1] == [listener.getsockname()]


def test_a_program_sees_no_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "tell-nobody")
    checks = """
assert set(os.environ) <= {"PYTHONHASHSEED", "LC_CTYPE", "LD_LIBRARY_PATH"}, os.environ
assert os.listdir("/proc") == os.listdir("/run") == []
"""
    assert_passes("import os", checks)


def test_only_harmless_devices_exist() -> None:
    assert_passes("import os", "assert sorted(os.listdir('/dev')) == ['full', 'null', 'random', 'urandom', 'zero']")
    assert_passes("x = open('/dev/urandom', 'rb').read(4); open('/dev/null', 'w').write('x')", "assert len(x) == 4")


def test_a_program_has_no_privileges() -> None:
    program = "import ctypes, os\nlibc = ctypes.CDLL(None)\nNAMESPACES, REMOUNT = 0x00020000, 32\n"
    checks = """
assert os.getuid() != 0
assert libc.prctl(39, 0, 0, 0, 0) == 1  # no new privileges
assert libc.unshare(NAMESPACES) == -1
assert libc.umount2(b"/dev", 2) == -1
assert libc.mount(None, b"/", None, REMOUNT, None) == -1
"""
    assert_passes(program, checks)


def test_sockets_and_fifos_that_everybody_may_use_are_not_reachable(open_folder: Path) -> None:
    os.mkfifo(open_folder / "fifo")
    (open_folder / "fifo").chmod(0o666)
    reader = os.open(open_folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with socket.socket(socket.AF_UNIX) as local:
        local.bind(str(open_folder / "socket"))
        (open_folder / "socket").chmod(0o777)
        local.listen()
        program = f"""
import os, socket
reached = []
try:
    os.write(os.open({str(open_folder / "fifo")!r}, os.O_WRONLY | os.O_NONBLOCK), b"x")
    reached.append("fifo")
except OSError:
    pass
try:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect({str(open_folder / "socket")!r})
        reached.append("socket")
except OSError:
    pass
pair = socket.socketpair()
pair[0].send(b"x")
assert pair[1].recv(1) == b"x"
"""
        assert_passes(program, "assert reached == [], reached")
        exec(program, reachable := {"__name__": "here"})  # the same code outside the sandbox
        assert reachable["reached"] == ["fifo", "socket"]
    os.close(reader)


def test_datagrams_cannot_be_sent_outside_through_a_pair(open_folder: Path) -> None:
    checks = (
        "try:\n    socket.socketpair(type=socket.SOCK_DGRAM)\n    raise SystemError\nexcept PermissionError:\n    pass"
    )
    assert_passes("import socket", checks)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the calls are x86_64's")
def test_the_callers_keys_are_not_reachable() -> None:
    libc, add_key, keyctl, session, possessor = ctypes.CDLL(None, use_errno=True), 248, 250, -3, 0x3F3F3F3F
    key = libc.syscall(add_key, b"user", b"sandbox-test", b"secret", ctypes.c_size_t(6), session)
    if key < 0:
        pytest.skip("this machine has no keyrings")
    libc.syscall(keyctl, 5, key, possessor)  # everybody may do everything with it
    program = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
done = [libc.syscall({add_key}, b"user", b"intruder", b"x", ctypes.c_size_t(1), {session}),
        libc.syscall({keyctl}, 11, {key}, ctypes.create_string_buffer(9), ctypes.c_size_t(9)),  # read
        libc.syscall({keyctl}, 3, {key}), libc.syscall({keyctl}, 0, {session}, 1)]  # revoke, and which keyring
"""
    assert_passes(program, "assert done == [-1] * 4, done")
    buffer = ctypes.create_string_buffer(9)
    assert libc.syscall(keyctl, 11, key, buffer, ctypes.c_size_t(9)) == 6
    assert buffer.value == b"secret"
    libc.syscall(keyctl, 3, key)


@pytest.mark.parametrize(
    "program",
    [
        "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.shmget(0, 1 << 20, 0o1600) >= 0",
        "import os\nfile = os.memfd_create('x')\nfor _ in range({MiB}):\n    os.write(file, bytes(1 << 20))",
    ],
)
def test_memory_that_no_limit_counts_is_refused(program: str) -> None:
    exec(program.replace("{MiB}", "1"), {"os": os})  # it works outside
    assert run(program.replace("{MiB}", "3072"), memory_MiB=1024).outcome == "failed"


def test_the_processes_of_a_program_share_one_limit_of_memory() -> None:
    program = """
import os, time
for _ in range(20):
    if os.fork() == 0:
        x = bytearray({size} << 20)
        time.sleep({seconds})
        os._exit(0)
time.sleep({seconds})
"""
    told = ProgramResult(outcome="out of memory", detail="of all processes together")
    for size, limit in ((40, 400), (150, 1024)):
        assert run(program.format(size=size, seconds=600), timeout_s=600, memory_MiB=limit) == told
    assert_passes("import os\nfor _ in range(20):\n    os.fork() or os._exit(0)\nfor _ in range(20):\n    os.wait()")


FORGERIES = {
    "replaced exec": "import builtins\nbuiltins.exec = builtins.compile = lambda *arguments, **named: None",
    "checks from standard input": """
import os
os.lseek(0, 0, 0)
source = os.read(0, 1 << 20)
assert b"hidden check" not in source
""",
    "what it reads from the channel is written back": """
import os, sys
for descriptor in range(3, 64):
    try:
        os.set_blocking(descriptor, False)
        secret = os.read(descriptor, 1 << 16)
        os.write(descriptor, secret)
    except OSError:
        pass
""",
    "it answers before its end": """
import os
for descriptor in range(3, 64):
    try:
        os.write(descriptor, b"0" * 32)
        os.write(descriptor, os.read(descriptor, 32))
    except OSError:
        pass
""",
    "a tracer skips lines": "import sys\nsys.settrace(lambda frame, event, argument: None)",
    "the module is replaced": "import sys, types\nsys.modules['program'] = types.ModuleType('program')",
}


@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES)
def test_a_pass_cannot_be_forged_without_searching_the_interpreter(program: str) -> None:
    assert run(program, "assert False, 'hidden check'", timeout_s=10).outcome in ("failed", "timed out")


def test_what_remains_possible_is_known() -> None:
    """Objects that equal everything pass, because the checks compare them in the program's own process."""
    assert_passes(
        "class Same:\n    def __eq__(self, other):\n        return True\ndef f():\n    return Same()", "assert f() == 3"
    )
