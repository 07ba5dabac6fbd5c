"""System calls that Python has no function for, by their numbers."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

__all__ = ["machine", "number", "syscall"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# name: (x86_64, aarch64), from the kernel's syscall tables; None: that machine has no such call
_NUMBERS: Final[dict[str, tuple[int | None, int | None]]] = {
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "prctl": (157, 167),
    "perf_event_open": (298, 241),
    "kcmp": (312, 272),
    "seccomp": (317, 277),
    "clone3": (435, 435),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
}
_MACHINES: Final = ("x86_64", "aarch64")


def machine() -> str:
    """The machine's name as `uname -m` says it; an interpreter of 32 bits counts as another."""
    name = os.uname().machine
    return name if ctypes.sizeof(ctypes.c_void_p) == 8 else f"{name}, 32 bits"  # noqa: PLR2004


def number(name: str) -> int:
    """Number of a system call on this machine; OSError (ENOSYS) where it has none or is unknown."""
    found = None
    if machine() in _MACHINES:
        found = _NUMBERS[name][_MACHINES.index(machine())]
    if found is None:
        raise OSError(errno.ENOSYS, f"{name} has no known number on {machine()}")
    return found


def syscall(call: int, *arguments: object) -> int:
    """Make a system call; plain ints go as long. Raises OSError with what errno says."""
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result: int = _libc.syscall(ctypes.c_long(call), *converted)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
