"""The clock by which limits are kept, under a name that functions leave alone.

What freezes time for tests replaces `time.monotonic` wherever it finds it, and a task that says
when its function ended would then say nonsense.
"""

from __future__ import annotations

import time

__all__ = ["monotonic"]


def monotonic() -> float:
    """Seconds, as `time.monotonic` tells them in every process of this machine."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)
