"""The part of the limits that the task takes upon itself, and the baseline they count from.

Everything here happens after loading and before the function runs, so that interpreter, imports
and arguments are not charged. What the kernel cannot bound by an rlimit is the supervisor's.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
import time
from typing import NamedTuple

from pynisher_exec.kernel import proc, seccomp
from pynisher_exec.limits import RLIMITS, Limits
from pynisher_exec.verdict import FORK_FILTER

__all__ = ["MEMORY_RESERVE", "MEMORY_SLACK", "Baseline", "impose", "lift_memory", "measure", "peak"]

MEMORY_SLACK = 16 << 20
"""Bytes above `memory` at which an allocation is refused: room for what is only reserved."""

MEMORY_RESERVE = 32 << 20
"""Bytes between soft and hard RLIMIT_DATA: a full heap can still pickle its report."""

CPU_BACKSTOP = 2
"""Seconds after which the kernel ends a process by itself, should its supervisor be gone.

RLIMIT_CPU counts whole seconds and fires early with several threads, so it must lie well behind.
"""


class Baseline(NamedTuple):
    """What the process held and had used when its function was about to start. Bytes, seconds."""

    at: float
    cpu_time: float
    held: int
    resident: int
    file_backed: int
    reserved: int


def measure() -> Baseline:
    """Read the baseline of this process, having reset its high-water mark (proc(5), clear_refs)."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "wb", buffering=0) as file:
        file.write(b"5")  # absent without CONFIG_PROC_PAGE_MONITOR: the peak is then an upper bound
    pid = os.getpid()
    resident, file_backed = proc.resident_memory(pid)
    return Baseline(
        at=time.monotonic(),
        cpu_time=time.process_time(),
        held=proc.anonymous_memory(pid),
        resident=resident,
        file_backed=file_backed,
        reserved=proc.reserved_memory(pid),
    )


def peak(baseline: Baseline) -> int:
    """High-water mark of this process above its baseline, without what files back. Bytes."""
    pid = os.getpid()
    _, file_backed = proc.resident_memory(pid)
    grown = proc.high_water(pid) - baseline.resident
    return max(0, grown - max(0, file_backed - baseline.file_backed))


def impose(limits: Limits, baseline: Baseline) -> tuple[dict[str, str], int | None]:
    """Set what this process can set; give the mechanism of each limit and the gate's listener."""
    mechanisms: dict[str, str] = {}
    for name, kind in RLIMITS.items():
        value = getattr(limits, name)
        if value is not None:
            _lower(kind, value, value)
            mechanisms[name] = f"rlimit {name}"
    if limits.address_space is not None:
        _lower(resource.RLIMIT_AS, limits.address_space, limits.address_space)
        mechanisms["memory"] = "RLIMIT_AS, tree sampled"
    elif limits.memory is not None and limits.from_zero:
        mechanisms["memory"] = "tree sampled and confirmed by PSS"
    elif limits.memory is not None:
        soft = baseline.reserved + limits.memory + MEMORY_SLACK
        _lower(resource.RLIMIT_DATA, soft, soft + MEMORY_RESERVE)
        mechanisms["memory"] = "RLIMIT_DATA, tree sampled and confirmed by PSS"
    if limits.cpu_time is not None:
        seconds = baseline.cpu_time + limits.cpu_time + (limits.grace_period or 0)
        behind = math.ceil(seconds) + CPU_BACKSTOP
        _lower(resource.RLIMIT_CPU, behind, behind)
    listener = None
    if limits.processes is not None:
        listener, mechanisms["processes"] = _close_gate(limits.processes)
    return mechanisms, listener


def _lower(kind: int, soft: int, hard: int) -> None:
    """Set an rlimit, never above the hard one that already stands (an outer task's, say)."""
    standing = resource.getrlimit(kind)[1]
    if standing != resource.RLIM_INFINITY:
        soft, hard = min(soft, standing), min(hard, standing)
    resource.setrlimit(kind, (soft, hard))


def _close_gate(processes: int) -> tuple[int | None, str]:
    """Have each fork asked for; without that mechanism the supervisor counts, and kills."""
    try:
        return seccomp.install_gate(), "seccomp user notification"
    except OSError as error:
        if processes == 0 and error.errno == errno.EBUSY:  # inside another gate
            with contextlib.suppress(OSError):
                seccomp.deny_forks()
                return None, FORK_FILTER
    return None, "counted"


def lift_memory() -> None:
    """Give the report of a full heap the room that was kept for it."""
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
        soft, hard = resource.getrlimit(kind)
        if soft != hard:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(kind, (hard, hard))


def memory_is_short(baseline: Baseline, limits: Limits) -> bool:
    """Whether another thread's stack would no longer fit: what makes `can't start new thread`."""
    if limits.memory is None:
        return False
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    room = 8 << 20 if stack == resource.RLIM_INFINITY else stack
    reserved = proc.reserved_memory(os.getpid())
    return reserved + room >= baseline.reserved + limits.memory + MEMORY_SLACK
