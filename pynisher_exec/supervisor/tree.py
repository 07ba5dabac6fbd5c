"""The processes below this supervisor."""

from __future__ import annotations

import os

from pynisher_exec.kernel import proc

__all__ = ["Tree", "walk"]


def walk() -> list[int]:
    """All of them, parents first, zombies included; some may be missed while others come and go."""
    return proc.descendants(os.getpid())


class Tree:
    """The same, walked only where that may find others: 200 processes take milliseconds.

    Two walks that have found the same have missed nobody. After those, as long as nothing on the
    machine has started a process or thread, nobody has come; who has gone is for others to see.
    `child` is one of them, forked just now: the kernel's count has to know of it.
    """

    def __init__(self, child: int) -> None:
        started = proc.last_started()
        self._knows = started is not None and started >= child
        self._started: int | None = None
        self._pids: list[int] = []
        self._is_sure = False

    def pids(self) -> list[int]:
        """Those there are, or were when one was started last."""
        started = proc.last_started() if self._knows else None
        unchanged = started is not None and started == self._started
        if not (unchanged and self._is_sure):
            found = walk()
            self._is_sure = unchanged and found == self._pids
            self._started, self._pids = started, found
        return list(self._pids)
