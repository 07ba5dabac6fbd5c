"""The slots that there are: which of them gets a call, and whether there may be one more."""

from __future__ import annotations

import contextlib
import time
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pynisher_exec.caller.hosts import Hosts
    from pynisher_exec.caller.inbox import PoolOptions
    from pynisher_exec.caller.item import Item, Key
    from pynisher_exec.caller.launch import Host
    from pynisher_exec.caller.slot import Slot

__all__ = ["Roster"]

STARTING_AT_ONCE = 32
"""Slots asked for at one moment: their requests must fit into a template's line."""

SPARE_LINGER, LONGEST_LINGER = 1.0, 60.0
"""Seconds in which no call has come or gone, after which one more slot than work at a time is given
up: it is of use only while one call comes after the other, and 8 MB are in its two processes. Twice
as many each time."""

LONGEST_REST = 120.0
"""Seconds, as `slot.FRESH_AFTER`, which are twice as many each time: where calls come every now and
then, it costs more to give memory back and to take it again."""

READY_AFTER = 0.005
"""Seconds after which a slot's child has done what it can do before its call."""


class Roster:
    """A pool's slots, and the bounds on them. A host whose last slot goes is let go of, too."""

    def __init__(self, options: PoolOptions, hosts: Hosts) -> None:
        self._most = options.max_workers
        # A process that is kept needs no other to be forked, and one of a context has its call.
        self._forks_for_each = options.max_tasks == 1 and options.context is None
        self._max_memory = options.max_memory
        self._linger = options.linger
        self._spare_linger = SPARE_LINGER
        self._hosts = hosts
        self._slots: dict[int, Slot] = {}

    def __iter__(self) -> Iterator[Slot]:
        """Give those there are now, whatever becomes of them meanwhile."""
        return iter(list(self._slots.values()))

    def add(self, slot: Slot) -> None:
        """Take one in."""
        self._slots[slot.number] = slot

    def get(self, number: int) -> Slot | None:
        """Give the one of this number, if it is there still."""
        return self._slots.get(number)

    def of(self, host: Host) -> list[Slot]:
        """Those that a host has forked, or is to fork."""
        return [slot for slot in self._slots.values() if slot.host is host]

    def has_any(self, *states: str) -> bool:
        """Whether one is in such a state."""
        return any(slot.state in states for slot in self._slots.values())

    def some_came_up(self, key: Key) -> bool:
        """Whether one for calls of this key has had a child that waited, and may have one again."""
        return any(slot.idle_since for slot in self._slots.values() if slot.key == key)

    def retire_idle(self) -> bool:
        """Let the one go that has had nothing to do for longest; False where there is none."""
        idle = (slot for slot in self if slot.state == "idle")
        slot = min(idle, key=attrgetter("idle_since"), default=None)
        if slot is not None:
            self.retire(slot)
        return slot is not None

    def idle(self, key: Key) -> Slot | None:
        """Give the slot for a call of this key that has worked last, of those whose child is ready.

        So those that are not needed have nothing to do for long, and take less memory.
        """
        slots = self._slots.values()
        idle = (slot for slot in slots if slot.state == "idle" and slot.key == key)
        fitting = [slot for slot in idle if not self._is_outdone(slot)]
        before = time.monotonic() - READY_AFTER
        ready = [slot for slot in fitting if slot.idle_since <= before]
        since = attrgetter("idle_since")
        return max(ready, key=since) if ready else min(fitting, key=since, default=None)

    def all_work(self) -> bool:
        """Whether as many tasks run as may, or what they have left may still be there."""
        if self._most is None:
            return False
        return sum(map(_may_have_a_task, self._slots.values())) >= self._most

    def enough_are_coming(self, key: Key, waiting: int) -> bool:
        """Whether slots of a key that start, or prepare their next child, will serve all who wait.

        One more than that is worth having: a caller that makes one call after the other then never
        waits for a fork.
        """
        slots = [slot for slot in self._slots.values() if slot.key == key]
        starting = [slot for slot in slots if slot.state == "starting" and not _is_extra(slot)]
        new = sum(not slot.idle_since for slot in starting)
        return new >= min(waiting, STARTING_AT_ONCE) or len(starting) > waiting

    def make_room(self, key: Key) -> bool:
        """Whether one more slot may be; an idle one of another key gives way.

        There may be one more than work at a time: while that runs a task, the one before it forks
        its next child. It is not started with the others, but when a call has to wait for a fork.
        """
        counted = [slot for slot in self._slots.values() if not _is_extra(slot)]
        if self._most is None or len(counted) < self._most:
            return True
        all_came_up = all(slot.idle_since for slot in counted)
        if all_came_up and len(counted) < self._most + self._forks_for_each:
            return True
        for slot in self:
            if slot.state == "idle" and slot.key != key:
                self.retire(slot)
                return True
        return False

    def has_memory_for(self, item: Item) -> bool:
        """Whether a task fits beside those that run, though each should take all that it may."""
        if self._max_memory is None:
            return True
        items = [slot.item for slot in self._slots.values()]
        taken = sum(each.limits.memory or 0 for each in items if each is not None)
        return taken + (item.limits.memory or 0) <= self._max_memory

    def retire(self, slot: Slot) -> None:
        """Let a slot go, and its host if this was the last one there."""
        self._slots.pop(slot.number, None)
        slot.close()
        if not self.of(slot.host):
            self._hosts.release(slot.host)

    def close(self) -> None:
        """Let all go."""
        for slot in self:
            slot.close()
        self._slots.clear()

    def give_up_idle(self, now: float) -> None:
        """Let those go that have had nothing to do for too long."""
        for slot in self:
            end = slot.lingers_until(self._linger)
            if (end is not None and now >= end) or self._is_outdone(slot):
                self.retire(slot)
        end = self._surplus_until()
        if end is not None and now >= end:
            self.retire_idle()
            self._spare_linger = min(2 * self._spare_linger, LONGEST_LINGER)

    def refresh(self, now: float, start: Callable[[Slot], Slot]) -> None:
        """Have a slot that has nothing to do replaced by one that has not done anything yet.

        That one takes some megabytes less: a supervisor that has worked, and its child, have for
        themselves what else all share. `start` starts a slot like a given one.
        """
        for slot in self:
            if slot.follows is not None and slot.idle_since:
                self._settle(slot, slot.follows)
        if self._has_too_many():
            self.retire_idle()
        stale = self._stale()
        if stale is None or now < stale.stale_at:
            return
        stale.rest, stale.refreshed_at = min(2 * stale.rest, LONGEST_REST), now
        with contextlib.suppress(Exception):  # whatever keeps it from starting, nothing is lost
            fresh = start(stale)
            fresh.follows, fresh.rest = stale, stale.rest

    def _settle(self, fresh: Slot, old: Slot) -> None:
        """One has come up: that it follows goes, or it goes itself where that one works again.

        Where both do, this waits: else there would be one more for good.
        """
        if old.state in ("closed", "lost"):
            fresh.follows = None
        elif old.state == "idle" and fresh.state in ("idle", "busy"):
            fresh.follows = None
            fresh.idle_since = old.idle_since  # it has not worked, so that the next call is others'
            self.retire(old)
        elif fresh.state == "idle":
            self.retire(fresh)

    @property
    def _is_replacing(self) -> bool:
        """Whether a slot is there beside the one that it follows."""
        return any(slot.follows is not None for slot in self._slots.values())

    def _has_too_many(self) -> bool:
        """Whether one that was being replaced went otherwise, and both its successors are there."""
        if self._most is None:
            return False
        return len(self._slots) > self._most + self._forks_for_each + self._is_replacing

    def _stale(self) -> Slot | None:
        """Give the slot that is the next to be replaced; one at a time."""
        if not self._forks_for_each or self._is_replacing:
            return None
        idle = [slot for slot in self._slots.values() if slot.state == "idle" and slot.worked]
        fit = [slot for slot in idle if not slot.host.outdated]
        return min(fit, key=attrgetter("stale_at"), default=None)

    def _is_outdone(self, slot: Slot) -> bool:
        """Whether it has nothing to do, and others have come up that have more imported ahead."""
        if slot.state != "idle" or not slot.host.outdated:
            return False
        others = (each for each in self._slots.values() if each.key == slot.key)
        return any(each.idle_since and not each.host.outdated for each in others)

    def _surplus_until(self) -> float | None:
        """When one slot more than work at a time is of no use any more."""
        if self._most is None or len(self._slots) <= self._most:
            return None
        idle = [slot.idle_since for slot in self._slots.values() if slot.state == "idle"]
        return max(idle) + self._spare_linger if len(idle) == len(self._slots) else None

    @property
    def next_due(self) -> float | None:
        """When the first deadline of a slot is."""
        times = [slot.next_deadline for slot in self._slots.values()]
        times += [slot.lingers_until(self._linger) for slot in self._slots.values()]
        stale = self._stale()
        times.append(None if stale is None else stale.stale_at)
        times.append(self._surplus_until())
        return min((each for each in times if each is not None), default=None)


def _is_extra(slot: Slot) -> bool:
    """Whether it is to replace another and has not come up: no call waits for it, it might hang."""
    return slot.follows is not None and not slot.idle_since


def _may_have_a_task(slot: Slot) -> bool:
    """Whether it runs one, or may have left something of one."""
    return slot.item is not None or (slot.state == "lost" and slot.idle_since > 0)
