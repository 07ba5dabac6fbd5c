"""Memory that a task's processes together hold beyond the baseline.

Two steps, since the true figure is dear. The trigger: resident memory of all processes summed,
which counts shared pages once for each process that maps them, so it is never too low. Only when
that is over the limit: Pss_Anon + Pss_Shmem, which divides shared pages among those who map them,
read again if the tree has changed meanwhile. The baseline is subtracted whole though its pages may
be shared with processes outside the tree: an error in the task's favour, of the baseline's size at
most, never one against it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from queue import SimpleQueue
from typing import NamedTuple

from pynisher_exec.kernel import libc, proc

__all__ = ["Holder", "MemoryGauge"]

_KCMP_VM = 1
PEAK_STEP = 1.25
PEAK_SHARE = 100
"""Below the limit the dear reading is taken where the cheap one has grown by that factor since, and
else for at most one part in that many of the time."""


PATIENCE = 0.1
"""Seconds for which the dear reading is waited for."""


class Holder(NamedTuple):
    """The process of the tree that held most when the limit was passed."""

    pid: int
    name: str
    held: int


class MemoryGauge:
    """Reads one tree. `baseline` is its first process's RssAnon + RssShmem, 0 for none.

    `peak` is the largest figure read, counted as the limit counts.
    """

    def __init__(self, baseline: int, first: int) -> None:
        self.peak = 0
        self.largest: Holder | None = None
        self._baseline = baseline
        self._first = first
        self._divided = 1
        self._fair_after = 0.0
        self._reader: _FairReader | None = None

    def read(self, pids: list[int], limit: int | None) -> int:
        """Bytes held beyond the baseline: what is over `limit` has been confirmed, else a bound."""
        sizes = {pid: proc.resident_memory(pid)[0] for pid in pids}
        bound = sum(sizes.values()) - self._baseline
        pids = sorted(pids, key=sizes.__getitem__, reverse=True)
        if len(pids) > 1:
            self._prepare_reader()
        if limit is not None and bound > limit:
            held = self._confirmed(pids, limit)
        elif bound > self.peak:
            held = self._estimated(pids)
        else:
            return max(0, bound)  # no more than what has been seen already
        return held

    def _confirmed(self, pids: list[int], limit: int) -> int:
        exact = sum(map(proc.anonymous_memory, pids)) - self._baseline
        if exact > limit and len(pids) == 1:  # nothing to divide: looked at twice is confirmed
            self.largest = Holder(pids[0], proc.command_name(pids[0]), exact)
            exact = min(exact, proc.anonymous_memory(pids[0]) - self._baseline)
        if exact <= limit or len(pids) == 1:
            return self._noted(exact)
        first = self._fair(pids)
        # Pages that a fork came to share while we read were counted in full before it and in part
        # after it. Where the tree has stayed the same nothing can have been counted twice, and a
        # second reading would only let it grow.
        changed = first > limit and set(tree()) != set(pids)
        return self._noted(min(first, self._fair(pids)) if changed else first)

    def _estimated(self, pids: list[int]) -> int:
        """Below the limit: only for the peak, so at little cost."""
        exact = max(0, sum(map(proc.anonymous_memory, pids)) - self._baseline)
        if len(pids) == 1:
            return self._noted(exact)
        if self._reader is None:  # reading them here could hold up the clocks
            return exact
        now = time.monotonic()
        if exact < self._divided * PEAK_STEP and (exact <= self.peak or now < self._fair_after):
            return exact
        self._divided = max(exact, self._divided)
        fair = self._fair(pids)
        done = time.monotonic()
        self._fair_after = done + (done - now) * PEAK_SHARE
        return self._noted(fair)

    def _noted(self, held: int) -> int:
        held = max(0, held)
        self.peak = max(self.peak, held)
        return held

    def _fair(self, pids: list[int]) -> int:
        """The charge: shared pages divided, a shared address space counted once.

        What time does not suffice for counts as nothing, so that what is found is never too much.
        """
        if self._reader is None:
            held: dict[int, int] = {}
            _read_fairly(pids, self._baseline, held)
        else:
            held = self._reader.read(pids)
        if held:
            pid = max(held, key=lambda each: held[each] - self._baseline * (each == self._first))
            self.largest = Holder(pid, proc.command_name(pid), held[pid])
        return max(0, sum(held.values()) - self._baseline)

    def _prepare_reader(self) -> None:
        """Once there is more than one process; later, a fork bomb may have left no room for it."""
        if self._reader is None:
            reader = _FairReader(self._baseline)
            with contextlib.suppress(RuntimeError):  # no room: what must be confirmed is read here
                reader.start()
                self._reader = reader

    def close(self) -> None:
        """End the reader, once its processes have gone and no reading waits for them."""
        if self._reader is not None:
            self._reader.end()
            self._reader = None


class _FairReader(threading.Thread):
    """Reads the shares of processes while the supervisor keeps its clocks.

    The kernel tells them under the lock of a process's memory map, which that process holds while
    it forks: in a fork bomb, one reading has waited for more than ten seconds. The supervisor joins
    the thread before it forks again.
    """

    def __init__(self, baseline: int) -> None:
        super().__init__(daemon=True)
        self._baseline = baseline
        self._wanted: SimpleQueue[list[int] | None] = SimpleQueue()
        self._held: dict[int, int] = {}
        self._idle = threading.Event()
        self._idle.set()

    def read(self, pids: list[int]) -> dict[int, int]:
        """What could be read of these within `PATIENCE`; nothing while an earlier call waits."""
        if not self._idle.is_set():
            return {}
        self._idle.clear()
        self._held = {}
        self._wanted.put(pids)
        self._idle.wait(PATIENCE)
        return dict(self._held)

    def end(self) -> None:
        """Have it end, and wait for that."""
        self._wanted.put(None)
        self.join()

    def run(self) -> None:
        """Read what is wanted, one after the other."""
        while (pids := self._wanted.get()) is not None:
            _read_fairly(pids, self._baseline, self._held)
            self._idle.set()


def _read_fairly(pids: list[int], baseline: int, held: dict[int, int]) -> None:
    """Fill in what each holds, the largest first, until `PATIENCE` is over."""
    until = time.monotonic() + PATIENCE
    for pid in _distinct(pids):
        if held and time.monotonic() > until:
            return
        fair = proc.fair_memory(pid)
        if fair is None:  # not ours to read: its own share of the baseline is not charged
            fair = max(0, proc.anonymous_memory(pid) - baseline)
        held[pid] = fair


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
