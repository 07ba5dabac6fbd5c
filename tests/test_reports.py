"""`future.report`: there once the future is done, and saying what its state says."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

import crashes
import pytest
from conftest import wait_until, wait_until_running

from pynisher_exec import LimitedProcessExecutor, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 30
BY_REFERENCE = True

loading, go_on = threading.Event(), threading.Event()


def numbers() -> Iterator[int]:
    """Yield some."""
    yield 1


async def coroutine() -> int:
    """Return one."""
    return 1


@pytest.mark.parametrize("function", [numbers, coroutine, 3])
def test_refused_call_has_a_report(function: Any) -> None:
    """It says `exception`, with the error that the future raises, and that no process ran."""
    with LimitedProcessExecutor(1) as executor:
        future = executor.submit(function)
        report = future.report  # at once: the future is done
        assert future.wait_for_report() == report
    assert isinstance(report, Report)
    assert report.status == "exception"
    assert report.exception is future.exception(0)
    assert report.message == str(future.exception(0))
    assert (report.pid, report.exit_code) == (None, None)


CANCELS: list[Callable[[LimitedProcessExecutor, Any], object]] = [
    lambda _, future: future.cancel(),
    lambda executor, _: executor.shutdown(wait=False, cancel_futures=True),
    lambda executor, _: executor.kill_workers(),
    lambda executor, _: executor.terminate_workers(),
]


@pytest.mark.parametrize("cancel", CANCELS, ids=["cancel", "shutdown", "kill", "terminate"])
def test_call_cancelled_while_pending_has_a_report(
    cancel: Callable[[LimitedProcessExecutor, Any], object],
) -> None:
    """However it was cancelled; a `None` would mean that it is not done."""
    executor = LimitedProcessExecutor(1)
    running = executor.submit(crashes.sleep_long)
    wait_until_running(running)
    pending = executor.submit(crashes.value)
    assert (pending.report, running.report) == (None, None)
    cancel(executor, pending)
    assert not wait([pending], PATIENCE).not_done
    assert pending.cancelled()
    assert pending.report is not None
    assert pending.report.status == "cancelled"
    assert pending.wait_for_report() == pending.report
    running.cancel()
    executor.shutdown()
    assert running.report is not None
    assert running.report.status == "cancelled"


class LoadsSlowly:
    """Its loading in the caller, where the task has gone already, waits to be told."""

    def __init__(self, caller: int) -> None:
        self.caller = caller

    def __reduce__(self) -> tuple[Callable[[int], str], tuple[int]]:
        return load_slowly, (self.caller,)


def load_slowly(caller: int) -> str:
    """Run in the monitor thread; in the task, which tries its outcome, do not wait."""
    if os.getpid() == caller:
        loading.set()
        go_on.wait(PATIENCE)
    return "value"


def test_report_of_a_future_cancelled_while_it_ran_says_so() -> None:
    """Also where the value was on its way: a cancelled future shows none of it."""
    loading.clear()
    go_on.clear()
    with LimitedProcessExecutor(1) as executor:
        future = executor.submit(LoadsSlowly, os.getpid())
        try:
            assert loading.wait(PATIENCE)
            assert future.running()
            assert future.cancel()
        finally:
            go_on.set()
        assert not wait([future], PATIENCE).not_done
        assert future.cancelled()
        assert future.report is not None
        assert future.report.status == "cancelled"
        assert (future.report.result, future.report.exception) == (None, None)


def resident() -> int:
    """Bytes that this process holds in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_outcome_lives_no_longer_than_its_future() -> None:
    """An idle slot keeps nothing of the task before: a large result that is dropped is freed."""
    size = 200 << 20
    with LimitedProcessExecutor(1) as executor:
        executor.submit(crashes.value).result(PATIENCE)
        before = resident()
        result = executor.submit(bytes, size).result(PATIENCE)
        assert len(result) == size
        assert resident() - before < 2 * size  # once: the bytes that were received are not kept
        del result
        gc.collect()
        # The monitor thread may be in its last turn.
        wait_until(lambda: resident() - before <= size // 4, 10)
