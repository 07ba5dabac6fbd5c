"""The gate: grants a task's forks one by one, or refuses them with EAGAIN.

A granted fork is not yet a process: the kernel lets the call go on, and the child appears some
microseconds (with gigabytes to copy: milliseconds) later. Grants in flight therefore count like
processes until their child is seen, their thread asks again (then it has returned), or they are
old. When only such a grant stands between a request and the limit, the request waits a moment
instead of being refused: a fork whose child has come and gone unseen must not cost another.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

from pynisher_exec.kernel import proc, seccomp

__all__ = ["Gate"]

SETTLED_AFTER = 0.25
"""Seconds after which a granted fork surely is a process, or has failed."""

PATIENCE = 0.002
"""Seconds between two looks while a request waits for a grant in flight."""


@dataclass
class _Grant:
    tid: int
    at: float


class Gate:
    """Holds the listener of one task's filter, and keeps the count."""

    def __init__(self, listener: int, limit: int, first: int) -> None:
        self.refused = 0
        self.peak = 0
        self._listener = listener
        self._limit = limit
        self._first = first
        self._known: set[int] = set()
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
            self._grants = [grant for grant in self._grants if grant.tid != request.tid]
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
        """Subprocesses alive; each one not seen before settles a grant."""
        below = proc.descendants(os.getpid())
        alive = {pid for pid in below if pid != self._first and proc.is_alive(pid)}
        del self._grants[: len(alive - self._known)]
        self._known = alive
        now = time.monotonic()
        self._grants = [grant for grant in self._grants if now - grant.at < SETTLED_AFTER]
        return len(alive)

    def close(self) -> None:
        """Stop answering. Forks that are waiting, and all that follow, fail with ENOSYS."""
        with contextlib.suppress(OSError):
            os.close(self._listener)
