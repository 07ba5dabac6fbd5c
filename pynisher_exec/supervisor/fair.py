"""The memory of a tree with shared pages divided, read in a thread of its own.

The kernel tells a process's shares (smaps_rollup) under the lock of its memory map, and walks all
its pages. Both take their time: the lock is held while that process forks, for seconds in a fork
bomb, and a map of 8 GiB takes the better part of one. The supervisor's clocks cannot wait so long.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

from pynisher_exec.kernel import libc, proc
from pynisher_exec.supervisor import tree

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["FairReader", "FairReading"]

_KCMP_VM = 1
_ALIKE = 4 << 20
"""Bytes by which the size of one address space may differ between two looks at it: its owner may
run again by the second one."""

_LOOKS = 3
"""How often to read a process that maps, reads or lets go of a share meanwhile."""

_END_TIME = 5.0
"""Seconds to wait for the thread's end: it has been told, and reads one process at most."""


class FairReading:
    """What each process of a tree holds, the largest first: Pss_Anon + Pss_Shmem.

    But for what lies in the caller's `shares` (places), which nobody is charged with. `pids` come
    in that order. What has been read so far is a lower bound of the whole, if nothing moved from
    one process to another meanwhile. A shared address space (vfork(2)) counts once.
    """

    def __init__(
        self, pids: Sequence[int], baseline: int, shares: Collection[bytes] = frozenset()
    ) -> None:
        self.pids = pids
        self.held: dict[int, int] = {}
        self._anonymous: dict[int, int] = {}  # what of that is, where it could be told
        self._private: dict[int, int] = {}
        self.ended: float | None = None
        self._began = time.monotonic()
        self._baseline = baseline
        self._shares = shares
        self._left = iter(pids)
        self._present = frozenset(pids)
        self._started: dict[int, int] = {}

    @property
    def age(self) -> float:
        """Seconds that it took, or has taken."""
        return (self.ended or time.monotonic()) - self._began

    @property
    def total(self) -> int:
        """Bytes that have been found beyond the baseline."""
        return max(0, sum(list(self.held.values())) - self._baseline)

    def remaining(self) -> dict[int, int]:
        """What each process held, as far as it can have that still.

        Else memory that is used by turns would count more than once: one process is read before it
        lets go of that, the next one when it has taken it.
        """
        return {pid: self._remaining(pid, held) for pid, held in list(self.held.items())}

    def _remaining(self, pid: int, held: int) -> int:
        resident, others = proc.resident_memory(pid)
        anonymous = self._anonymous.get(pid)
        if anonymous is None:
            return min(held, resident)
        return min(anonymous, resident - others) + min(held - anonymous, others)

    def alone(self, remaining: Mapping[int, int]) -> int:
        """Bytes of that beyond the baseline that one process only had mapped, each of them."""
        private = ((self._private.get(pid, 0), left) for pid, left in remaining.items())
        return max(0, sum(map(min, private)) - self._baseline)

    def stands(self) -> bool:
        """Whether all that were to be read have been and are there still, and no other has come.

        What one had shared when it ended may have been counted for it, and again for others.
        """
        found = set(tree.walk())
        if not found.issuperset(self.pids):  # it may have missed others, too
            return False
        if any(proc.is_alive(pid) for pid in found - self._present):
            return False
        return all(self._lives(pid) for pid in self.pids)

    def _lives(self, pid: int) -> bool:
        current = proc.stat(pid)
        return current is not None and current.alive and current.started == self._started.get(pid)

    def advance(self) -> bool:
        """Read the next process; False when all have been."""
        pid = None if self.ended else next(self._left, None)
        if pid is None:
            self.end()
            return False
        self._read(pid)
        return True

    def end(self) -> None:
        """Read no more."""
        self.ended = self.ended or time.monotonic()

    def _read(self, pid: int) -> None:
        current = proc.stat(pid)
        if current is None or not current.alive:
            return
        self._started[pid] = current.started
        parent = current.parent if current.parent in self._present else None
        # Asked before the reading: a child has its parent's memory from its birth to its exec, and
        # never again, so what has none of it now is read as what it is.
        borrows = None if parent is None else _borrows(pid, parent)
        if borrows:
            return
        fair = self._fair_memory(pid)
        if fair is None:  # not ours to read: its own share of the baseline is not charged
            self.held[pid] = max(0, proc.anonymous_memory(pid) - self._baseline)
        elif parent is None or borrows is not None or not _are_alike(fair, parent):
            self._anonymous[pid], self._private[pid] = fair.anonymous, fair.private
            self.held[pid] = fair.anonymous + fair.shared

    def _fair_memory(self, pid: int) -> proc.FairMemory | None:
        """What a process holds without what lies in the shares: the less by two accounts of it.

        Who else has a share mapped changes its pages' Pss from one look to the next, but not how
        many of them this process has. It alone changes that; so they are counted before and after,
        and all is read again where that differs. One that changes it all the time may be charged
        with less than it holds, by the size of the shares: rather that than a reader with more.
        """
        if not self._shares:
            return proc.fair_memory(pid)
        fair, held = None, 0
        for _ in range(_LOOKS):
            before = self._in_shares(pid)
            resident = proc.shared_memory(pid)
            fair = proc.fair_memory(pid)
            if fair is None:
                return None
            after = self._in_shares(pid)
            count = len(self.pids)
            in_shares = max(each.fair(fair.anonymous, count) for each in (before, after))
            held = min(
                fair.shared - in_shares,
                resident - max(before.resident, after.resident),
            )
            if held <= 0 or before.resident == after.resident:
                break
        return None if fair is None else fair._replace(shared=max(0, held))

    def _in_shares(self, pid: int) -> proc.SealedMemory:
        return proc.sealed_memory(pid, self._shares)


