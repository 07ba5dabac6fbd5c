"""Memory that a task's processes together hold beyond the baseline.

Two steps, since the true figure is dear. The trigger: resident memory of all processes summed,
which counts shared pages once for each process that maps them, so it is never too low. Only when
that is over the limit: Pss_Anon + Pss_Shmem, which divides shared pages among those who map them;
it comes some time later (see `fair`), and until then nothing is known to be over. The baseline is
subtracted whole though its pages may be shared with processes outside the tree: an error in the
task's favour, of the baseline's size at most, never one against it.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, NamedTuple

from pynisher_exec.kernel import proc
from pynisher_exec.limits import size_text
from pynisher_exec.supervisor.fair import FairReader, FairReading
from pynisher_exec.supervisor.state import DEAREST_LOOK, LOOK_SHARE

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Holder", "MemoryGauge"]

PEAK_STEP = 1.25
PEAK_SHARE = 100
"""Below the limit the dear reading is taken where the cheap one has come to that many times what it
was. Else for at most one part in that many of the time; in `LOOK_SHARE` where the peak may be that
many times what is known."""

LONG = 0.1
"""Seconds after which what a reading has found by then, which is too much already, shall be found
once more: the rest of it is not waited for."""

FASTEST = 8 << 30
"""Bytes that a tree can come to hold in a second of its CPU time: huge pages, zeroed by the kernel
and touched. Without CPU time it does not grow, whoever shares its pages."""

TURN = 0.02
"""Seconds for the dear reading at each look where it has no thread."""


class Holder(NamedTuple):
    """The process that held most, beyond the baseline, when the limit was passed; of how many."""

    pid: int
    name: str
    held: int
    living: int

    def __str__(self) -> str:
        who = f"{self.name} (pid {self.pid})"
        if self.living == 1:
            return f"by {who}"
        return f"in {self.living} processes; the largest, {who}, held {size_text(self.held)}"


class MemoryGauge:
    """Reads one tree. `baseline` is its first process's RssAnon + RssShmem, 0 for none.

    `shares`: places of the caller's shared objects; what lies there is not charged to anybody who
    reads it. `living`: how many processes the last look found that were no zombies. `is_unsure`:
    whether it found the limit passed, perhaps, or a new peak, and nothing is known yet: then it is
    worth another look though the tree should sleep.

    `peak` is the largest figure read, counted as the limit counts. `cost` is the seconds of a dear
    reading that ended with the last look. `bell`, once there is one, can be read when to look.
    """

    def __init__(self, baseline: int, first: int, shares: Collection[bytes] = frozenset()) -> None:
        self.peak = 0
        self.largest: Holder | None = None
        self.cost = 0.0
        self._baseline = baseline
        self._first = first
        self.living = 0
        self.is_unsure = False
        self._shares = shares
        self._divided = 1
        self._no_files: dict[int, tuple[int, int]] = {}
        self._estimated = -math.inf, 0.0  # when the last reading for it ended, and its age
        self._for_peak = False  # what is under way is
        self._moved = False  # processes came or went during the last one of these
        self._rest_until = 0.0
        self._before: dict[int, int] = {}
        self._used = math.inf
        # A charge; the CPU time before its reading, and what was mapped then, each page in full.
        self._known: tuple[int, float, int] | None = None
        self._mapped = 0
        self._begun_at = math.inf
        self._begun_with = 0
        self._reader: FairReader | None = None
        self._reading: FairReading | None = None

    @property
    def bell(self) -> int | None:
        """A descriptor that becomes readable when a reading has ended; None while there is none."""
        return None if self._reader is None else self._reader.bell

    def read(self, pids: list[int], limit: int | None, used: float = math.inf) -> int:
        """Bytes held beyond the baseline: what is over `limit` has been confirmed, else a bound.

        `used` is the CPU time of the whole tree so far, where there is a clock for that.
        """
        self.cost = 0.0
        self._used = used
        if self._reader is not None:
            self._reader.heard()
        found = {pid: proc.resident_memory(pid) for pid in pids}
        sizes = {pid: size for pid, size in found.items() if size[0]}  # the others have ended
        pids = list(sizes)
        self.living = len(pids)
        self.is_unsure = False
        bound = max(0, sum(resident for resident, _ in sizes.values()) - self._baseline)
        over = limit is not None and bound > limit
        if not over and bound <= self.peak and self._reading is None:
            return bound  # no more than what has been seen already
        exact = self._mapped = max(0, self._anonymous(sizes) - self._baseline)
        if len(pids) == 1 and not self._shares:  # what is read of those has to be looked up
            return self._noted(self._alone(pids[0], exact, limit))
        pids = sorted(pids, key=lambda pid: sizes[pid][0], reverse=True)
        if limit is not None and exact > limit:
            if (held := self._held_by_one(sizes, limit)) > limit:
                return self._noted(held)
            held = self._confirmed(pids, limit)
            self.is_unsure = held == limit
            return held
        self._estimate(pids, exact)
        return exact

    def _anonymous(self, sizes: dict[int, tuple[int, int]]) -> int:
        """RssAnon + RssShmem of all. How much of what is shared is no file's is read as it changes.

        Resident memory and what of it is shared come from a quick look; the rest is slow to read,
        and 200 processes are looked at twenty times a second.
        """
        total, known = 0, self._no_files
        self._no_files = {}
        for pid, (resident, shared) in sizes.items():
            before = known.get(pid)
            if before is None or before[0] != shared:
                before = shared, min(shared, proc.shared_memory(pid))
            self._no_files[pid] = before
            total += resident - shared + before[1]
        return total

    def _alone(self, pid: int, exact: int, limit: int | None) -> int:
        """One process has nothing to divide: looked at twice is confirmed."""
        if limit is None or exact <= limit:
            return exact
        self.largest = Holder(pid, proc.command_name(pid), exact, 1)
        return min(exact, max(0, proc.anonymous_memory(pid) - self._baseline))

    def _held_by_one(self, sizes: dict[int, tuple[int, int]], limit: int) -> int:
        """What one process holds of its own, if that is more: with others it holds no less.

        To tell apart what they share takes a while, in which they could write to all of it.
        """
        own = {pid: resident - shared for pid, (resident, shared) in sizes.items()}
        pid = max(own, key=own.__getitem__)
        if own[pid] - self._baseline <= limit:
            return 0
        held = max(0, proc.private_memory(pid) - self._baseline)
        if held > limit:
            self.largest = Holder(pid, proc.command_name(pid), held, self.living)
        return held

    def _confirmed(self, pids: list[int], limit: int) -> int:
        """The charge, once it is known to be over the limit; the limit while it is not.

        What moves from one process to another during a reading (a fork comes to share pages, a map
        is handed on) may count twice. So each process counts with the less of two readings, one
        after the other, and with no more than it can have still. One is enough where it was quick,
        the tree has stayed the same, and what nobody shares is too much already.
        """
        if self._reading is None and self._known is not None:
            charge, since, mapped = self._known
            # No CPU time bounds how much may be mapped of pages that are there already.
            newly = max(0, self._mapped - mapped)
            if charge + newly + (self._used - since) * FASTEST <= limit:
                return charge  # it cannot have passed it meanwhile
        reading = self._dear(pids)
        if reading is None:
            return limit
        whole = reading.ended is not None  # asked first: it goes on
        held = reading.total
        if held <= limit:
            return self._found_below(reading, held, limit) if whole else limit
        found = dict(reading.held)
        sure = self._sure(reading, limit)
        if sure > limit:
            self._finish(reading)
            return self._noted(sure)
        if whole or reading.age > LONG:
            self._finish(reading, 1 if self._before else 0)
            self._before = found
            self._dear(pids)
        return limit

    def _sure(self, reading: FairReading, limit: int) -> int:
        """What is held at least, by this reading and the one before."""
        before = self._before
        quick = reading.ended is not None and reading.age <= LONG
        if not (quick or before):
            return 0
        remaining = reading.remaining()
        alone = reading.alone(remaining) if quick else 0
        if alone > limit and reading.stands():
            return alone
        return (
            sum(min(left, before.get(pid, 0)) for pid, left in remaining.items()) - self._baseline
        )

    def _found_below(self, reading: FairReading, held: int, limit: int) -> int:
        """Take a whole reading; the limit where it may have been passed since that began."""
        self._before.clear()
        newly = max(0.0, self._mapped - self._begun_with)
        if self._begun_at == math.inf:
            self._known = None
        else:
            self._known = held, self._begun_at, self._begun_with
            newly += (self._used - self._begun_at) * FASTEST
        passed = held + newly > limit
        self._finish(reading, 1 if passed else LOOK_SHARE)
        self._note_reading(reading)
        return limit if passed else held

    def _estimate(self, pids: list[int], exact: int) -> None:
        """Below the limit: only for the peak, so at little cost."""
        now = time.monotonic()
        if self._reading is None and not self._peak_is_due(exact, now):
            return
        reading = self._dear(pids, for_peak=True)
        if reading is not None and reading.ended:
            self._finish(reading)
            self._note_reading(reading)
            self._moved = not reading.stands()
            self._estimated = now, reading.age
            self.is_unsure = self._is_behind(exact)

    def _peak_is_due(self, exact: int, now: float) -> bool:
        if exact >= self._divided * PEAK_STEP:
            self._divided = exact
            return True
        self.is_unsure = self._is_behind(exact)
        at, age = self._estimated
        share = LOOK_SHARE if self.is_unsure else PEAK_SHARE
        return exact > self.peak and now >= at + age * share

    def _is_behind(self, exact: int) -> bool:
        """Whether the peak may be much more than is known: by what the last reading missed."""
        grown = exact - self._begun_with > self.peak * (PEAK_STEP - 1)
        return exact > self.peak and (self._moved or grown)

    def _note_reading(self, reading: FairReading) -> None:
        """Note what the processes that have been read hold together, those still there."""
        self._noted(sum(reading.remaining().values()) - self._baseline)

    def _noted(self, held: int) -> int:
        self.peak = max(self.peak, held)
        return held

    def _dear(self, pids: list[int], *, for_peak: bool = False) -> FairReading | None:
        """The reading that is under way, or a new one; None while it is too early for that."""
        if self._reading is None:
            if time.monotonic() < self._rest_until:
                return None
            self._reading = FairReading(pids, self._baseline, self._shares)
            self._begun_at, self._begun_with = self._used, self._mapped
            self._for_peak = for_peak
            if self._reader is None:
                # A fork bomb may have left no room for a thread.
                with contextlib.suppress(RuntimeError, OSError, MemoryError):
                    self._reader = FairReader()
            if self._reader is not None:
                self._reader.want(self._reading)
        if self._reader is None:
            until = time.monotonic() + TURN
            while self._reading.advance() and time.monotonic() < until:
                pass
        self._note_largest(self._reading.held)
        return self._reading

    def _note_largest(self, found: dict[int, int]) -> None:
        held = dict(found)
        if self._first in held:
            held[self._first] = max(0, held[self._first] - self._baseline)
        if held:
            pid = max(held, key=lambda each: held[each])
            self.largest = Holder(pid, proc.command_name(pid), held[pid], self.living)

    def _finish(self, reading: FairReading, share: int = LOOK_SHARE) -> None:
        """Done with a reading; another one after `share` times as long.

        One that was begun for the peak is paid for by `_peak_is_due`: the limit has not to wait.
        """
        reading.end()
        self._reading = None
        if self._for_peak:
            return
        rest = min(reading.age * share, DEAREST_LOOK)
        self.cost = rest / LOOK_SHARE
        self._rest_until = time.monotonic() + rest

    def close(self) -> None:
        """End what is under way: the task is over, though its process may live on for others."""
        if self._reading is not None:
            self._reading.end()  # no other process of the tree is read for it
            self._reading = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None
