"""The gate: grants a task's forks one by one, or refuses them with EAGAIN.

A granted fork is not yet a process: the kernel lets the call go on, and the child appears some
microseconds (with gigabytes to copy: milliseconds) later. Grants in flight therefore count like
processes until it is certain that they are over: a new child of that process is seen, the thread
asks again or has ended, and the look at the processes came after that. When only such a grant
stands between a request and the limit, the request waits a moment instead of being refused: a fork
whose child has come and gone unseen must not cost another.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

from pynisher_exec.kernel import proc, seccomp

__all__ = ["Gate"]

SETTLED_AFTER = 0.25
"""Seconds after which a granted fork is over if its thread sleeps; fork(2) itself never does so."""

LONGEST_FORK = 5.0
"""Seconds after which it is, whatever its thread does."""

PATIENCE = 0.002
"""Seconds between two looks while a request waits for a grant in flight."""


@dataclass(eq=False)
class _Grant:
    tid: int
    at: float
    returned: bool = False

    def is_over(self, now: float) -> bool:
        """Whether its child is there by now to be seen, or has gone, or never came to be."""
        if self.returned:
            return True
        thread = proc.stat(self.tid)
        if thread is None or not thread.alive:
            return True
        age = now - self.at
        return age > LONGEST_FORK or (age > SETTLED_AFTER and thread.state not in "RD")

    def is_by(self, parent: int) -> bool:
        """Whether a thread of this process has asked for it."""
        return self.tid == parent or proc.has_thread(parent, self.tid)


class Gate:
    """Holds the listener of one task's filter, and keeps the count."""

    def __init__(self, listener: int, limit: int, first: int) -> None:
        self.refused = 0
        self.peak = 0
        self._listener = listener
        self._limit = limit
        self._first = first
        self._known: dict[int, proc.Stat] = {}
        self._grants: list[_Grant] = []
        self._waiting: list[seccomp.Request] = []

    def fileno(self) -> int:
        """The listener, for polling."""
        return self._listener

    @property
    def pending(self) -> float | None:
        """Seconds until `review` should be called, None when no request waits."""
        return PATIENCE if self._waiting else None

    def serve(self) -> None:
        """Take one request and answer it, or let it wait."""
        request = seccomp.receive(self._listener)
        if request is not None:
            for grant in self._grants:
                grant.returned |= grant.tid == request.tid
            self._waiting.append(request)
        self.review()

    def review(self) -> None:
        """Answer what can be answered now."""
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            alive = self._count()
            if alive >= self._limit:
                self.refused += seccomp.refuse(self._listener, request.id)
            elif alive + len(self._grants) >= self._limit:
                self._waiting.append(request)
            elif seccomp.grant(self._listener, request.id):
                self._grants.append(_Grant(request.tid, time.monotonic()))
                self.peak = max(self.peak, alive + len(self._grants))

    def _count(self) -> int:
        """Subprocesses alive; settles the grants that were over before it looked."""
        now = time.monotonic()
        over = [grant for grant in self._grants if grant.is_over(now)]
        self._look()
        if over and len(self._known) + len(self._grants) >= self._limit:
            self._look()  # a list of children may skip entries while others end
        self._grants = [grant for grant in self._grants if grant not in over]
        return len(self._known)

    def _look(self) -> None:
        """See which processes there are; a new one settles a grant of its parent's."""
        found = {}
        for pid in {*proc.descendants(os.getpid()), *self._known} - {self._first}:
            seen, known = proc.stat(pid), self._known.get(pid)
            if seen is None or not seen.alive:
                continue
            if known is None or known.started != seen.started:
                self._settle(seen.parent)
            found[pid] = seen
        self._known = found

    def _settle(self, parent: int) -> None:
        by_it = (grant for grant in self._grants if grant.is_by(parent))
        grant = next(by_it, None)
        if grant is not None:
            self._grants.remove(grant)

    def close(self) -> None:
        """Stop answering. Forks that are waiting, and all that follow, fail with ENOSYS."""
        with contextlib.suppress(OSError):
            os.close(self._listener)
