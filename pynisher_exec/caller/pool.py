"""The engine behind the executors: an inbox, and the monitor thread that serves it.

Executors hold the pool, the pool holds no executor: one that is dropped closes its pool, and what
was submitted is still done.
"""

from __future__ import annotations

import contextvars
import signal
import threading
from typing import TYPE_CHECKING

from pynisher_exec.caller.at_exit import ClosedAtExit
from pynisher_exec.caller.inbox import ClosedError, Inbox, PoolOptions
from pynisher_exec.caller.monitor import Monitor
from pynisher_exec.caller.reactor import Reactor
from pynisher_exec.kernel.signals import masked

if TYPE_CHECKING:
    from pynisher_exec.caller.item import Item

__all__ = ["Pool", "PoolOptions", "all_pools"]


class Pool:
    """Everything here may be called from any thread.

    `token` is what shared objects know it by, `forks` whether tasks are forks of this process,
    `max_memory` and `threads` see `PoolOptions`, `most_at_once` its `max_workers`.
    """

    def __init__(self, options: PoolOptions) -> None:
        self._lock = threading.RLock()  # see `Inbox`
        self._inbox = Inbox()
        self._reactor = Reactor()
        try:
            self._monitor = Monitor(self._inbox, self._reactor, options)
        except BaseException:
            self._reactor.close()
            raise
        self.token = object()
        self.forks = self._monitor.forks
        self.max_memory = options.max_memory
        self.most_at_once = options.max_workers
        self.threads = options.threads
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        self._forgotten = False
        all_pools.add(self)

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
        if self.forks:
            item.context = contextvars.copy_context()
        try:
            with self._lock:
                self.check_open()
                if self._thread is None:
                    self._start_thread()
                item.future.entrust(None if self._thread is None else self._thread.ident)
                before = self._inbox.put(item)
            # Behind more than there can be slots for, it changes nothing until it is their turn;
            # to be woken for each of thousands would cost the monitor thread, and so this one too,
            # as much as to submit them.
            most = self.most_at_once
            if most is None or before <= most + 1:  # the spare slot's
                self._reactor.ring()
        except ClosedError:
            raise
        except BaseException:
            item.future.cancel()  # an interrupt may strike when it is queued already
            self._inbox.drop(item)  # those behind it count on who is before them to be waited for
            raise

    def look_again(self) -> None:
        """Something has changed for those that wait."""
        self._reactor.ring()

    def _start_thread(self) -> None:
        """Start the monitor. Noted first: an interrupt may strike when it runs already."""
        thread = threading.Thread(target=self._serve, name="pynisher_exec monitor")
        # Blocked signals are inherited: the user's handlers are for the user's threads.
        with masked(signal.SIG_BLOCK, signal.valid_signals()):
            try:
                self._thread = thread
                thread.start()
            except BaseException:  # there can be no thread, or an interrupt struck before or after
                self._thread = None
                raise

    def _serve(self) -> None:
        with self._lock:  # whoever has started this thread knows by now whether it stands
            if not self.serves_here:
                return
        try:
            self._monitor.serve()
        finally:
            self._done.set()

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

    def kill(self) -> None:
        """Take no more tasks, and end those that there are."""
        self.close(cancel_queued=True, force="kill")

    @property
    def serves_here(self) -> bool:
        """Whether this is the thread that does everything, in a callback then."""
        return self._thread is threading.current_thread()

    def join(self) -> None:
        """Wait until everything is done; not from a callback, which runs in the thread itself.

        By an event of our own: an interrupted `Thread.join` makes the next one return at once
        (before Python 3.13), with the thread alive.
        """
        thread = self._thread
        if thread is None or self.serves_here or self._forgotten:
            return
        if thread.ident is not None:  # else an interrupt came before it was started
            self._done.wait()
            thread.join()

    def forget(self) -> None:
        """In a fork of this process: this pool is the parent's."""
        self._forgotten = True
        self._lock = threading.RLock()
        self._reactor.forget()


all_pools = ClosedAtExit()
