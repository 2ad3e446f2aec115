"""The sandbox of an ordinary user, and the weak sandbox for machines that forbid namespaces."""

import json
import os
import socket
import subprocess
import sys
import uuid

import pytest

from tests.conftest import REPOSITORY
from tests.helpers.hostile import DAEMON, FORK_BOMB, FORK_FOREVER, alive, needs_namespaces

pytestmark = needs_namespaces

RUN = """
import json, sys
from pipeline.inference.evaluation.sandbox import *
for program, checks in json.loads(sys.argv[2]):
    limits = Limits(timeout_s=1 if "while True" in program else 30, max_tasks=8)
    verdict = run_program(program, checks, isolation=Isolation[sys.argv[1]], limits=limits)
    print(json.dumps([verdict.outcome, verdict.detail]))
"""
FIND = "from pipeline.inference.evaluation.sandbox import *; print(find_isolation(allow_weak={allow_weak}))"
DROP_ROOT = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups")
FORBID_NAMESPACES = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")  # as containers do
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root has rights to drop")


def python(*arguments: str, through: tuple[str, ...] = ()) -> list[str]:
    """Run an interpreter in the repository, through a command that drops rights.

    Other users may not have access to root's interpreter and repository, so both are mounted where everybody has.
    """
    script = f'mount --bind {sys.base_prefix} /mnt && mount --bind {REPOSITORY} /srv && cd /srv && exec "$@"'
    reachable = ["unshare", "--mount", "sh", "-c", script, "sh", *through, f"/mnt/bin/python3.{sys.version_info.minor}"]
    command = reachable if os.getuid() == 0 else [sys.executable]
    done = subprocess.run([*command, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def outcomes(*programs: tuple[str, str], isolation: str, through: tuple[str, ...]) -> list[str]:
    lines = python("-c", RUN, isolation, json.dumps(programs), through=through)
    return [outcome if outcome != "failed" else detail for outcome, detail in map(json.loads, lines)]


WAYS = [
    pytest.param("FULL", DROP_ROOT, id="user"),
    pytest.param("WEAK", DROP_ROOT, id="weak-user"),
    pytest.param("WEAK", FORBID_NAMESPACES, id="weak-root", marks=root_only),
]
every_way = pytest.mark.parametrize(("isolation", "through"), WAYS)


@every_way
def test_right_and_wrong_programs_are_distinguished(isolation: str, through: tuple[str, ...]) -> None:
    programs = {
        ("x = 1", "assert x == 1"): "passed",
        ("x = 1", "assert x == 2"): "AssertionError",
        ("import os; os._exit(0)", ""): "exited with code 0 before its checks ended",
        ("while True: pass", ""): "timed out",
        ("x = bytearray(8 << 30)", ""): "out of memory",
        ("import os; os.abort()", ""): "killed",
        ("open('x', 'w').write('y')", "import os; assert os.getuid() != 0 and os.listdir() == ['x']"): "passed",
        ("import os; os.environ.pop('LC_CTYPE', 0)", "assert set(os.environ) == {'PYTHONHASHSEED'}"): "passed",
    }
    assert outcomes(*programs, isolation=isolation, through=through) == list(programs.values())


@every_way
def test_nothing_survives(isolation: str, through: tuple[str, ...]) -> None:
    token = uuid.uuid4().hex
    programs = [
        (DAEMON.format(token=token), ""),
        (DAEMON.format(token=token) + "while True: pass", ""),
        (FORK_BOMB.format(token=token).replace("while True", "while 1"), "assert 0 < count <= 8"),
        (FORK_FOREVER, ""),
    ]
    ended = outcomes(*programs, isolation=isolation, through=through)
    assert ended == ["passed", "timed out", "passed", "timed out"]
    assert not alive(token)


def test_a_user_can_have_full_isolation() -> None:
    assert python("-c", FIND.format(allow_weak=False), through=DROP_ROOT) == ["Isolation.FULL"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = f"""
import ctypes, os, socket

def works(function, *arguments):
    try:
        function(*arguments)
        return True
    except OSError:
        return False

network = works(socket.create_connection, {listener.getsockname()})
places = ["/", "/etc", "/usr", "/dev", "/srv", "/mnt", "/var/tmp", os.path.dirname(os.__file__)]
written = [place for place in places if works(open, place + "/intruder", "w")]
uncovered = ctypes.CDLL(None).umount2(b"/dev", 2) == 0
privileged = works(os.setuid, 0)
os.kill(1, 9)  # init of its own namespace, which no process inside can kill
"""
        checks = """
assert not (network or written or uncovered or privileged), (network, written, uncovered, privileged)
assert sorted(os.listdir("/dev")) == ["full", "null", "random", "urandom", "zero"]
assert os.listdir("/proc") == []
"""
        assert outcomes((program, checks), isolation="FULL", through=DROP_ROOT) == ["passed"]


@root_only
def test_where_namespaces_are_forbidden_the_weak_one_must_be_allowed() -> None:
    told = python("-c", FIND.format(allow_weak=True), through=FORBID_NAMESPACES)
    assert told == ["Isolation.WEAK"]
    refused = """
from common.command_line import UserError
from pipeline.inference.evaluation.sandbox import find_isolation
try:
    find_isolation(allow_weak=False)
except UserError as error:
    print(error)
"""
    (message,) = python("-c", refused, through=FORBID_NAMESPACES)
    assert message.startswith("generated programs cannot be isolated here: PermissionError: [Errno 1] unshare: ")
    assert "--allow_weak_sandbox" in message
    assert "NOT the network, NOT files" in message
