"""What root may, and a process can do without: capabilities(7)."""

from __future__ import annotations

import contextlib
import ctypes
import struct

from pynisher_exec.kernel import libc

__all__ = ["SYS_RESOURCE", "give_up", "has"]

SYS_RESOURCE = 24
"""Its holder may raise hard rlimits, its own too (CAP_SYS_RESOURCE, linux/capability.h)."""

_VERSION_3 = 0x20080522
_SETS = struct.Struct("=6I")
"""Effective, permitted, inheritable; then the upper 32 of each (capget(2))."""

_PR_CAPBSET_DROP = 24


def has(capability: int) -> bool:
    """Whether the calling thread has it, or may take it."""
    permitted = _get()[capability // 32 * 3 + 1]
    return bool(permitted >> capability % 32 & 1)


def give_up(capability: int) -> None:
    """Do without it from here on, in the calling thread and what that starts.

    A program that it starts gets it again where root may and this process cannot change its
    bounding set, for which it takes CAP_SETPCAP, unless no_new_privs is set.
    """
    if not has(capability):
        return
    with contextlib.suppress(OSError):
        libc.syscall(libc.number("prctl"), _PR_CAPBSET_DROP, capability)
    sets = _get()
    for each in range(3):
        sets[capability // 32 * 3 + each] &= ~(1 << capability % 32)
    data = ctypes.create_string_buffer(_SETS.pack(*sets), _SETS.size)
    header = _header()
    libc.syscall(libc.number("capset"), ctypes.addressof(header), ctypes.addressof(data))


def _get() -> list[int]:
    data = ctypes.create_string_buffer(_SETS.size)
    header = _header()
    libc.syscall(libc.number("capget"), ctypes.addressof(header), ctypes.addressof(data))
    return list(_SETS.unpack(data.raw))


def _header() -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0))
