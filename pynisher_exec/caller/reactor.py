"""What the monitor thread waits on: descriptors with their handlers, and a bell.

Descriptors of this process that must not live on in a fork of it are noted here too: a fork that
kept one end of a control line open would hide the caller's end from a supervisor.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING

from pynisher_exec.kernel.descriptors import above_standard
from pynisher_exec.protocol import messages

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["READ", "WRITE", "Reactor", "control_line", "private"]

LONGEST_WAIT = 86400.0
"""Seconds: epoll_wait(2) counts milliseconds in an int."""

READ, WRITE = select.EPOLLIN, select.EPOLLOUT

_private: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def private(line: socket.socket) -> socket.socket:
    """Note a socket as this process's own: a fork of this process closes its copy."""
    _private.add(line)
    return line


def control_line() -> tuple[socket.socket, socket.socket]:
    """Make a control line: this process's private end, and the end to give away."""
    near, far = messages.pair()
    try:
        return private(socket.socket(fileno=above_standard(near.detach()))), far
    except OSError:
        far.close()
        raise


def _close_private() -> None:
    for line in list(_private):
        line.close()


os.register_at_fork(after_in_child=_close_private)


class Reactor:
    """One epoll. Everything but `ring` belongs to the monitor thread.

    A ring costs a system call, and thousands of submits may ring before the monitor thread gets
    the interpreter lock: so one rings for each of its waits, and the others only leave a note. The
    waits are numbered, since a flag could be left standing by an interrupt, or by a thread that
    sets it when the next wait has begun, and then nobody would ring any more.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        if self._epoll.fileno() <= 2:  # noqa: PLR2004  (see `above_standard`)
            moved = fcntl.fcntl(self._epoll.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
            self._epoll.close()
            self._epoll = select.epoll.fromfd(moved)
        try:
            self._bell = above_standard(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except OSError:
            self._epoll.close()
            raise
        self._bell_lock = threading.RLock()
        self._waits = 0
        self._rung_in = -1
        self._noted = False
        self._handlers: dict[int, Callable[[], None]] = {}
        self.listen(self._bell, self._answer)

    def ring(self) -> None:
        """Wake the monitor thread, from any thread or signal handler; in vain once closed."""
        with self._bell_lock:  # the number of a closed bell may be somebody's file by now
            if self._bell < 0:
                return
            self._noted = True
            wait = self._waits
            if self._rung_in != wait:
                with contextlib.suppress(BlockingIOError):  # full: it is awake already
                    os.eventfd_write(self._bell, 1)
                self._rung_in = wait

    def _answer(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def listen(self, descriptor: int, handler: Callable[[], None], events: int = READ) -> None:
        """Call `handler` whenever the descriptor is ready; replaces what was there."""
        if descriptor in self._handlers:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def ignore(self, descriptor: int) -> None:
        """Stop listening; must come before the descriptor is closed."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def turn(self, due: float | None) -> None:
        """Wait until something is ready or it is `due` (`time.monotonic()`), and handle it.

        Then also what has come by that time, before anybody judges that it has not: this process
        may have been stopped, or without the interpreter lock.
        """
        self._handle(None if due is None else max(0.0, due - time.monotonic()))
        if due is not None and time.monotonic() >= due:
            self._handle(0.0)

    def _handle(self, timeout: float | None) -> None:
        wait = None if timeout is None else min(timeout, LONGEST_WAIT)
        self._waits += 1
        if self._noted:  # asked after the counting: who rings from now on, rings for this wait
            wait = 0.0
        ready = [(end, self._handlers.get(end)) for end, _ in self._epoll.poll(wait)]
        self._noted = False  # what it was about is there to be seen, once this turn is over
        for descriptor, handler in ready:
            # An earlier handler may have dropped it, and the number may be another file's by now.
            if handler is not None and self._handlers.get(descriptor) is handler:
                handler()

    def close(self) -> None:
        """Close what is held."""
        with self._bell_lock:
            bell, self._bell = self._bell, -1
        self._epoll.close()
        if bell >= 0:
            os.close(bell)

    def forget(self) -> None:
        """In a fork: close the copies. The lock may be held by a thread that is not here."""
        self._bell_lock = threading.RLock()
        self.close()
