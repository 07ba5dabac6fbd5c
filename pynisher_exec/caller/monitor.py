"""The monitor thread: gives tasks to slots, hears how they ended, resolves futures.

It alone talks to supervisors, pickles calls and resolves futures, so none of that needs a lock.
It may be late (somebody may hold the interpreter lock): the limits are not, since supervisors keep
them. It ends when its inbox has been closed and everything is done.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from pynisher_exec.caller.account import Ending, conclude, never_started
from pynisher_exec.caller.hosts import Hosts
from pynisher_exec.caller.item import Item, Key, key_of
from pynisher_exec.caller.launch import is_fork
from pynisher_exec.caller.leftovers import Leftovers
from pynisher_exec.caller.roster import Roster
from pynisher_exec.caller.slot import Slot
from pynisher_exec.errors import RemoteTraceback, UnpicklableError
from pynisher_exec.report import Status

if TYPE_CHECKING:
    from pynisher_exec.caller.inbox import Inbox, PoolOptions
    from pynisher_exec.caller.launch import Host
    from pynisher_exec.caller.reactor import Reactor

__all__ = ["Monitor"]

RETRY_AFTER = 0.5
"""Seconds before a slot is started again when one could not be, while others work."""

END_HEARD_AFTER = 0.05
"""Seconds after which the end of a process whose line has ended has surely been heard."""

MOST_TRIES = 3
"""Times that a call whose child died before it began is sent."""

TERMINATE_TIME = 5.0
"""Seconds between SIGTERM and SIGKILL in `terminate_workers`."""

END_TIME = 5.0
"""Seconds beyond `kill_timeout` that a closed pool waits for its hosts, then it kills them."""


class Monitor:
    """The slots of a pool, and what is done with them. Everything here is the thread's alone."""

    def __init__(self, inbox: Inbox, reactor: Reactor, options: PoolOptions) -> None:
        self._inbox = inbox
        self._reactor = reactor
        self._options = options
        self._bound = options.context is not None  # each process is started for one call
        self.forks = options.context is not None and is_fork(options.context)
        self._hosts = Hosts(reactor, self, options.context, options.preload, options.startup_time)
        self._slots = Roster(options, self._hosts)
        self._begun: set[Item] = set()  # taken off the queue, and their futures not resolved yet
        self._leftovers = Leftovers(reactor.ring)
        self._patience = options.kill_timeout + END_TIME
        self._numbers = 0
        self._retry_at: float | None = None
        self._force_at: float | None = None

    def serve(self) -> None:
        """Run until the inbox is closed and all is done; what the thread executes."""
        try:
            self._serve()
        except BaseException as error:
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        """A defect of ours: nobody shall wait for what this thread will not do any more."""
        self._inbox.close(cancel_queued=False, force=None)
        while (queued := self._inbox.take()) is not None:
            self._begun.add(queued)
        for item in list(self._begun):
            self._fail(item, f"the monitor thread has failed: {error!r}", error)
        self._wind_up()

    def _serve(self) -> None:
        while not self._is_done():
            self._obey()
            self._dispatch()
            self._mind_deadlines()
            if not self._is_done():
                self._reactor.turn(self._next_due())
        self._wind_up()

    def _is_done(self) -> bool:
        if not self._inbox.closed or len(self._inbox):
            return False
        return not self._begun

    def _wind_up(self) -> None:
        """All futures are resolved: let the processes go, and see them gone."""
        self._slots.close()
        self._hosts.release_all()
        self._await_hosts(time.monotonic() + self._patience)
        self._hosts.kill_all()
        self._await_hosts(time.monotonic() + END_TIME)
        self.release()

    def _await_hosts(self, deadline: float) -> None:
        while self._hosts.living and time.monotonic() < deadline:
            self._reactor.turn(deadline)

    def release(self) -> None:
        """Close what is held; nothing of it runs any more, or never did."""
        self._hosts.close()
        self._reactor.close()

    def _obey(self) -> None:
        """Do what other threads have asked for."""
        dropped, force = self._inbox.orders()
        for item in dropped:
            self._drop(item)
        if force is not None:
            self._force(force)
        for item, ending in self._leftovers.removed():
            self._settle(item, ending)
        for slot in self._slots:
            if slot.item is not None and slot.item.cancelled == "asked":
                self._end(slot, slot.item, "kill")

    def _drop(self, item: Item) -> None:
        """Cancel a call that is in no slot, one that had begun before it came back too."""
        if item.future.cancel_if_pending():
            self._begun.discard(item)
        else:
            item.cancelled = item.cancelled or "kill"
            self._conclude(item, Ending({"stage": "waiting"}))

    def _end(self, slot: Slot, item: Item, how: str) -> None:
        """End what a slot runs: by KILL, or by giving up a slot that has not come up with it."""
        item.cancelled = how
        if slot.state == "busy":
            slot.kill("cancelled", gently=how == "gently")
        elif slot.state in ("starting", "idle"):
            slot.item = None
            self._slots.retire(slot)
            self._drop(item)

    def _force(self, how: str) -> None:
        """End what runs: "kill" at once, "gently" by SIGTERM first."""
        for slot in self._slots:
            if slot.item is not None and slot.item.cancelled != "kill":
                self._end(slot, slot.item, how)
        if how == "gently":
            self._force_at = time.monotonic() + TERMINATE_TIME

    # -- giving out tasks ------------------------------------------------------------------------

    def _dispatch(self) -> None:
        while (item := self._inbox.take()) is not None:
            if item.future.cancelled():
                self._begun.discard(item)
            elif item.cancelled:
                self._drop(item)
            elif item.surroundings.directory is None and not self.forks:
                lost = FileNotFoundError("the current directory had been deleted at the submit")
                self._fail(item, f"the call cannot be started: {lost}", lost)
            elif not self._give_out(item):
                self._inbox.put_back(item)
                return

    def _give_out(self, item: Item) -> bool:
        """Start an item, or a slot for it; False when it has to wait."""
        if self._slots.all_work() or not self._slots.has_memory_for(item):
            return False
        key = self._key_of(item)
        if not self._bound:
            slot = self._slots.idle(key)
            if slot is not None:
                self._run(slot, item)
                return True
        while self._bound or not self._slots.enough_are_coming(key, len(self._inbox) + 1):
            if self._retry_at is not None or not self._slots.make_room(key):
                return False
            if self._start_slot(item, key):
                return True
        return False

    def _key_of(self, item: Item) -> Key:
        return () if self._bound else key_of(item.surroundings)

    def _start_slot(self, item: Item, key: Key) -> bool:
        """Start a slot. True when the item is off the queue: it runs in it, or has failed."""
        host = None
        try:
            host = self._hosts.for_item(item, key)
            slot = self._open_slot(host, key)
        except UnpicklableError as error:
            self._fail(item, str(error), error, Status.EXCEPTION)
            return True
        except Exception as error:  # noqa: BLE001  (a context's way of starting may raise anything)
            if host is not None and not self._slots.of(host):
                self._hosts.release(host)
            return self._could_not_start(item, error, host)
        if self._bound:
            slot.item = item
            self._begun.add(item)
            return True
        return False

    def _open_slot(self, host: Host, key: Key, *, slim: bool = False) -> Slot:
        self._numbers += 1
        deadline = time.monotonic() + self._options.startup_time
        slot = Slot(self._numbers, host, key, self._reactor, self, self._patience, deadline)
        slot.open(self._options, slim=slim)
        self._slots.add(slot)
        return slot

    def _could_not_start(self, item: Item, error: BaseException, host: Host | None) -> bool:
        """Wait while other slots work; else this item fails, and the next one tries anew."""
        # One that waits for nothing may hold what is short here.
        if self._slots.has_any("busy", "starting") or self._slots.retire_idle():
            self._retry_at = time.monotonic() + RETRY_AFTER
            return False
        if isinstance(error, ConnectionError) and item.tries < MOST_TRIES:
            # It has just died, and its end is about to be heard; a context's helper, without one.
            item.tries += self._charges(host)
            self._retry_at = time.monotonic() + END_HEARD_AFTER
            return False
        self._fail(item, f"no process could be started for the task: {error}", error)
        return True

    def _fail(
        self, item: Item, message: str, cause: BaseException | None, status: Status = Status.STARTUP
    ) -> None:
        if item.future.begin(lambda: None):
            answer = never_started(message, cause, status)
            item.future.conclude(answer.report, answer.error, cancelled=False)
        self._begun.discard(item)

    def _conclude(self, item: Item, ending: Ending) -> None:
        """Resolve a future by what is known of its task's end, now or when nothing is left."""
        if ending.told.get("lost") and item.private_tmp and not ending.told.get("survivors"):
            self._leftovers.remove(item, ending)
        else:
            self._settle(item, ending)

    def _settle(self, item: Item, ending: Ending) -> None:
        item.future.settle(partial(conclude, item, ending))
        self._begun.discard(item)

    def _run(self, slot: Slot, item: Item) -> None:
        """Pickle a call and send it to a waiting child."""

        def stop() -> None:
            if not item.cancelled:
                item.cancelled = "asked"
            self._reactor.ring()

        if not item.future.begin(stop):
            self._begun.discard(item)
            if self._bound:  # the slot holds this very call
                slot.item = None
                self._slots.retire(slot)
            return
        self._begun.add(item)
        try:
            segments = item.segments(bare=self._bound)
        except Exception as error:  # noqa: BLE001  (an UnpicklableError, if foreign code allows)
            if self._bound:
                self._slots.retire(slot)
            self._fail(item, str(error), error, Status.EXCEPTION)
        else:
            slot.run(item, segments)

    # -- what slots and hosts tell ---------------------------------------------------------------

    def finished(self, slot: Slot, item: Item, ending: Ending) -> None:
        """A task's tree has gone: resolve its future."""
        if slot.state == "starting":  # its next child
            slot.deadline = time.monotonic() + self._options.startup_time
        told = ending.told
        self._hosts.learn(slot.key, item, told.get("imported", ""), eager=bool(len(self._inbox)))
        if self._bound or slot.host.ended or slot.host.outdated or told.get("survivors"):
            self._slots.retire(slot)
        if slot.host.ahead and not ending.came_up and not item.cancelled:
            self._hosts.distrust(slot.key, slot.host)
            if item.tries < MOST_TRIES:
                self.requeue(item)
                return
        self._resolve(item, ending)

    def _resolve(self, item: Item, ending: Ending) -> None:
        asked = ending.told.get("killed") not in (None, "startup_time")
        begun = ending.told.get("stage") != "waiting" or asked
        if not begun and not item.cancelled and item.tries < MOST_TRIES:
            self.requeue(item)
            return
        self._conclude(item, ending)

    def requeue(self, item: Item, slot: Slot | None = None) -> None:
        """The call never began: it comes first again, unless it has been cancelled."""
        if self._bound and slot is not None:  # that was for this very call, and has no other use
            self._slots.retire(slot)
        if item.cancelled or item.tries >= MOST_TRIES:
            self._conclude(item, Ending({"stage": "waiting"}))
            return
        item.tries += 1
        self._begun.add(item)  # its future runs already, whoever shuts down
        self._inbox.put_back(item)

    def lost(self, slot: Slot) -> None:
        """Its supervisor has gone: wait for the host's word, unless that has gone before it."""
        if slot.host.reaped:
            self._conclude_lost(slot, [])

    def slot_gone(self, number: int, survivors: list[int], error: str) -> None:
        """A supervisor has ended, and what it had below it."""
        slot = self._slots.get(number)
        if slot is not None:
            slot.hear()  # its own last words, which may lie behind these in the queue of events
        if slot is not None and self._slots.get(number) is slot:
            slot.failure = error or slot.failure
            self._conclude_lost(slot, survivors)

    def _conclude_lost(self, slot: Slot, survivors: list[int], by: Host | None = None) -> None:
        """A task has lost its supervisor, or a slot never came up, which is a failure to start.

        Whoever waits is charged with that as a try, unless another slot failed by the same host.
        """
        item, slot.item = slot.item, None
        came_up = slot.idle_since > 0
        self._slots.retire(slot)
        reason = slot.failure or "its supervisor ended before it was ready"
        if item is not None and came_up:
            told = {**slot.told_so_far, "survivors": survivors, "lost": True}
            self._conclude(item, Ending(told, None, slot.failure))
        elif item is not None:
            self._fail(item, f"no process could be started for the task: {reason}", slot.failed_by)
        elif not came_up and slot.follows is None and self._charges(by):
            self._fail_next(reason, slot)

    def _fail_next(self, reason: str, slot: Slot) -> None:
        """A slot did not come up: where none of its key has, after some tries, an item fails."""
        if self._slots.some_came_up(slot.key):
            self._retry_at = time.monotonic() + RETRY_AFTER
            return
        item = self._inbox.take()
        if item is not None and self._key_of(item) != slot.key:  # it would have had another host
            self._inbox.put_back(item)
        elif item is not None and item.tries < MOST_TRIES and not slot.hopeless:
            self.requeue(item)
        elif item is not None:
            self._fail(item, f"no process could be started for the task: {reason}", slot.failed_by)

    def host_failed(self, host: Host, message: str, traceback: str) -> None:
        """A template cannot import what `preload` names: whoever waits for it hears of it."""
        for slot in self._slots.of(host):
            slot.hopeless = True
            slot.failure, slot.failed_by = f"preload failed: {message}", RemoteTraceback(traceback)

    def host_ended(self, host: Host) -> None:
        """Slots that it has not brought up never will; those that run go on without it."""
        for slot in self._slots.of(host):
            slot.hear()
            waits = slot.item is None and slot.state != "closed"  # by its own last words
            if slot.state in ("starting", "lost") or waits:
                self._conclude_lost(slot, [], by=host)

    def _charges(self, host: Host | None) -> bool:
        """Whether nothing has failed by a host before: one host's end is one try."""
        charged = host is not None and host.charged
        if host is not None:
            host.charged = True
        return not charged

    def host_outdated(self, host: Host, *, trusted: bool) -> None:
        """Another takes its place: what runs goes on; what is up first serves one more, if fit."""
        for slot in self._slots.of(host):
            if slot.state == "idle" or (slot.state == "starting" and not trusted):
                self._slots.retire(slot)

    # -- time ------------------------------------------------------------------------------------

    def _mind_deadlines(self) -> None:
        now = time.monotonic()
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            self._dispatch()
        if self._force_at is not None and now >= self._force_at:
            self._force_at = None
            self._force("kill")
        for slot in self._slots:
            if self._bound and slot.state == "idle" and slot.item is not None:
                self._run(slot, slot.item)
            if slot.due(now):
                self._pass_deadline(slot, now)
        self._slots.give_up_idle(now)
        self._slots.refresh(now, lambda slot: self._open_slot(slot.host, slot.key, slim=True))
        self._hosts.end_late_scouts(now)

    def _pass_deadline(self, slot: Slot, now: float) -> None:
        """A task does not deliver, a supervisor does not obey, or a slot does not come up."""
        self._reactor.turn(time.monotonic())  # what made this thread late kept news from it, too
        self._reactor.ring()  # it may have been for `_obey` and `_dispatch`, which come next then
        if not slot.due(now) or slot.end_transfer(now):
            return
        slot.deadline = None
        if slot.state == "busy":
            if slot.killing or slot.is_held_up(now):
                slot.failure = slot.failure or "it did not do its work, stopped perhaps"
                slot.kill_supervisor()
            return
        # Else a plain template may do better, or one that nobody stops.
        slot.hopeless = not (slot.host.ahead or slot.host.is_stopped)
        allowed = f"startup_time, {self._options.startup_time:g} s, imports ahead included"
        slot.failure = slot.failure or f"nothing came up within {allowed}"
        if not any(each.idle_since for each in self._slots.of(slot.host)) or slot.state == "lost":
            slot.host.kill()  # it hangs in an import, or is stopped, and does not hear
        self._conclude_lost(slot, [], by=slot.host)

    def _next_due(self) -> float | None:
        times = [self._slots.next_due, self._retry_at, self._force_at, self._hosts.next_due]
        return min((each for each in times if each is not None), default=None)
