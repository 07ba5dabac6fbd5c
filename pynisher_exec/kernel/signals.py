"""Signal functions that go through all signals, by their numbers alone.

`signal` makes a member of an enumeration of each signal that it gives back, and an exception of
each that has no name: for all sixty-four that takes longer than all else that a small task does.
"""

from __future__ import annotations

import signal
from typing import Any

__all__ = ["handler_of", "unblock_all"]

_plain: Any = signal._signal  # type: ignore[attr-defined]  # noqa: SLF001  (what `signal` wraps)


def handler_of(number: int) -> Any:
    """What `signal.getsignal` gives, but for the two constants, which are plain numbers here."""
    return _plain.getsignal(number)


def unblock_all() -> None:
    """Let all signals reach this thread."""
    _plain.pthread_sigmask(signal.SIG_SETMASK, ())
