"""The engine behind the executors: a queue, slots, and the one monitor thread that serves them.

The thread alone talks to supervisors, pickles calls and resolves futures, so none of that needs a
lock; the lock guards the queue and the flags that other threads set. It may be late (somebody may
hold the interpreter lock): the limits are not, since supervisors keep them.

It ends when the pool has been closed and everything is done. Executors hold the pool, the pool
holds no executor: one that is dropped closes its pool, and what was submitted is still done.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pynisher_exec.caller.account import Ending, account, never_started
from pynisher_exec.caller.hosts import Hosts
from pynisher_exec.caller.item import Item, Key, key_of
from pynisher_exec.caller.launch import is_fork
from pynisher_exec.caller.reactor import Reactor
from pynisher_exec.caller.slot import Slot
from pynisher_exec.errors import UnpicklableError
from pynisher_exec.report import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext

    from pynisher_exec.caller.launch import Host

__all__ = ["Pool", "PoolOptions"]

RETRY_AFTER = 0.5
"""Seconds before a slot is started again when one could not be, while others work."""

STARTING_AT_ONCE = 32
"""Slots asked for at one moment: their requests must fit into a template's line."""

MOST_TRIES = 3
"""Times that a call whose child died before it began is sent."""

TERMINATE_TIME = 5.0
"""Seconds between SIGTERM and SIGKILL in `terminate_workers`."""

END_TIME = 5.0
"""Seconds beyond `kill_timeout` that a closed pool waits for its hosts, then it kills them."""


@dataclass(frozen=True)
class PoolOptions:
    """What all tasks of a pool share. `linger`: seconds after which an idle slot is given up."""

    max_workers: int | None
    no_new_privs: bool = True
    kill_timeout: float = 10.0
    startup_time: float = 60.0
    preload: tuple[str, ...] = ()
    context: BaseContext | None = None
    linger: float | None = None


