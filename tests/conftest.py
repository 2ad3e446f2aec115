"""Shared by all tests: a CPU environment, tiny real shards, and functions that run this project's commands."""

import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

# Some virtual machines advertise AMX and then crash on its instructions; bf16 on the CPU does not need them.
# This must be set before torch is imported; every process that a test starts inherits it.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test needs the network. The Hub's library reads this variable once, when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import psutil
import pytest

# A shell lets jobs in the background ignore Ctrl-C, and every process that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from tests.helpers.s3_server import S3Server

REPOSITORY = Path(__file__).resolve().parent.parent
Command = Callable[..., subprocess.CompletedProcess[str]]


def run_module(
    module: str, *arguments: object, timeout_s: float = 300, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` in the repository root, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


_PORTS = range(10_000, 20_000)  # below the range from which the system itself picks ports
_next_ports = itertools.count(os.getpid() * 100)  # other processes of this suite start elsewhere


def free_port() -> int:
    """Return a TCP port that is free now, since other runs on this machine use the launchers' default port."""
    while True:
        port = _PORTS[next(_next_ports) % len(_PORTS)]
        with suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port


def launch_deepspeed(
    module: str, *arguments: object, ranks: int = 2, variables: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `deepspeed --num_gpus RANKS --module module arguments` in its own process group."""
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks)]
    command += ["--master_port", str(free_port()), "--module", module]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def is_alive(process: psutil.Process) -> bool:
    """Return True if a process is running; a zombie is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Keep bytes out of the names of tests: gzip writes the time into them, and names must be equal in every worker."""
    return argname if isinstance(val, bytes) else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the number of files for each reader in tests/fuzz; without it, they are the same in every run."""
    parser.addoption("--fuzz_examples", type=int, metavar="N", help="changed files for each reader in tests/fuzz")


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Restore the environment after a module's tests, some of which join a process group in this process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def pipeline_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Capture the log of `pipeline` from level INFO; otherwise its logger does not pass records on to pytest."""
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    caplog.set_level(logging.INFO, logger="pipeline")
    return caplog


def write_byte_shards(out: Path, *, package: str) -> Path:
    """Write byte-level shards of a package of the standard library, with seq_len 32; return their folder."""
    from data_prep import write_shards

    source = Path(sysconfig.get_path("stdlib")) / package
    write_shards.main(
        ["--input", str(source), "--tokenizer", "bytes", "--out", str(out), "--seq_len", "32", "--val_fraction", "0.2",
         "--num_workers", "1"]
    )  # fmt: skip
    return out


@pytest.fixture(scope="session")
def byte_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level shards of a real package (the standard library's json): seq_len 32, lookahead 32, 258 ids."""
    return write_byte_shards(tmp_path_factory.mktemp("shards") / "bytes", package="json")


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with 512 ids, trained on a real package with this project's command."""
    from data_prep import train_tokenizer

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    source = Path(sysconfig.get_path("stdlib")) / "json"
    train_tokenizer.main(["--input", str(source), "--extensions", ".py", "--output", str(path), "--vocab_size", "512"])
    return path


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """The address of an S3 server on this machine."""
    from tests.helpers.s3_server import s3_process

    with s3_process() as address:
        yield address


@pytest.fixture
def s3(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator["S3Server"]:
    """An empty bucket; the environment of this process points to its server."""
    from common import s3 as s3_folders
    from pipeline.config import shard_folder
    from tests.helpers.s3_server import S3Server

    server = S3Server(s3_address, bucket=f"bucket-{uuid.uuid4().hex}")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    caches = (s3_folders._client, shard_folder._mirror)
    for cached in caches:
        cached.cache_clear()
    server.client().create_bucket(Bucket=server.bucket)
    yield server
    for cached in caches:
        cached.cache_clear()
