"""Pages to which every task writes: copied at the fork, and not by a fault each.

That is a quarter of what a small task takes, and a tenth where a large library is used. Which pages
they are is seen at the ends of some tasks, so what a function works with is among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pynisher_exec.kernel import pages

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["HotPages"]

BRIEF = 0.1
"""Seconds of a call, below which it is worth memory that the next ones have a millisecond or more
less to do: after some such calls, since one may be all for now."""

LOOKS = 2
"""Calls that are looked at: where all of them have written, the next one will as well. Each takes
some milliseconds longer by that."""

LEAST, MOST = 256, 1 << 13
"""Pages; no task writes to fewer, and a child that waits shall have no more for itself."""

FIRST_RENEWAL, LAST_RENEWAL = 8, 2048
"""Calls after which it is looked anew, since they may be others by now, which write elsewhere: four
times as many each time."""


class HotPages:
    """Those of one slot: looked for while calls are brief, then pinned until it has been idle."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._was_brief = False
        self._written: list[set[int]] = []
        self._pin: pages.Pin | None = None
        self._holds = False
        self._calls, self._lasts = 0, FIRST_RENEWAL

    @property
    def are_sought(self) -> bool:
        """Whether the next child shall show where its task has written."""
        return self._was_brief and self._pin is not None and not self._holds

    def note(self, took: float, written: Collection[int] | None) -> None:
        """Note that a call took so many seconds, and where it has written if that was looked at.

        Empty where it could not be seen: then nobody looks again.
        """
        self._calls += 1
        if self._holds and self._calls > self._lasts:
            self.release()
            self._lasts = min(4 * self._lasts, LAST_RENEWAL)
        self._was_brief = took < BRIEF
        if not self._was_brief:
            self._written.clear()
            return
        if written:
            self._written.append(set(written))
        elif written is not None:
            self._give_up()
        if self._wanted and self._pin is None:
            self._prepare()

    def _prepare(self) -> None:
        """See whether pages can be pinned before any are looked for."""
        self._wanted = pages.may_lock(LEAST * pages.SIZE)
        if self._wanted:
            try:
                self._pin = pages.Pin()
            except OSError:
                self._wanted = False

    def pin(self) -> None:
        """Pin those that are known; what is not possible now is not tried again."""
        if self._pin is None or len(self._written) < LOOKS:
            return
        hot = set.intersection(*self._written)
        self._written.clear()
        try:
            if 0 < len(hot) <= MOST:
                self._pin.hold(hot)
                self._holds, self._calls = True, 0
        except OSError:  # not here, or not wise
            pass
        if not self._holds:
            self._give_up()

    def _give_up(self) -> None:
        self._wanted = False
        self.close()

    def release(self) -> None:
        """Let go of them, as memory is better used otherwise; until calls come again."""
        self._was_brief = False
        self._written.clear()
        if self._pin is not None:
            self._pin.release()
            self._pin, self._holds = None, False

    def close(self) -> None:
        """Close what is held; in a fork, too, where it stands for the parent's pages."""
        if self._pin is not None:
            self._pin.close()
            self._pin = None
