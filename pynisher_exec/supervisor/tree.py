"""The processes below this supervisor."""

from __future__ import annotations

import os
import time

from pynisher_exec.kernel import proc

__all__ = ["Tree", "walk"]

LONGEST = 1.0
"""Seconds between two walks, whatever is known: root can set the kernel's count back."""

_AT_IMPORT = proc.last_started()


def walk() -> list[int]:
    """All of them, parents first, zombies included; some may be missed while others come and go."""
    return proc.descendants(os.getpid())


class Tree:
    """The same, walked only where that may find others: 200 processes take milliseconds.

    Two walks that have found the same have missed nobody. After those, as long as nothing on the
    machine has started a process or thread, nobody has come, if the kernel is to be believed, which
    is asked again after a while; who has gone is for others to see.
    `child` is one of them, forked since this module was imported: the kernel's count has to know of
    it. A sandbox may give a constant.
    """

    def __init__(self, child: int) -> None:
        self._child = child
        self._started: int | None = None
        self._pids: list[int] = []
        self._is_sure = False
        self._walked = 0.0

    def pids(self) -> list[int]:
        """Those there are, or were when one was started last."""
        started = proc.last_started()
        known = started is not None and started != _AT_IMPORT and started >= self._child
        unchanged = known and started == self._started
        now = time.monotonic()
        if not (unchanged and self._is_sure and now < self._walked + LONGEST):
            self._walked = now
            found = walk()
            self._is_sure = unchanged and found == self._pids
            self._started, self._pids = started, found
        return list(self._pids)
