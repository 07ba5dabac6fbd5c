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

if TYPE_CHECKING:
    from distributed import Future

__all__ = ["LimitedDaskFuture"]

T = TypeVar("T")


class LimitedDaskFuture(LimitedFuture[T]):
    """What `LimitedDaskExecutor.submit` gives: a `LimitedFuture` whose value lies in the cluster.

    `dask_future` is Dask's own, for calls that take the value where it is. The report of a task
    that went well has no `result` until that has been asked for, here or by `wait_for_report`,
    unless it is a number, a short text or a few of these: such come with the report. `is_here`:
    whether the value has been brought, either way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dask_future: Future[T] | None = None
        self.is_here = False

    def result(self, timeout: float | None = None) -> T:
        """Wait for the task's end, and bring the value here."""
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
        except Exception as error:  # noqa: BLE001  (a worker that was lost with it, and its retries)
            lost = PynisherError(f"the value was lost: {type(error).__name__}: {error}")
            lost.__cause__ = error
            return replace(report, status=Status.TRANSFER, exception=lost, message=str(lost))
        finished = self.report
        assert finished is not None  # noqa: S101  (it is done, and done is for good)
        return finished

    def _brought(self, timeout: float | None) -> T:
        """The value, fetched once."""
        if not self.is_here:
            assert self.dask_future is not None  # noqa: S101  (its task went well)
            try:
                value: Any = self.dask_future.result(timeout)
            except TimeoutError as error:  # Dask's is asyncio's
                raise FutureTimeoutError from error
            with self._condition:
                self._result, self.is_here = value, True
                if self._report is not None:
                    self._report = replace(self._report, result=value)
        return self._result  # type: ignore[return-value]

    def let_go(self) -> None:
        """Have the cluster stop the task, unless somebody else wants it, and forget it."""
        dask_future: Any = self.dask_future
        if dask_future is not None:
            with contextlib.suppress(Exception):  # a client that is closed has let go of it
                dask_future.release()
