"""Masks of signals, and functions that go through all signals by their numbers alone.

`signal` makes a member of an enumeration of each signal that it gives back, and an exception of
each that has no name: for all sixty-four that takes longer than all else that a small task does.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["handler_of", "masked", "unblock_all"]

_plain: Any = signal._signal  # type: ignore[attr-defined]  # noqa: SLF001  (what `signal` wraps)


def handler_of(number: int) -> Any:
    """What `signal.getsignal` gives, but for the two constants, which are plain numbers here."""
    return _plain.getsignal(number)


@contextlib.contextmanager
def masked(change: int, signals: Iterable[int]) -> Iterator[None]:
    """Have this thread's mask changed so meanwhile, and what is started in it.

    The old one is asked for first: an interrupt may strike when the new one is there already.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(change, signals)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_all() -> None:
    """Let all signals reach this thread."""
    _plain.pthread_sigmask(signal.SIG_SETMASK, ())
