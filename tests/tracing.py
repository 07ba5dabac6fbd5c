"""A program that counts the system calls of other processes, by ptrace(2).

    python tracing.py ROLE=TID...      says "ready"; at SIGTERM the counts as JSON, and ends

Children of those that are traced are traced from their first call on, in the role "task". When the
tracer ends, all go on by themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections import Counter, defaultdict
from typing import NoReturn

SEIZE, INTERRUPT, SYSCALL, GET_SYSCALL_INFO = 0x4206, 0x4207, 24, 0x420E
OPTIONS = 1 | 2 | 4 | 8  # TRACESYSGOOD, TRACEFORK, TRACEVFORK, TRACECLONE
ENTRY = 1
WALL = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Info(ctypes.Structure):
    """The head of struct ptrace_syscall_info (ptrace(2)), as it is at an entry."""

    _fields_ = (
        ("operation", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 3),
        ("architecture", ctypes.c_uint32),
        ("pointers", ctypes.c_uint64 * 2),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
    )


def ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    """Make the call. OSError where it is refused, or the thread has gone."""
    if libc.ptrace(request, tid, address, data) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def number_at(tid: int) -> int | None:
    """The number of the system call that a thread is about to make; None at its end."""
    info = Info()
    ptrace(GET_SYSCALL_INFO, tid, ctypes.sizeof(info), ctypes.addressof(info))
    return int(info.number) if info.operation == ENTRY else None


def go_on(tid: int, signum: int = 0) -> None:
    """Have a thread run until its next system call begins or ends."""
    with contextlib.suppress(ProcessLookupError):  # killed meanwhile: its end will be seen
        ptrace(SYSCALL, tid, 0, signum)


def follow(roles: dict[int, str], counts: dict[str, Counter[int]]) -> NoReturn:
    """Count until told to stop."""
    while True:
        tid, status = os.waitpid(-1, WALL)
        if not os.WIFSTOPPED(status):
            continue
        role = roles.setdefault(tid, "task")
        signum, event = os.WSTOPSIG(status), status >> 16
        if signum == signal.SIGTRAP | 0x80:
            try:
                number = number_at(tid)
            except ProcessLookupError:
                continue
            if number is not None:
                counts[role][number] += 1
        go_on(tid, 0 if event or signum == signal.SIGTRAP | 0x80 else signum)


def main() -> None:
    """See the module."""
    roles = {int(tid): role for role, tid in (each.split("=") for each in sys.argv[1:])}
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for tid in roles:
        ptrace(SEIZE, tid, 0, OPTIONS)
        ptrace(INTERRUPT, tid)
    print("ready", flush=True)
    try:
        follow(roles, counts)
    except (SystemExit, ChildProcessError):
        print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
