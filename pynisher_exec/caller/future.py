"""The future of one task: the stdlib's, with a report, and a cancel that ends a running task.

`concurrent.futures.Future` has one state between PENDING and done, RUNNING, and refuses to cancel
it. Here `cancel` on a running task asks for the kill and answers True; the future becomes
CANCELLED only when the tree is gone, so whoever waits for it may rely on that.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future
from concurrent.futures._base import (
    CANCELLED,
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    LOGGER,
    PENDING,
    RUNNING,
)
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from pynisher_exec.caller.waiting import Condition, Waiters
from pynisher_exec.report import Report, Status

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AwaitedFuture", "LimitedFuture", "is_interrupt"]

T = TypeVar("T")

LOOK_UP = 0.5
"""Seconds after which who waits for a call of its own takes note of what was raised in it."""


def is_interrupt(error: BaseException) -> bool:
    """Whether it may be the user's Ctrl-C, which goes on; no other thread is told of that."""
    main = threading.current_thread() is threading.main_thread()
    return main and isinstance(error, KeyboardInterrupt)


class LimitedFuture(Future[T]):
    """What `submit` returns. Everything of `concurrent.futures.Future`, and `report`.

    A wait that could never end, in a callback of a future of the same executor, is a RuntimeError.
    """

    def __init__(self) -> None:
        # Not by the base's, whose condition and list would be thrown away, for each of thousands
        # of calls; a test holds that nothing is left out. The condition has a second name, since
        # `as_completed` is typed to take futures with a plain one.
        self._condition = self._guard = Condition()
        self._state = PENDING
        self._result = self._exception = None
        self._waiters = Waiters(self._guard)
        self._done_callbacks: list[Callable[[LimitedFuture[T]], object]] = []
        self._report: Report | None = None
        self._stop: Callable[[], None] | None = None
        self._cancel_asked = False

    @property
    def report(self) -> Report | None:
        """The whole account of the task once the future is done, None before."""
        with self._condition:
            if self._state not in (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED):
                return None
            if self._report is None:  # it never came to a task
                self._report = _unbegun(self._exception)
            return self._report

    def cancel(self) -> bool:
        """Cancel the task, and end it where it runs; never blocks.

        True means that the future will be cancelled: at once where it was pending, when the task's
        last process has gone where it was running. False: it is done.
        """
        with self._condition:
            stop = self._stop if self._state == RUNNING else None
            if stop is not None:
                self._cancel_asked = True
            elif not self._cancel_pending():
                return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)
        if stop is not None:
            stop()
        else:
            self._call_back()
        return True

    def cancel_if_pending(self) -> bool:
        """Cancel the task unless it has begun."""
        with self._condition:
            cancelled = self._cancel_pending()
        if cancelled:
            self._call_back()
        return cancelled

    def _cancel_pending(self) -> bool:
        """With the lock held: whoever waits knows at once, not when the queue comes to this one."""
        if self._state != PENDING:
            return False
        self._state = CANCELLED_AND_NOTIFIED
        self._guard.resolver = None
        for waiter in self._waiters:
            waiter.add_cancelled(self)
        self._condition.notify_all()
        return True

    def _call_back(self) -> None:
        """As the stdlib does, but what one raises keeps no other from its turn."""
        for callback in self._done_callbacks:
            self._call(callback)

    def _call(self, callback: Callable[[LimitedFuture[T]], object]) -> None:
        try:
            callback(self)
        except BaseException as error:  # SystemExit must not end the thread all rely on
            if is_interrupt(error):
                raise
            with contextlib.suppress(Exception):  # a handler may raise
                LOGGER.exception("exception calling callback for %r", self)

    def wait_for_report(self) -> Report:
        """Wait until the task has ended, whatever way, and give its report."""
        with self._condition:
            while self._state not in (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED):
                self._condition.wait()
        report = self.report
        assert report is not None  # noqa: S101  (it is done, and done is for good)
        return report

    def _repr_html_(self) -> str:
        """Show it in a notebook: its report once it is done, else where it is."""
        report = self.report
        if report is not None:
            return report._repr_html_()  # notebooks' name for it
        return f"<em>task {'running' if self.running() else 'waiting'}</em>"

    def refuse_to_wait(self) -> None:
        """Raise what waiting for this would, where it could never end."""
        self._guard.refuse()

    # -- for the pool ----------------------------------------------------------------------------

    def entrust(self, resolver: int | None) -> None:
        """It is that thread which resolves this future from now on."""
        self._guard.resolver = resolver

    def begin(self, stop: Callable[[], None]) -> bool:
        """Take the future as running; False when it has been cancelled before. `stop` ends it.

        A second time where its call had to be sent again.
        """
        with self._condition:
            if self._state not in (PENDING, RUNNING):
                return False
            self._state, self._stop = RUNNING, stop
            return True

    def settle(self, conclude: Callable[[], None]) -> None:
        """Its task has ended: `conclude` loads the outcome and calls the method of that name."""
        conclude()

    def conclude(self, report: Report, error: BaseException | None, *, cancelled: bool) -> None:
        """Resolve with a value, an error, or as cancelled; a cancel that was promised wins."""
        with self._condition:
            if self._state not in (PENDING, RUNNING):
                return
            self._stop = self._guard.resolver = None
            if self._cancel_asked and not cancelled:
                cancelled = True
                report = replace(
                    report,
                    status=Status.CANCELLED,
                    result=None,
                    exception=None,
                    message="cancelled while it ran",
                )
            self._report = report
            if cancelled:
                self._state = CANCELLED_AND_NOTIFIED
            else:
                if error is None:
                    self._result = report.result
                else:
                    self._exception = error
                self._state = FINISHED
            for waiter in self._waiters:
                if cancelled:
                    waiter.add_cancelled(self)
                elif error is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            self._condition.notify_all()
        self._call_back()


class AwaitedFuture(LimitedFuture[T]):
    """Of a call that is waited for where it is made: its outcome is loaded in that thread.

    So the monitor thread wants no lock that the waiting thread holds: an import's, a logger's, one
    that a `__setstate__` takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conclude: Callable[[], None] | None = None

    def settle(self, conclude: Callable[[], None]) -> None:
        """Hand it to whoever waits."""
        with self._condition:
            self._stop = None
            self._conclude = conclude
            self._condition.notify_all()

    def has_ended(self, timeout: float) -> bool:
        """Wait for the end of the task for so many seconds at most; whether it has come."""

        def has_come() -> bool:
            return self._conclude is not None or self._state not in (PENDING, RUNNING)

        with self._condition:
            return self._condition.wait_for(has_come, timeout)

    def wait_for_report(self) -> Report:
        """Wait for the end of the task, take in what came of it, and give the report."""
        with self._condition:
            while self._conclude is None and self._state in (PENDING, RUNNING):
                # What an engine raises in a thread, to end its call (PyErr_SetInterrupt,
                # PyThreadState_SetAsyncExc), wakes no wait, and is raised after one.
                self._condition.wait(LOOK_UP)
            conclude, self._conclude = self._conclude, None
        if conclude is not None:
            conclude()
        return super().wait_for_report()


def _unbegun(error: BaseException | None) -> Report:
    """The report of a call that was refused, or cancelled before it began."""
    if error is not None:
        return Report(Status.EXCEPTION, exception=error, message=str(error))
    return Report(Status.CANCELLED, message="cancelled before it began")
