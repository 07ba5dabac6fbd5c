"""What root may, and a process can do without: capabilities(7)."""

from __future__ import annotations

import contextlib
import ctypes
import struct

from pynisher_exec.kernel import libc

__all__ = ["IPC_LOCK", "SYS_RESOURCE", "give_up", "has"]

IPC_LOCK = 14
"""Its holder may lock any amount of memory (CAP_IPC_LOCK)."""

SYS_RESOURCE = 24
"""Its holder may raise hard rlimits, its own too (CAP_SYS_RESOURCE, linux/capability.h)."""

_VERSION_3 = 0x20080522
_SETS = struct.Struct("=6I")
"""Effective, permitted, inheritable; then the upper 32 of each (capget(2))."""

_PR_CAPBSET_DROP = 24


def has(capability: int) -> bool:
    """Whether the calling thread has it in effect."""
    return bool(_get()[capability // 32 * 3] >> capability % 32 & 1)


def give_up(capability: int) -> None:
    """Do without it from here on, in the calling thread and what that starts.

    A program that it starts gets it again where root may and this process cannot change its
    bounding set, for which it takes CAP_SETPCAP, unless no_new_privs is set.
    """
    sets, first, bit = _get(), capability // 32 * 3, 1 << capability % 32
    if not sets[first + 1] & bit:  # not permitted: so it has nothing of it
        return
    with contextlib.suppress(OSError):
        libc.syscall(libc.number("prctl"), _PR_CAPBSET_DROP, capability)
    for each in range(first, first + 3):
        sets[each] &= ~bit
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
