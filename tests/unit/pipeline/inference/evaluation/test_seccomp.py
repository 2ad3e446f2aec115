"""The filter of system calls, run by a small interpreter of BPF; test_sandbox_escapes.py has the kernel run it."""

import struct

import pytest

from pipeline.inference.evaluation import seccomp
from pipeline.inference.evaluation.seccomp import filter_program

ALLOWED, REFUSED, UNKNOWN = 0x7FFF0000, 0x00050001, 0x00050026
X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003


def verdict(arch: int, number: int, *arguments: int) -> int:
    """Return what the filter returns for a system call."""
    data = struct.pack("IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("HBBI", filter_program()))
    place = accumulator = 0
    while True:
        operation, if_true, if_false, operand = code[place]
        place += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("I", data, operand)
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x06:
            return int(operand)
        else:
            holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}
            place += if_true if holds[operation] else if_false


@pytest.mark.parametrize(
    ("number", "arguments", "expected"),
    [
        (0, (), ALLOWED),  # read
        (9, (), ALLOWED),  # mmap
        (59, (), ALLOWED),  # execve
        (250, (), REFUSED),  # keyctl
        (29, (), REFUSED),  # shmget
        (319, (), REFUSED),  # memfd_create
        (425, (), REFUSED),  # io_uring_setup
        (41, (1, 1), REFUSED),  # a Unix socket
        (41, (2, 1), ALLOWED),  # an internet socket, in a network of its own
        (53, (1, 1 | 0o2000000), ALLOWED),  # a pair of streams, close on exec
        (53, (1, 2), REFUSED),  # a pair of datagram sockets, which can send elsewhere
        (53, (1, 5), REFUSED),
        (56, (0x00010000 | 17,), ALLOWED),  # clone: a thread
        (56, (0x10000000 | 17,), REFUSED),  # clone: a user namespace
        (435, (), UNKNOWN),  # clone3, whose flags lie in memory
        (0x40000000 | 41, (2, 1), REFUSED),  # the x32 numbers
    ],
)
def test_calls_of_x86_64(
    monkeypatch: pytest.MonkeyPatch, number: int, arguments: tuple[int, ...], expected: int
) -> None:
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "x86_64")
    assert verdict(X86_64, number, *arguments) == expected
    assert verdict(I386, number, *arguments) == REFUSED


@pytest.mark.parametrize(
    ("number", "arguments", "expected"), [(63, (), ALLOWED), (219, (), REFUSED), (198, (1, 1), REFUSED)]
)
def test_calls_of_aarch64(
    monkeypatch: pytest.MonkeyPatch, number: int, arguments: tuple[int, ...], expected: int
) -> None:
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "aarch64")
    assert verdict(AARCH64, number, *arguments) == expected


def test_an_unknown_machine_has_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "sparc64")
    assert filter_program() == b""
