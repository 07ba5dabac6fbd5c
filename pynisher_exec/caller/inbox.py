"""What other threads have to say to the monitor thread: tasks and orders, behind one lock."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    from pynisher_exec.caller.item import Item

__all__ = ["ClosedError", "Inbox", "Orders", "PoolOptions"]


@dataclass(frozen=True)
class PoolOptions:
    """What all tasks of a pool share.

    `linger`: seconds after which an idle slot is given up. `max_memory`: bytes that the memory
    limits of all tasks that run may add up to. `max_tasks`: how many one process serves. `threads`:
    of numeric libraries in each task, 0 where nothing is said about them.
    """

    max_workers: int | None
    no_new_privs: bool = True
    kill_timeout: float = 10.0
    startup_time: float = 60.0
    preload: tuple[str, ...] | None = None
    context: BaseContext | None = None
    linger: float | None = None
    max_memory: int | None = None
    max_tasks: int | None = 1
    threads: int = 0


class Orders(NamedTuple):
    """What is to be done now: queued tasks to cancel, and whether to end running ones, and how."""

    dropped: list[Item]
    force: str | None


class ClosedError(RuntimeError):
    """No more tasks are taken; of the one that was refused nothing is kept."""


class Inbox:
    """The queue of tasks, first come first served, and the flags that a shutdown sets."""

    def __init__(self) -> None:
        # Reentrant: a collection in the midst of this may finalize the very executor, and close us.
        self._lock = threading.RLock()
        self._queue: deque[Item] = deque()
        self._cancel_queued = False
        self._force: str | None = None
        self.closed = False

    def put(self, item: Item) -> int:
        """Queue a task, and say how many came before it. RuntimeError once closed."""
        with self._lock:
            self.check_open()
            self._queue.append(item)
            return len(self._queue) - 1

    def check_open(self) -> None:
        """Raise what `put` would raise."""
        if self.closed:
            msg = "cannot schedule new futures after shutdown"
            raise ClosedError(msg)

    def put_back(self, item: Item) -> None:
        """Queue a task in front of all others: it had its turn already."""
        with self._lock:
            self._queue.appendleft(item)

    def drop(self, item: Item) -> None:
        """Take that task out, if it is there."""
        with self._lock, contextlib.suppress(ValueError):
            self._queue.remove(item)

    def take(self) -> Item | None:
        """Take the next task, None when there is none."""
        with self._lock:
            return self._queue.popleft() if self._queue else None

    def __len__(self) -> int:
        return len(self._queue)

    def close(self, *, cancel_queued: bool, force: str | None) -> bool:
        """Take no more tasks, and note orders; True when this was the first time."""
        with self._lock:
            first, self.closed = not self.closed, True
            self._cancel_queued |= cancel_queued
            self._force = force or self._force
            return first

    def orders(self) -> Orders:
        """Take the orders."""
        with self._lock:
            dropped = list(self._queue) if self._cancel_queued else []
            if dropped:
                self._queue.clear()
            force, self._force = self._force, None
            return Orders(dropped, force)
