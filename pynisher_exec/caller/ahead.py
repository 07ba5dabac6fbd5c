"""The iterators behind `map` and `reports`: tasks submitted ahead of what is being waited for.

Objects and not generators, since a generator that was never started does nothing when it is closed:
what has been submitted ahead would run on.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pynisher_exec.report import Status
from pynisher_exec.searches.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pynisher_exec.caller.future import LimitedFuture
    from pynisher_exec.report import Report
    from pynisher_exec.searches.follower import Follower

__all__ = ["Reports", "Results"]

T = TypeVar("T")


class Submitter(Protocol):
    """An executor."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> LimitedFuture[T]:
        """Submit a call."""


class _Ahead(Generic[T]):
    """Submits `buffersize` calls (None: all), and one more for each that has been taken."""

    def __init__(
        self,
        executor: Submitter,
        fn: Callable[..., Any],
        calls: Iterator[tuple[Any, ...]],
        buffersize: int | None,
        follower: Follower | None,
    ) -> None:
        self._executor = executor
        self._fn = fn
        self._follower = follower
        # Each with its key in the record, if there is one.
        self._calls = (
            zip(itertools.repeat(""), calls) if follower is None else follower.wanted(calls)
        )
        self._pending: deque[LimitedFuture[Any]] = deque()
        self._problem: Exception | None = None
        try:
            self._submit(buffersize)
        except BaseException:
            self.close()
            raise

    def _submit(self, count: int | None) -> None:
        submitted = 0
        for key, args in itertools.islice(self._calls, count):
            future = self._executor.submit(self._fn, *args)
            self._pending.append(future)
            self._note(future)
            if self._follower is not None:
                self._follower.add(future, key, args)
            submitted += 1
        if count is None or submitted < count:
            # Never asked again: an ended `zip` takes one more item of its first iterator each time.
            self._calls = iter(())

    def _note(self, future: LimitedFuture[Any]) -> None:
        """A call has been submitted."""

    def __iter__(self) -> _Ahead[T]:
        return self

    def __next__(self) -> T:
        if self._problem is not None:
            problem, self._problem = self._problem, None
            self.close()
            raise problem
        if not self._pending:
            self._finish()
            raise StopIteration
        try:
            value = self._take()
            self._submit_next()
        except StopIteration as error:  # the function's, and no end of this (PEP 479)
            self.close()
            msg = "the function raised StopIteration"
            raise RuntimeError(msg) from error
        except BaseException:
            self.close()
            raise
        return value

    def _submit_next(self) -> None:
        """What goes wrong is told when the next one is asked for: this one has been taken."""
        try:
            self._submit(1)
        except Exception as error:  # noqa: BLE001  (of the user's own iterable, mostly)
            self._problem = error

    def _take(self) -> T:
        """Wait for what comes next and give it."""
        raise NotImplementedError

    def close(self) -> None:
        """Cancel what has not ended."""
        pending, self._pending = self._pending, deque()
        for future in pending:
            future.cancel()
        self._finish()

    def _finish(self) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.close(ended=True)

    def __del__(self) -> None:
        # Its `__init__` may have failed early.
        if getattr(self, "_pending", None) or getattr(self, "_follower", None) is not None:
            self.close()


class Results(_Ahead[T]):
    """The values in the order of the calls; the first failure ends it. `deadline` is monotonic."""

    def __init__(
        self,
        executor: Submitter,
        fn: Callable[..., T],
        calls: Iterator[tuple[Any, ...]],
        buffersize: int | None,
        deadline: float | None,
        follower: Follower | None = None,
    ) -> None:
        self._deadline = deadline
        super().__init__(executor, fn, calls, buffersize, follower)

    def _take(self) -> T:
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        value: T = self._pending[0].result(left)
        self._pending.popleft()
        return value


class Reports(_Ahead["Report"]):
    """One report for each call, in order or as they are done.

    `summary` is of those that have been taken.
    """

    def __init__(
        self,
        executor: Submitter,
        fn: Callable[..., Any],
        calls: Iterator[tuple[Any, ...]],
        buffersize: int | None,
        *,
        ordered: bool,
        follower: Follower | None = None,
    ) -> None:
        self._done: SimpleQueue[LimitedFuture[Any]] | None = None if ordered else SimpleQueue()
        self._taken: set[LimitedFuture[Any]] = set()
        self.summary = Summary()
        super().__init__(executor, fn, calls, buffersize, follower)

    def _note(self, future: LimitedFuture[Any]) -> None:
        if self._done is not None:
            future.add_done_callback(self._done.put)  # type: ignore[arg-type]

    def _take(self) -> Report:
        if self._done is None:
            future = self._pending[0]
            future.wait_for_report()
            self._pending.popleft()
            return self._recorded(future)
        if self._done.empty():
            self._pending[0].refuse_to_wait()
        future = self._done.get()
        self._taken.add(future)
        while self._pending and self._pending[0] in self._taken:
            self._taken.remove(self._pending.popleft())
        return self._recorded(future)

    def _recorded(self, future: LimitedFuture[Any]) -> Report:
        """What has been given away is in the record, whatever comes after."""
        if self._follower is not None:
            self._follower.wait_for(future)
        report = future.wait_for_report()
        is_over = self._follower is not None and self._follower.is_over
        if is_over and report.status is Status.CANCELLED:
            report = replace(report, message=f"{report.message}: the search's deadline has passed")
        self.summary.add(report)
        return report

    def _repr_html_(self) -> str:
        """Show in a notebook how what has been taken ended."""
        return self.summary._repr_html_()  # notebooks' name for it