def _borrows(pid: int, parent: int) -> bool | None:
    """Whether a child runs in its parent's address space (vfork, before its exec).

    None where that is not to be had, since kcmp(2) is refused, as in many containers, but may be:
    the parent waits, uninterruptibly, or is about to.
    """
    try:
        return libc.syscall(libc.number("kcmp"), pid, parent, _KCMP_VM) == 0
    except OSError:
        return False if {"D", "R"}.isdisjoint(proc.thread_states(parent)) else None


def _are_alike(fair: proc.FairMemory, parent: int) -> bool:
    """Whether what was read is the parent's, too: the same addresses, and as much there."""
    its = proc.fair_memory(parent)
    if its is None or its.place != fair.place:
        return False
    return abs(its.resident - fair.resident) <= _ALIKE


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


class FairReader:
    """The thread; `bell` is an eventfd that rings when a reading has ended, closed by the thread.

    Raises RuntimeError, OSError or MemoryError where there is no room for it. Not by `threading`,
    whose hooks a fork of the caller may have set, and whose `join` comes back, before Python 3.13,
    while the thread still is one: the supervisor has to be alone when it forks again.
    """

    def __init__(self) -> None:
        self._wanted: SimpleQueue[FairReading | None] = SimpleQueue()
        self._others = _threads()
        self.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            _thread.start_new_thread(self._serve, ())
        except BaseException:
            os.close(self.bell)
            raise

    def want(self, reading: FairReading) -> None:
        """Have it taken, after those that were wanted before."""
        self._wanted.put(reading)

    def heard(self) -> None:
        """Take note of the bell."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.bell)

    def close(self) -> None:
        """Tell the thread to end, and see it gone unless that takes too long.

        It has nothing to wait for once the tree is gone. A process that lives on, to serve other
        tasks, may hold it up by the lock of its memory map: while it forks, or because it is huge.
        """
        self._wanted.put(None)
        deadline = time.monotonic() + _END_TIME
        while _threads() > self._others and time.monotonic() < deadline:
            time.sleep(0.0002)

    def _serve(self) -> None:
        while (reading := self._wanted.get()) is not None:
            # Without memory, what it has found by now counts, and the next one may go better.
            with contextlib.suppress(MemoryError):
                while reading.advance():
                    pass
            reading.end()
            os.eventfd_write(self.bell, 1)
        # Not by who tells it to end: a thread that is late would ring what has the number by then.
        os.close(self.bell)
