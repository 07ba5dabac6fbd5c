"""The engine behind the executors: an inbox, and the monitor thread that serves it.

Executors hold the pool, the pool holds no executor: one that is dropped closes its pool, and what
was submitted is still done.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from typing import TYPE_CHECKING

from pynisher_exec.caller.inbox import Inbox, PoolOptions
from pynisher_exec.caller.monitor import Monitor
from pynisher_exec.caller.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynisher_exec.caller.item import Item

__all__ = ["Pool", "PoolOptions"]


class Pool:
    """Everything here may be called from any thread."""

    def __init__(self, options: PoolOptions) -> None:
        self._lock = threading.RLock()  # see `Inbox`
        self._inbox = Inbox()
        self._reactor = Reactor()
        self._monitor = Monitor(self._inbox, self._reactor, options)
        self._thread: threading.Thread | None = None
        self._forgotten = False
        _pools.add(self)

    @property
    def is_open(self) -> bool:
        """Whether tasks are taken."""
        return not (self._inbox.closed or self._forgotten)

    def check_open(self) -> None:
        """Raise what `submit` would raise now."""
        if self._forgotten:
            msg = "this executor belongs to the process that this one was forked from: make another"
            raise RuntimeError(msg)
        self._inbox.check_open()

    def submit(self, item: Item) -> None:
        """Queue a task. RuntimeError after `close`, and in a fork of the process that made this."""
        with self._lock:
            self.check_open()
            if self._thread is None:
                self._thread = self._start_thread()
            self._inbox.put(item)
        self._reactor.ring()

    def _start_thread(self) -> threading.Thread:
        thread = threading.Thread(target=self._monitor.serve, name="pynisher_exec monitor")
        # Blocked signals are inherited: the user's handlers are for the user's threads.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return thread

    def close(self, *, cancel_queued: bool = False, force: str | None = None) -> None:
        """Take no more tasks, and end when all is done.

        `cancel_queued` cancels those that have not begun, `force` ends the running ones: "kill" at
        once, "gently" after a SIGTERM.
        """
        if self._forgotten:
            return
        with self._lock:
            first = self._inbox.close(cancel_queued=cancel_queued, force=force)
            if self._thread is None:
                if first:
                    self._monitor.release()
                return
        self._reactor.ring()

    def join(self) -> None:
        """Wait until everything is done; not from a callback, which runs in the thread itself."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and not self._forgotten:
            thread.join()

    def forget(self) -> None:
        """In a fork of this process: this pool is the parent's."""
        self._forgotten = True
        self._lock = threading.RLock()
        self._reactor.forget()


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
