"""The kernel's task clock: CPU time of a process and all that will ever descend from it.

`inherit` makes each fork's clock count into this one, whoever reaps the fork, if anybody does
(perf_event_open(2)). Software events need no hardware counter; `exclude_kernel` is what lets a
normal user open one at `perf_event_paranoid` 2, and the clock counts time in the kernel all the
same. Containers often forbid the call.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

from pynisher_exec.kernel import libc

__all__ = ["open_task_clock", "read_seconds"]

_PERF_TYPE_SOFTWARE = 1
_PERF_COUNT_SW_TASK_CLOCK = 1
_PERF_FLAG_FD_CLOEXEC = 1 << 3
_INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 1, 1 << 5, 1 << 6
_ANY_CPU, _NO_GROUP = -1, -1

# struct perf_event_attr, version 0: type, size, config, period, two formats, bits, padding
_SIZE = 64
_ATTRIBUTE = ctypes.create_string_buffer(
    struct.pack(
        "=IIQQQQQ16x",
        _PERF_TYPE_SOFTWARE,
        _SIZE,
        _PERF_COUNT_SW_TASK_CLOCK,
        0,
        0,
        0,
        _INHERIT | _EXCLUDE_KERNEL | _EXCLUDE_HV,
    ),
    _SIZE,
)


def open_task_clock(pid: int) -> int:
    """Open the clock of a process, as a descriptor; OSError where the kernel does not allow it."""
    return libc.syscall(
        libc.number("perf_event_open"),
        ctypes.addressof(_ATTRIBUTE),
        pid,
        _ANY_CPU,
        _NO_GROUP,
        _PERF_FLAG_FD_CLOEXEC,
    )


def read_seconds(descriptor: int) -> float:
    """Seconds of CPU time since the clock was opened; right also when all have ended."""
    return int.from_bytes(os.read(descriptor, 8), sys.byteorder) / 1e9
