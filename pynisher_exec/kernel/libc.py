"""System calls that Python has no function for, by their numbers."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import Final

__all__ = ["flush_output", "machine", "number", "syscall"]

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long] * 7

# name: (x86_64, aarch64), from the kernel's syscall tables; None: that machine has no such call
_NUMBERS: Final[dict[str, tuple[int | None, int | None]]] = {
    "mmap": (9, 222),
    "munmap": (11, 215),
    "madvise": (28, 233),
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "capget": (125, 90),
    "capset": (126, 91),
    "prctl": (157, 167),
    "perf_event_open": (298, 241),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "seccomp": (317, 277),
    "io_uring_setup": (425, 425),
    "io_uring_register": (427, 427),
    "clone3": (435, 435),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
}
_MACHINES: Final = ("x86_64", "aarch64")


def flush_output() -> None:
    """Write out what C code has printed and the C library kept.

    Of the two standard streams only: another one may be locked by a thread that reads from it.
    """
    for name in ("stdout", "stderr"):
        _libc.fflush(ctypes.c_void_p.in_dll(_libc, name))


@cache
def machine() -> str:
    """The machine's name as `uname -m` says it; an interpreter of 32 bits counts as another."""
    name = os.uname().machine
    return name if ctypes.sizeof(ctypes.c_void_p) == 8 else f"{name}, 32 bits"  # noqa: PLR2004


@cache
def number(name: str) -> int:
    """Number of a system call on this machine; OSError (ENOSYS) where it has none or is unknown."""
    found = None
    if machine() in _MACHINES:
        found = _NUMBERS[name][_MACHINES.index(machine())]
    if found is None:
        raise OSError(errno.ENOSYS, f"{name} has no known number on {machine()}")
    return found


def syscall(call: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0) -> int:
    """Make a system call of at most five arguments, or a sixth of 0; memory by its address.

    Raises OSError with what errno says.
    """
    result: int = _syscall(call, a, b, c, d, e, 0)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
