"""The part of the limits that the task takes upon itself, and the baseline they count from.

Everything here happens after loading and before the function runs, so that interpreter, imports
and arguments are not charged. What the kernel cannot bound by an rlimit is the supervisor's.
"""

from __future__ import annotations

import errno
import math
import resource
import time
from contextlib import suppress
from typing import NamedTuple

from pynisher_exec.kernel import clock, proc, seccomp
from pynisher_exec.limits import FORK_FILTER, RLIMITS, Limits

__all__ = [
    "MEMORY_RESERVE",
    "MEMORY_SLACK",
    "Baseline",
    "impose",
    "leaves_no_room",
    "lift_memory",
    "measure",
    "memory_is_short",
    "peak",
]

MEMORY_SLACK = 16 << 20
"""Bytes above `memory` at which an allocation is refused: room for what is only reserved."""

MEMORY_RESERVE = 32 << 20
"""Bytes between soft and hard limit: a full heap can still pickle its report."""

LEAST_ADDRESS_SPACE = 16 << 20
"""Bytes of address space that a function needs beyond the interpreter to do anything at all."""

SMALL_GROWTH = 1 << 18
"""Bytes: a peak of less is told without another look at /proc."""

_LARGEST = (1 << 63) - 1

CPU_BACKSTOP = 2
"""Seconds after which the kernel ends a process by itself, should its supervisor be gone.

RLIMIT_CPU counts whole seconds and fires early with several threads, so it must lie well behind.
"""


class Baseline(NamedTuple):
    """What the process held and had used when its function was about to start. Bytes, seconds."""

    at: float
    cpu_time: float
    memory: proc.OwnMemory


def measure(spared: int = 0, before: int = 0) -> Baseline:
    """Read the baseline of this process, with its high-water mark at what it holds now.

    `spared`: bytes of shared objects that it has mapped, and `before` of other shared memory that
    was there before. OSError where it cannot be read.
    """
    memory = proc.own_memory(spared, before)
    if memory.high_water > memory.resident:
        # Loading held more for a moment. Absent without CONFIG_PROC_PAGE_MONITOR (proc(5),
        # clear_refs): the peak is then an upper bound.
        with suppress(OSError), open("/proc/self/clear_refs", "wb", buffering=0) as file:
            file.write(b"5")
    return Baseline(clock.monotonic(), time.process_time(), memory)


def peak(baseline: Baseline) -> int:
    """High-water mark of this process above its baseline, without what files back. Bytes."""
    then = baseline.memory
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - then.resident
    if grown < SMALL_GROWTH:  # as for most small tasks; files cannot have had a part in it
        return max(0, grown)
    try:
        now = proc.own_memory()
    except OSError:  # the function has left no descriptor, or another root
        return max(0, grown)
    grown = now.high_water - then.resident
    return max(0, grown - max(0, now.file_backed - then.file_backed))


def impose(
    limits: Limits, baseline: Baseline, *, for_good: bool
) -> tuple[dict[str, str], int | None]:
    """Set what this process can set; give the mechanism of each limit and the gate's listener.

    Not `for_good`, in a process that serves other calls, only what can be taken back.
    """
    mechanisms: dict[str, str] = {}
    listener = None
    if limits.processes is not None and not for_good:
        mechanisms["processes"] = "counted"
    elif limits.processes is not None:  # first: it needs a descriptor
        listener, mechanisms["processes"] = _close_gate(limits.processes)
    for name, kind in RLIMITS.items():
        value = getattr(limits, name)
        if value is not None:
            _lower(kind, value, value if for_good else None)
            mechanisms[name] = f"rlimit {name}"
    if limits.memory is not None:
        mechanisms["memory"] = _bound_memory(limits, limits.memory, baseline, for_good=for_good)
    if limits.cpu_time is not None:
        seconds = baseline.cpu_time + limits.cpu_time + (limits.grace_period or 0)
        behind = math.ceil(seconds) + CPU_BACKSTOP
        _lower(resource.RLIMIT_CPU, behind, behind if for_good else None)
    return mechanisms, listener


def _bound_memory(limits: Limits, memory: int, baseline: Baseline, *, for_good: bool) -> str:
    """Set the rlimit that makes an allocation fail inside the function; name the mechanism."""
    if limits.address_space is not None:
        soft = limits.address_space
        _lower(resource.RLIMIT_AS, soft, soft + MEMORY_RESERVE)
        return "RLIMIT_AS, tree sampled and confirmed by PSS"
    soft = baseline.memory.reserved + memory + MEMORY_SLACK
    # No machine has more than setrlimit(2) can take.
    if limits.from_zero or soft + MEMORY_RESERVE > _LARGEST:
        return "tree sampled and confirmed by PSS"
    _lower(resource.RLIMIT_DATA, soft, soft + MEMORY_RESERVE if for_good else None)
    return "RLIMIT_DATA, tree sampled and confirmed by PSS"


def _lower(kind: int, soft: int, hard: int | None) -> None:
    """Set an rlimit, never above the hard one that already stands (an outer task's, say).

    None leaves that one as it is: it could not be raised again.
    """
    standing = resource.getrlimit(kind)[1]
    if hard is None:
        hard = standing
    if standing != resource.RLIM_INFINITY:
        soft, hard = min(soft, standing), min(hard, standing)
    resource.setrlimit(kind, (soft, hard))


def _close_gate(processes: int) -> tuple[int | None, str]:
    """Have each fork asked for; without that mechanism the supervisor counts, and kills."""
    try:
        return seccomp.install_gate(), "seccomp user notification"
    except OSError as error:
        if processes == 0 and error.errno == errno.EBUSY:  # inside another gate
            with suppress(OSError):
                seccomp.deny_forks()
                return None, FORK_FILTER
    return None, "counted"


def lift_memory(limits: Limits) -> None:
    """Give the report of a full heap the room that was kept for it."""
    if limits.memory is None:
        return
    kind = resource.RLIMIT_DATA if limits.address_space is None else resource.RLIMIT_AS
    hard = resource.getrlimit(kind)[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (hard, hard))


def leaves_no_room(limits: Limits, baseline: Baseline) -> bool:
    """Whether a limit that counts from zero is too small for the interpreter itself."""
    if limits.address_space is None:
        return False
    return limits.address_space < baseline.memory.address_space + LEAST_ADDRESS_SPACE


def memory_is_short(limits: Limits, baseline: Baseline) -> bool:
    """Whether another thread's stack would no longer fit: what makes `can't start new thread`."""
    if limits.memory is None:
        return False
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    room = 8 << 20 if stack == resource.RLIM_INFINITY else stack
    try:
        now = proc.own_memory()
    except OSError:  # the function has left no descriptor: nobody can say
        return False
    if limits.address_space is not None:
        return now.address_space + room >= limits.address_space
    return now.reserved + room >= baseline.memory.reserved + limits.memory + MEMORY_SLACK
