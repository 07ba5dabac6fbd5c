"""CPU time of a task's whole tree.

With perf's task clock, opened on the fresh child before it does anything, the kernel adds up all
that ever descends from it: ended, orphaned and disowned processes too (perf_event_open(2),
`inherit`). Where that call is refused, the slot's control group does. Without either the clocks of
the living are summed with what has been reaped; of a process whose parent ignores SIGCHLD, only
what was seen while it lived counts then.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from typing import TYPE_CHECKING, Protocol

from pynisher_exec.kernel import perf, proc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pynisher_exec.kernel.cgroup import Group

__all__ = [
    "CpuClock",
    "GroupClock",
    "LivingClocks",
    "PerfClock",
    "SummedClocks",
    "is_refused",
    "open_clock",
    "own_clock",
]


class CpuClock(Protocol):
    """Seconds of CPU time of one tree, from the first process's fork on."""

    mechanism: str

    def read(self) -> float:
        """Seconds so far; still right when the tree has ended and been reaped."""

    def close(self) -> None:
        """Release what the clock holds."""


class PerfClock:
    """The kernel's own sum."""

    mechanism = "perf task clock"

    def __init__(self, pid: int) -> None:
        self._descriptor = perf.open_task_clock(pid)
        # The child ran a little before the counter was there; its own clock tells how much.
        self._before = own_clock(pid) - perf.read_seconds(self._descriptor)

    def read(self) -> float:
        """See `CpuClock`."""
        return perf.read_seconds(self._descriptor) + self._before

    def close(self) -> None:
        """See `CpuClock`."""
        os.close(self._descriptor)


class SummedClocks:
    """Own clocks of the living, what their parents have reaped, and what this process has reaped.

    Parents are read before their children: a child that ends in between is then missing for one
    look; read the other way round it would be counted twice.
    """

    mechanism = "summed process clocks"

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._reaped_before = _reaped()

    def read(self) -> float:
        """See `CpuClock`."""
        total = _reaped() - self._reaped_before
        for pid in proc.descendants(os.getpid()):
            current = proc.stat(pid)
            if current is not None:
                with contextlib.suppress(OSError):
                    total += own_clock(pid) + current.reaped_cpu_time
        return total

    def close(self) -> None:
        """Nothing is held."""


class LivingClocks:
    """Each process's own clock, beside the one of the whole tree, which a task can leave.

    The kernel drops an inherited perf event when a process executes a program that makes it
    undumpable: one of another user or group, or one that it may execute and not read.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._seen: dict[int, float] = {}
        self._gone = 0.0

    def note(self, pids: Sequence[int]) -> None:
        """Read those that live; what others had used when they were read last stays in the sum."""
        now = {pid: clock for pid in pids if (clock := _clock_or_none(pid)) is not None}
        for pid, clock in self._seen.items():
            if now.get(pid, -1.0) < clock:  # it has gone, or its pid is another's
                self._gone += clock
        self._seen = now
        self.total = self._gone + sum(now.values())

    def stand_still(self) -> bool:
        """Whether none of them has run since, nor ended: then none has forked, either."""
        return all(_clock_or_none(pid) == clock for pid, clock in self._seen.items())


def _clock_or_none(pid: int) -> float | None:
    try:
        return own_clock(pid)
    except OSError:
        return None


class GroupClock:
    """The sum of this supervisor's control group, without what it has used itself."""

    mechanism = "cgroup cpu.stat"

    def __init__(self, group: Group) -> None:
        self._group = group
        self._before = 0.0
        self._before = self.read()

    def read(self) -> float:
        """See `CpuClock`."""
        return (self._group.cpu_time() or 0.0) - time.process_time() - self._before

    def close(self) -> None:
        """Nothing is held."""


def is_refused() -> bool:
    """Whether this process is refused perf's clock."""
    try:
        os.close(perf.open_task_clock(os.getpid()))
    except OSError:
        return True
    return False


def open_clock(pid: int, group: Group) -> CpuClock:
    """Give the best clock that this machine allows for the tree below a child just forked."""
    try:
        return PerfClock(pid)
    except OSError:
        return SummedClocks(pid) if group.cpu_time() is None else GroupClock(group)


def own_clock(pid: int) -> float:
    """The CPU clock of another process, by its clock id's encoding (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def _reaped() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
