"""Programs that try to escape from the sandbox or to outlive it."""

import os
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
    with socket.socket(family) as client:
        client.settimeout(2)
        try:
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
