"""Pages to which the tasks of a slot write: copied at the fork, and not by a fault each.

That is a quarter of what a small task takes, and a tenth where a large library is used. Which pages
they are is seen at the ends of some tasks, so what a function works with is among them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pynisher_exec.kernel import pages

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["MOST", "HotPages"]

BRIEF = 0.2
"""Seconds of a call, below which it is worth memory that the next ones have a millisecond or more
less to do: after some such calls, since one may be all for now."""

LOOKS, MOST_LOOKS = 2, 8
"""Calls that are looked at: where all of them have written, the next ones are likely to. Each takes
some milliseconds longer by that, so it ends where nothing comes of it."""

ALIKE = 0.6
"""Part of the pages of one such call that the others have written to as well: else they are of
different functions, and it is worth another look, as long as there are not too many."""

LEAST, MOST = 256, 4096
"""Pages; no task writes to fewer. Twice as much memory is taken: pinned ones are the supervisor's
own for good, and each child has its copies of them."""

FIRST_RENEWAL, LAST_RENEWAL = 4, 2048
"""Calls after which it is looked anew, whether pages were found or not, since they may be others by
now, which write elsewhere: four times as many each time."""


class HotPages:
    """Those of one slot: looked for while calls are brief, then pinned."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._settled = False  # pinned, or given up: until so many calls have gone
        self._asked = False
        self._was_brief = False
        self._looks = 0
        self._written: list[set[int]] = []
        self._pin: pages.Pin | None = None
        self._calls, self._lasts = 0, FIRST_RENEWAL

    @property
    def are_sought(self) -> bool:
        """Whether the next child shall show where its task has written."""
        return self._was_brief and self._pin is not None and not self._settled

    def note(self, took: float, written: Collection[int] | None) -> None:
        """Note that a call took so many seconds, and where it has written if that was looked at.

        Empty where it could not be seen: then nobody looks again for a while.
        """
        self._calls += 1
        if self._settled and self._calls > self._lasts:
            self.release()
            self._lasts = min(4 * self._lasts, LAST_RENEWAL)
        self._was_brief = took < BRIEF
        self._looks += self._asked
        if self._was_brief and written:
            self._written.append(set(written))
        if (written is not None and not written) or self._looks > MOST_LOOKS:
            self._give_up()
        if self._wanted and self._was_brief and self._pin is None and not self._settled:
            self._prepare()

    def _prepare(self) -> None:
        """See whether pages can be pinned before any are looked for."""
        with contextlib.suppress(OSError):  # no io_uring here, or no descriptor
            self._pin = pages.Pin() if pages.may_pin(LEAST) else None
        if self._pin is None:
            self._give_up()

    def pin(self) -> None:
        """Pin those that are known, before the next child is forked."""
        if self._pin is not None and len(self._written) >= LOOKS:
            self._choose(self._pin)
        self._asked = self.are_sought

    def _choose(self, pin: pages.Pin) -> None:
        hot = set.intersection(*self._written)
        if len(hot) < ALIKE * max(map(len, self._written)) and self._looks < MOST_LOOKS:
            del self._written[0]
            return
        self._written.clear()
        try:
            pin.hold(hot)
        except OSError:  # not here, or not wise
            self._give_up()
        else:
            self._settle()

    def _settle(self) -> None:
        """Look no more for a while."""
        self._settled, self._calls, self._looks = True, 0, 0

    def _give_up(self) -> None:
        self._settle()
        self._written.clear()
        self.close()

    def release(self) -> None:
        """Let go of them, and look anew."""
        self._settled = False
        if self._pin is not None:
            self._pin.release()
            self._pin = None

    def close(self) -> None:
        """Close what is held; in a fork, too, where it stands for the parent's pages."""
        if self._pin is not None:
            self._pin.close()
            self._pin = None
