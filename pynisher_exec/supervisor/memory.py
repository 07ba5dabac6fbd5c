"""Memory that a task's processes together hold beyond the baseline.

Two steps, since the true figure is dear. The trigger: resident memory of all processes summed,
which counts shared pages once for each process that maps them, so it is never too low. Only when
that is over the limit: Pss_Anon + Pss_Shmem, which divides shared pages among those who map them,
read again if the tree has changed meanwhile. The baseline is subtracted whole though its pages may
be shared with processes outside the tree: an error in the task's favour, of the baseline's size at
most, never one against it.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from pynisher_exec.kernel import libc, proc

__all__ = ["Holder", "MemoryGauge"]

_KCMP_VM = 1


class Holder(NamedTuple):
    """The process of the tree that held most when the limit was passed."""

    pid: int
    name: str
    held: int


class MemoryGauge:
    """Reads one tree. `baseline` is its first process's RssAnon + RssShmem, 0 for none."""

    def __init__(self, baseline: int) -> None:
        self._baseline = baseline
        self.largest: Holder | None = None

    def read(self, pids: list[int], limit: int | None) -> int:
        """Bytes held beyond the baseline; a figure over `limit` has been confirmed."""
        sizes = [proc.resident_memory(pid) for pid in pids]
        if limit is None or sum(resident for resident, _ in sizes) - self._baseline <= limit:
            return sum(max(0, size - shared - self._baseline) for size, shared in sizes)
        exact = sum(proc.anonymous_memory(pid) for pid in pids) - self._baseline
        if exact > limit and len(pids) == 1:  # nothing to divide: looked at twice is confirmed
            self.largest = Holder(pids[0], proc.command_name(pids[0]), exact)
            exact = min(exact, proc.anonymous_memory(pids[0]) - self._baseline)
        if exact <= limit or len(pids) == 1:
            return max(0, exact)
        first = self._fair(pids)
        # Pages that a fork came to share while we read were counted in full before it and in part
        # after it. Where the tree has stayed the same nothing can have been counted twice, and a
        # second reading would only let it grow.
        return min(first, self._fair(pids)) if first > limit and tree() != pids else first

    def _fair(self, pids: list[int]) -> int:
        """The charge: shared pages divided, a shared address space counted once."""
        held: dict[int, int] = {}
        for pid in _distinct(pids):
            fair = proc.fair_memory(pid)
            if fair is None:  # not ours to read: its own share of the baseline is not charged
                fair = max(0, proc.anonymous_memory(pid) - self._baseline)
            held[pid] = fair
        if held:
            pid = max(held, key=lambda each: held[each])
            self.largest = Holder(pid, proc.command_name(pid), held[pid])
        return max(0, sum(held.values()) - self._baseline)


def _distinct(pids: list[int]) -> list[int]:
    """Leave out a child that still runs in its parent's address space (vfork, before its exec)."""
    present = set(pids)
    kept = []
    for pid in pids:
        current = proc.stat(pid)
        if current is None or not current.alive:
            continue
        if current.parent in present and _same_memory(pid, current.parent):
            continue
        kept.append(pid)
    return kept


def _same_memory(first: int, second: int) -> bool:
    """kcmp(2). Where it is not to be had, two processes count as two."""
    try:
        return libc.syscall(libc.number("kcmp"), first, second, _KCMP_VM) == 0
    except OSError:
        return False


def tree() -> list[int]:
    """The processes below this supervisor, parents first."""
    return proc.descendants(os.getpid())