class Pool:
    """See the module. `submit`, `close` and `end_all` may be called from any thread."""

    def __init__(self, options: PoolOptions) -> None:
        self._options = options
        self._forks_caller = options.context is not None and is_fork(options.context)
        self._lock = threading.Lock()
        self._queue: deque[Item] = deque()
        self._closed = self._cancel_queued = False
        self._force: str | None = None
        self._forgotten = False
        self._thread: threading.Thread | None = None
        self._reactor = Reactor()
        self._hosts = Hosts(self._reactor, self, options.context, options.preload)
        self._slots: dict[int, Slot] = {}
        self._numbers = 0
        self._retry_at: float | None = None
        self._force_at: float | None = None
        _pools.add(self)

    # -- from any thread -------------------------------------------------------------------------

    def submit(self, item: Item) -> None:
        """Queue a task. RuntimeError after `close`, and in a fork of the process that made this."""
        with self._lock:
            self._refuse_when_closed()
            if self._thread is None:
                self._start_thread()
            self._queue.append(item)
        self._reactor.ring()

    @property
    def is_open(self) -> bool:
        """Whether tasks are taken."""
        return not (self._closed or self._forgotten)

    def check_open(self) -> None:
        """Raise what `submit` would raise now."""
        with self._lock:
            self._refuse_when_closed()

    def _refuse_when_closed(self) -> None:
        if self._forgotten:
            msg = "this executor belongs to the process that this one was forked from: make another"
            raise RuntimeError(msg)
        if self._closed:
            msg = "cannot schedule new futures after shutdown"
            raise RuntimeError(msg)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._serve, name="pynisher_exec monitor")
        # Blocked signals are inherited: the user's handlers are for the user's threads.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._thread = thread

    def close(self, *, cancel_queued: bool = False, force: str | None = None) -> None:
        """Take no more tasks, and end when all is done.

        `cancel_queued` cancels those that have not begun, `force` ends the running ones: "kill" at
        once, "gently" after a SIGTERM.
        """
        with self._lock:
            if self._forgotten:
                return
            idle = self._thread is None and not self._closed
            self._closed = True
            self._cancel_queued |= cancel_queued
            self._force = force or self._force
        if idle:
            self._release()
        else:
            self._reactor.ring()

    def join(self) -> None:
        """Wait until everything is done; not from a callback, which runs in the thread itself."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and not self._forgotten:
            thread.join()

    def forget(self) -> None:
        """In a fork of this process: this pool is the parent's."""
        self._forgotten = True
        self._lock = threading.Lock()
        self._reactor.forget()

    # -- the monitor thread ----------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._is_done():
            self._obey()
            self._dispatch()
            self._mind_deadlines()
            if not self._is_done():
                self._reactor.turn(self._timeout())
        self._wind_up()

    def _is_done(self) -> bool:
        with self._lock:
            if not self._closed or self._queue:
                return False
        return all(slot.item is None for slot in self._slots.values())

    def _wind_up(self) -> None:
        """All futures are resolved: let the processes go, and see them gone."""
        for slot in list(self._slots.values()):
            slot.close()
        self._hosts.release_all()
        self._await_hosts(time.monotonic() + self._options.kill_timeout + END_TIME)
        self._hosts.kill_all()
        self._await_hosts(time.monotonic() + END_TIME)
        self._release()

    def _await_hosts(self, deadline: float) -> None:
        while self._hosts.living and (left := deadline - time.monotonic()) > 0:
            self._reactor.turn(left)

    def _release(self) -> None:
        self._hosts.close()
        self._reactor.close()
        _pools.discard(self)

    def _obey(self) -> None:
        """Do what other threads have asked for."""
        with self._lock:
            dropped = list(self._queue) if self._cancel_queued else []
            if dropped:
                self._queue.clear()
            force, self._force = self._force, None
        for item in dropped:
            item.future.cancel()
            item.future.begin(lambda: None)  # notifies those who wait for a cancelled future
        for slot in self._slots.values():
            item_now = slot.item
            if item_now is None:
                continue
            if force is not None and item_now.cancelled != "kill":
                item_now.cancelled = force
                self._end_task(slot, gently=force == "gently")
            elif item_now.cancelled == "asked":
                item_now.cancelled = "kill"
                self._end_task(slot, gently=False)
        if force == "gently":
            self._force_at = time.monotonic() + TERMINATE_TIME

    def _end_task(self, slot: Slot, *, gently: bool) -> None:
        slot.kill("cancelled", gently=gently)

    # -- giving out tasks ------------------------------------------------------------------------

    def _dispatch(self) -> None:
        while True:
            with self._lock:
                item = self._queue.popleft() if self._queue else None
            if item is None:
                return
            if item.future.cancelled():
                item.future.begin(lambda: None)
            elif not self._give_out(item):
                with self._lock:
                    self._queue.appendleft(item)
                return

    def _give_out(self, item: Item) -> bool:
        """Start an item, or a slot for it; False when it has to wait."""
        key = self._key(item)
        if not self._forks_caller:
            for slot in self._slots.values():
                if slot.state == "idle" and slot.key == key:
                    self._run(slot, item)
                    return True
        starting = sum(slot.state == "starting" for slot in self._slots.values())
        if (
            starting
            and not self._forks_caller
            and starting >= min(self._waiting(), STARTING_AT_ONCE)
        ):
            return False
        if self._retry_at is not None or not self._has_room(key):
            return False
        return self._start_slot(item, key)

    def _waiting(self) -> int:
        with self._lock:
            return len(self._queue) + 1

    def _key(self, item: Item) -> Key:
        if self._options.context is not None:
            return ()
        return key_of(item.surroundings, with_path=bool(self._options.preload))

    def _has_room(self, key: Key) -> bool:
        """Whether one more slot may be; an idle one of another key gives way."""
        most = self._options.max_workers
        if most is None or len(self._slots) < most:
            return True
        for slot in list(self._slots.values()):
            if slot.state == "idle" and slot.key != key:
                self._retire(slot)
                return True
        return False

    def _start_slot(self, item: Item, key: Key) -> bool:
        """Start a slot. True when the item is off the queue: it runs in it, or has failed."""
        self._numbers += 1
        deadline = time.monotonic() + self._options.startup_time
        options = {
            "no_new_privs": self._options.no_new_privs,
            "kill_timeout": self._options.kill_timeout,
        }
        try:
            host = self._hosts.for_item(item, key)
            slot = Slot(self._numbers, host, key, self._reactor, self, deadline)
            slot.open(options)
        except Exception as error:  # noqa: BLE001  (a context's way of starting may raise anything)
            return self._could_not_start(item, error)
        self._slots[slot.number] = slot
        if self._forks_caller:
            slot.item = item
            return True
        return False

    def _could_not_start(self, item: Item, error: BaseException) -> bool:
        """Wait while other slots work; else this item fails, and the next one tries anew."""
        if any(slot.state in ("busy", "idle", "starting") for slot in self._slots.values()):
            self._retry_at = time.monotonic() + RETRY_AFTER
            return False
        self._fail(item, f"no process could be started for the task: {error}", error)
        return True

    def _fail(
        self, item: Item, message: str, cause: BaseException | None, status: Status = Status.STARTUP
    ) -> None:
        if item.future.begin(lambda: None):
            answer = never_started(message, cause, status)
            item.future.conclude(answer.report, answer.error, cancelled=False)

    def _run(self, slot: Slot, item: Item) -> None:
        """Pickle a call and send it to a waiting child."""

        def stop() -> None:
            if not item.cancelled:
                item.cancelled = "asked"
            self._reactor.ring()

        if not item.future.begin(stop):
            if self._forks_caller:  # the slot holds this very call
                slot.item = None
                self._retire(slot)
            return
        try:
            segments = item.bare_segments() if self._forks_caller else item.segments()
        except (UnpicklableError, MemoryError) as error:
            self._fail(item, str(error), error, Status.EXCEPTION)
        else:
            slot.run(item, segments)

    # -- what slots and hosts tell ---------------------------------------------------------------

    def finished(self, slot: Slot, item: Item, ending: Ending) -> None:
        """A task's tree has gone: resolve its future."""
        slot.deadline = time.monotonic() + self._options.startup_time  # for the next child
        if self._options.context is not None or slot.host.ended or ending.told.get("survivors"):
            self._retire(slot)
        self._resolve(item, ending)

    def _resolve(self, item: Item, ending: Ending) -> None:
        begun = ending.told.get("stage") != "waiting" or ending.told.get("killed") is not None
        if not begun and item.tries < MOST_TRIES:
            self.requeue(item)
            return
        answer = account(item, ending)
        item.future.conclude(answer.report, answer.error, cancelled=answer.cancelled)

    def requeue(self, item: Item) -> None:
        """The call never began: it comes first again."""
        item.tries += 1
        with self._lock:
            self._queue.appendleft(item)

    def slot_gone(self, number: int, survivors: list[int], error: str) -> None:
        """A supervisor has ended, and what it had below it."""
        slot = self._slots.get(number)
        if slot is not None:
            slot.failure = error or slot.failure
            self._conclude_lost(slot, survivors)

    def _conclude_lost(self, slot: Slot, survivors: list[int]) -> None:
        """A task has lost its supervisor, or a slot never came up, which is a failure to start."""
        item, slot.item = slot.item, None
        came_up = slot.idle_since > 0
        self._retire(slot)
        reason = slot.failure or "its supervisor ended before it was ready"
        if item is not None and came_up:
            told = {"stage": "running", "survivors": survivors} if survivors else {}
            answer = account(item, Ending(told, None, slot.failure))
            item.future.conclude(answer.report, answer.error, cancelled=answer.cancelled)
        elif item is not None:
            self._fail(item, f"no process could be started for the task: {reason}", None)
        elif not came_up:
            self._fail_next(reason)

    def _fail_next(self, reason: str) -> None:
        """A slot did not come up: while none works, that is the answer to the next item."""
        if any(slot.state in ("busy", "idle") for slot in self._slots.values()):
            self._retry_at = time.monotonic() + RETRY_AFTER
            return
        with self._lock:
            item = self._queue.popleft() if self._queue else None
        if item is not None:
            self._fail(item, f"no process could be started for the task: {reason}", None)

    def host_failed(self, host: Host, message: str, traceback: str) -> None:
        """A template cannot import what `preload` names: whoever waits for it hears of it."""
        for slot in self._slots_of(host):
            slot.failure = f"preload failed: {message}\n{traceback}".strip()

    def host_ended(self, host: Host) -> None:
        """Slots that it has not brought up never will; those that run go on without it."""
        for slot in self._slots_of(host):
            if slot.state in ("starting", "lost") or slot.item is None:
                self._conclude_lost(slot, [])

    def _slots_of(self, host: Host) -> list[Slot]:
        return [slot for slot in self._slots.values() if slot.host is host]

    def _retire(self, slot: Slot) -> None:
        self._slots.pop(slot.number, None)
        slot.close()
        if not self._slots_of(slot.host):
            self._hosts.release(slot.host)

    # -- time ------------------------------------------------------------------------------------

    def _mind_deadlines(self) -> None:
        now = time.monotonic()
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            self._dispatch()
        if self._force_at is not None and now >= self._force_at:
            self._force, self._force_at = "kill", None
            self._obey()
        for slot in list(self._slots.values()):
            if self._forks_caller and slot.state == "idle" and slot.item is not None:
                self._run(slot, slot.item)
            if slot.due(now):
                self._pass_deadline(slot)
            elif self._has_lingered(slot, now):
                self._retire(slot)

    def _pass_deadline(self, slot: Slot) -> None:
        """A returned task does not deliver, or a slot does not come up."""
        slot.deadline = None
        if slot.state == "busy":
            slot.kill("transfer")
            return
        slot.failure = slot.failure or "nothing came up within startup_time"
        if not any(each.idle_since for each in self._slots_of(slot.host)):
            slot.host.kill()  # it hangs in an import, and does not hear
        self._conclude_lost(slot, [])

    def _has_lingered(self, slot: Slot, now: float) -> bool:
        linger = self._options.linger
        return linger is not None and slot.state == "idle" and now >= slot.idle_since + linger

    def _timeout(self) -> float | None:
        times = [slot.deadline for slot in self._slots.values()]
        times += [self._retry_at, self._force_at]
        if self._options.linger is not None:
            times += [
                slot.idle_since + self._options.linger
                for slot in self._slots.values()
                if slot.state == "idle"
            ]
        known = [each for each in times if each is not None]
        return max(0.0, min(known) - time.monotonic()) if known else None


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _each(action: Callable[[Pool], None]) -> None:
    for pool in list(_pools):
        action(pool)


def _at_exit() -> None:
    """The interpreter ends: what was submitted is done first, as the stdlib's executors do."""
    _each(Pool.close)
    _each(Pool.join)


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # noqa: SLF001
os.register_at_fork(after_in_child=lambda: _each(Pool.forget))
