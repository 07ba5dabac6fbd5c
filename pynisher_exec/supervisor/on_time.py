"""Waiting until a moment, by poll(2), which is in no hurry."""

from __future__ import annotations

import math
import time

__all__ = ["until"]

FINE = 0.002
"""Seconds before a moment to be met, of which poll(2) shall not have the say.

It counts in milliseconds and wakes up to one of them late, and for every second that it is given
one more (fs/select.c, `select_estimate_accuracy`).
"""

LONGEST_WAIT = 86400.0
"""Seconds: poll(2) takes its milliseconds as an int."""


def until(due: float, *, sharp: bool) -> float | None:
    """Milliseconds for poll(2) that are over by `due`, or soon after.

    `sharp`: no later than a sleep is. The last two milliseconds are then slept through here.
    """
    if due == math.inf:
        return None
    left = min(max(0.0, due - time.monotonic()), LONGEST_WAIT)
    if not sharp:
        return left * 1000
    if left > FINE:
        return max(1.0, (left * 0.999 - FINE) * 1000)
    time.sleep(left)
    return 0.0
