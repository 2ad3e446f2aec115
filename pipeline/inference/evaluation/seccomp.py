"""A filter of system calls for generated programs, as a classic BPF program (seccomp(2)).

Refused with EPERM: keys, which belong to the session of whoever evaluates; memory that no process's limit counts
(System V shared memory, memfds); sockets of the Unix domain other than pairs of streams, because a connection ignores
that the file system is read-only; io_uring, which does all of that by other ways; and new namespaces and mounts. On a
machine whose numbers are not in the table there is no filter.
"""

import platform
import struct

_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # AUDIT_ARCH, and the column of the table
_REFUSED = {  # from Linux's unistd.h
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "shmget": (29, 194), "shmat": (30, 196), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "msgget": (68, 186), "semget": (64, 190),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "mount_setattr": (442, 442),
    "ptrace": (101, 117), "process_vm_writev": (311, 271), "bpf": (321, 280), "perf_event_open": (298, 241),
}  # fmt: skip
_SOCKET, _SOCKETPAIR, _CLONE, _CLONE3 = (41, 198), (53, 199), (56, 220), (435, 435)
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPES, _NEWUSER = 1, 1, 0xF, 0x10000000
_X32 = 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16


def filter_program() -> bytes:
    """Return the filter's instructions (struct sock_filter), 8 bytes each; empty on machines that are not known."""
    if platform.machine() not in _MACHINES:
        return b""
    arch, column = _MACHINES[platform.machine()]
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _EPERM), (_LOAD, 0, 0, _NUMBER),
    ]  # fmt: skip
    if column == 0:
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _EPERM)]
    for numbers in _REFUSED.values():
        code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _EPERM)]
    code += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ENOSYS)]  # libc then calls clone, whose flags are seen
    first, second = _argument(0), _argument(1)
    unix = (_EQUAL, 0, 1, _AF_UNIX)
    refuse, allow = (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)
    code += [(_EQUAL, 0, 4, _SOCKET[column]), first, unix, refuse, allow]
    code += [(_EQUAL, 0, 5, _SOCKETPAIR[column]), second, (_AND, 0, 0, _SOCK_TYPES), (_EQUAL, 0, 1, _SOCK_STREAM)]
    code += [allow, refuse]
    code += [(_EQUAL, 0, 3, _CLONE[column]), first, (_ANY_BIT, 0, 1, _NEWUSER), refuse, allow]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _argument(index: int) -> tuple[int, int, int, int]:
    """Return the instruction that loads the low half of an argument of the system call."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)
