"""The processes of a task, looked at again and again, at little cost where most of them sleep.

A process that has used no CPU time since the last look has started no other, has not ended, and
holds no more by doing of its own. So only the others are asked for their children again: those
that have run, and those above them, to whom orphans come without their doing (subreapers, see
prctl(2)). The clocks come first: what happens after such a look moves the clock, and is seen by the
next.

The kernel brings the clock of a process that runs at this moment up to date at its next tick, so
one that has just been woken may seem to sleep until then (10 ms at most, one look).
"""

from __future__ import annotations

import os
from typing import NamedTuple

from pynisher_exec.kernel import proc
from pynisher_exec.supervisor.cpu import own_clock

__all__ = ["Family"]


class _Member(NamedTuple):
    """What was found of a process; `clock` is seconds, read before its children."""

    clock: float
    parent: int
    children: list[int]


class Family:
    """All processes below this one.

    `still`: those that have not run between the last two looks. `cpu_time`: seconds of all that
    were seen, each by its own clock; what others had used when they were seen last stays in the
    sum. It goes beside the clock of the whole tree, which a task can leave: the kernel drops an
    inherited perf event when a process executes a program that makes it undumpable, one of another
    user or group, or one that it may execute and not read.
    """

    def __init__(self) -> None:
        self.still: set[int] = set()
        self.cpu_time = 0.0
        self._gone = 0.0
        self._members: dict[int, _Member] = {}

    def look(self) -> list[int]:
        """Give the pids of all, parents before their children, zombies included."""
        clocks = {pid: _clock(pid) for pid in self._members}
        asked = self._to_be_asked(clocks)
        own = os.getpid()
        parents = dict.fromkeys(proc.children(own), own)
        found: dict[int, _Member] = {}
        self.still = set()
        for pid in (queue := list(parents)):  # grows while it is walked
            member = self._members.get(pid)
            if member is None or pid in asked:
                clock = clocks.get(pid) or _clock(pid)
                if clock is None:
                    continue
                member = _Member(clock, parents[pid], proc.children(pid))
            else:
                self.still.add(pid)
                member = member._replace(parent=parents[pid])  # an orphan has another one
            found[pid] = member
            fresh = [child for child in member.children if child not in parents]
            parents.update(dict.fromkeys(fresh, pid))
            queue += fresh
        self._sum_up(found)
        return list(found)

    def _to_be_asked(self, clocks: dict[int, float | None]) -> set[int]:
        """Those whose clock has moved, or which have gone, and all above them."""
        asked: set[int] = set()
        for pid, member in self._members.items():
            if clocks[pid] != member.clock:
                self._add_upwards(pid, asked)
        return asked

    def _add_upwards(self, pid: int, asked: set[int]) -> None:
        while pid in self._members and pid not in asked:
            asked.add(pid)
            pid = self._members[pid].parent

    def _sum_up(self, found: dict[int, _Member]) -> None:
        for pid, member in self._members.items():
            if pid not in found or found[pid].clock < member.clock:  # gone, or another's pid now
                self._gone += member.clock
        self._members = found
        self.cpu_time = self._gone + sum(member.clock for member in found.values())

    def stands_still(self) -> bool:
        """Whether none has run since the last look, nor ended: then none has forked, either."""
        return all(_clock(pid) == member.clock for pid, member in self._members.items())


def _clock(pid: int) -> float | None:
    try:
        return own_clock(pid)
    except OSError:
        return None
