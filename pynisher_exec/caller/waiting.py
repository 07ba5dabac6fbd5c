"""What a future is waited for by; refused at once where the wait could never end.

An executor's monitor thread resolves its futures and calls their callbacks. A callback that waits
for another future of that executor waits for its own thread, and every later call with it. All
waits come down to two things: the future's condition (`result`, `exception`, and what of ours
waits), and an event that `concurrent.futures.wait` and `as_completed` hang into its waiters.

A wait for several is refused where one of them is of that executor, though another might end it.
Not seen: two executors whose callbacks wait for each other's futures, and locks of the user's own.
"""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["Condition", "Waiters"]


class Condition(threading.Condition):
    """A future's; `resolver` is the thread without which it is not resolved, None once it is."""

    resolver: int | None = None

    def refuse(self, timeout: float | None = None) -> None:
        """Raise RuntimeError in the resolver's thread; a `timeout` of 0 is no wait."""
        if self.resolver == threading.get_ident() and (timeout is None or timeout > 0):
            msg = (
                "a callback of an executor's future cannot wait for that executor's tasks: "
                "it runs in the thread that ends them"
            )
            raise RuntimeError(msg)

    def wait(self, timeout: float | None = None) -> bool:
        """As ever. RuntimeError as `refuse` says."""
        self.refuse(timeout)
        return super().wait(timeout)


class _Event(threading.Event):
    """Takes the place of a waiter's, in the resolver's thread, before anybody waits for it."""

    def __init__(self, condition: Condition) -> None:
        super().__init__()
        self._refuse = condition.refuse

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            self._refuse(timeout)
        return super().wait(timeout)


class Waiters(list[Any]):
    """A future's: who waits for several futures comes to each by `append`, with its lock held."""

    __slots__ = ("_condition",)

    def __init__(self, condition: Condition) -> None:
        self._condition = condition

    def append(self, waiter: Any) -> None:
        """Take a waiter in."""
        if self._condition.resolver == threading.get_ident():
            waiter.event = _Event(self._condition)
        super().append(waiter)
