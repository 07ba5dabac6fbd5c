"""A task's future on the client: its report comes by itself, its value when it is asked for."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pynisher_exec.caller.future import LimitedFuture
from pynisher_exec.errors import PynisherError
from pynisher_exec.report import Report, Status
from pynisher_exec.task.outcome import line_of

if TYPE_CHECKING:
    from distributed import Future

__all__ = ["LimitedDaskFuture"]

T = TypeVar("T")


class LimitedDaskFuture(LimitedFuture[T]):
    """What `LimitedDaskExecutor.submit` gives: a `LimitedFuture` whose value lies in the cluster.

    `dask_future` is Dask's own, for calls that take the value where it is. The report of a task
    that went well has no `result` until that has been asked for, here or by `wait_for_report`,
    unless it is a number, a short text or a few of these: such come with the report. `is_here`:
    whether the value has been brought, either way. A cancel that overtakes the worker's word of the
    task's begin, milliseconds, resolves the future at once, and the processes go a moment later.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dask_future: Future[T] | None = None
        self.needs: list[Future[Any]] = []  # what lies in the cluster of its arguments
        self.is_here = False

    def result(self, timeout: float | None = None) -> T:
        """Wait for the task's end, and bring the value here; PynisherError where it was lost."""
        end = None if timeout is None else time.monotonic() + timeout
        super().result(timeout)  # raises what the task came to
        return self._brought(None if end is None else max(0.0, end - time.monotonic()))

    def wait_for_report(self) -> Report:
        """Wait for the task's end, bring the value here, and give the whole account."""
        report = super().wait_for_report()
        if report.status is not Status.OK or self.is_here:
            return report
        try:
            self._brought(None)
        except PynisherError as lost:
            return replace(report, status=Status.TRANSFER, exception=lost, message=str(lost))
        finished = self.report
        assert finished is not None  # noqa: S101  (it is done, and done is for good)
        return finished

    def _brought(self, timeout: float | None) -> T:
        """The value, fetched once. PynisherError where it was lost with its worker."""
        if not self.is_here:
            assert self.dask_future is not None  # noqa: S101  (its task went well)
            try:
                value: Any = self.dask_future.result(timeout)
            except Exception as error:
                if timeout is not None and isinstance(error, TimeoutError):  # Dask's is asyncio's
                    raise FutureTimeoutError from error
                msg = f"the value was lost: {line_of(error)}"
                raise PynisherError(msg) from error
            with self._condition:
                self._result, self.is_here = value, True
                if self._report is not None:
                    self._report = replace(self._report, result=value)
        return self._result  # type: ignore[return-value]

    def let_go(self) -> None:
        """Have the cluster stop the task, and what needs its value, unless others want that."""
        dask_future: Any = self.dask_future
        if dask_future is not None:
            with contextlib.suppress(Exception):  # a client that is closed has let go of it
                dask_future.cancel()
