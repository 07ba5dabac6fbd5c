"""One contract, kept by both executors: on this machine, and over a Dask cluster."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import (
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
    as_completed,
    wait,
)
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from conftest import wait_until, wait_until_running
from dask_cluster import cluster

from pynisher_exec import (
    LimitedProcessExecutor,
    MemorylimitException,
    RemoteTraceback,
    TaskError,
    TimeoutException,
    UnpicklableError,
    shutdown,
)
from pynisher_exec.dask import LimitedDaskExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 60

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no such module


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    """In place of conftest's, which a Dask client's threads would not pass; see test_dask."""
    yield
    shutdown()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of a cluster of two workers."""
    with cluster(tmp_path_factory.mktemp("cluster")) as (_, made):
        yield made


@pytest.fixture(params=["local", "dask"])
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Four tasks at once, each of 200 MiB."""
    made: Any
    if request.param == "local":
        made = LimitedProcessExecutor(4, memory="200MiB")
    else:
        made = LimitedDaskExecutor(request.getfixturevalue("client"), memory="200MiB")
    with made:
        yield made


class MineError(Exception):
    """Of the caller's own."""


def add(x: int, y: int = 0) -> int:
    """Return the sum."""
    return x + y


def fail(what: object) -> None:
    """Raise it."""
    raise MineError(what)


def invert(number: int) -> float:
    """Fail at 0."""
    return 1 / number


def hold(size: int) -> int:
    """Hold so much."""
    return len(bytearray(size))


def test_it_is_the_stdlibs(executor: Any) -> None:
    """Executor and futures."""
    assert executor.max_workers == 4
    assert issubclass(type(executor), Executor)
    future = executor.submit(add, 1, y=2)
    assert isinstance(future, Future)
    assert future.result(PATIENCE) == 3
    assert future.done()
    assert not future.running()
    assert future.exception() is None


def test_exceptions_are_the_callers_own(executor: Any) -> None:
    """With the traceback of the task as cause."""
    error = executor.submit(fail, "this").exception(PATIENCE)
    assert type(error) is MineError
    assert error.args == ("this",)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in fail" in str(error.__cause__)


def test_limits_are_told(executor: Any) -> None:
    """By exception, status and message."""
    future = executor.submit(hold, 400 << 20)
    assert isinstance(future.exception(PATIENCE), MemorylimitException)
    assert future.report.status == "memory"
    assert "200 MiB" in future.report.message
    assert future.report.limits["memory"].value == 200 << 20


def test_views_change_limits(executor: Any) -> None:
    """And inherit what they do not name."""
    view = executor.limit(wall_time=0.3)
    assert isinstance(view.submit(time.sleep, 60).exception(PATIENCE), TimeoutException)
    assert isinstance(view.submit(hold, 400 << 20).exception(PATIENCE), MemorylimitException)
    free = executor.limit(memory=None)
    assert free.submit(hold, 400 << 20).result(PATIENCE) == 400 << 20
    view.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        view.submit(add, 1)
    assert executor.submit(add, 1).result(PATIENCE) == 1


def test_closures_and_lambdas_travel(executor: Any) -> None:
    """With what they refer to."""
    offset = 10
    assert executor.submit(lambda x: x + offset, 1).result(PATIENCE) == 11


def test_call_that_cannot_travel_fails_alone(executor: Any) -> None:
    """At once or later, on its own future."""
    wrong = executor.submit(add, threading.Lock())
    assert isinstance(wrong.exception(PATIENCE), UnpicklableError)
    assert wrong.report.status == "exception"
    assert executor.submit(add, 1).result(PATIENCE) == 1


def test_wait_and_as_completed(executor: Any) -> None:
    """See every ending."""
    futures = [executor.submit(invert, number) for number in (1, 0, 2)]
    done, _ = wait(futures, PATIENCE, return_when=FIRST_EXCEPTION)
    assert done
    assert set(as_completed(futures, PATIENCE)) == set(futures)


def test_map_keeps_order_and_raises(executor: Any) -> None:
    """The first failure met; what is left is cancelled."""
    assert list(executor.map(add, range(20), range(20))) == [2 * n for n in range(20)]
    values = executor.map(invert, [1, 0, 2])
    assert next(values) == 1
    with pytest.raises(ZeroDivisionError):
        next(values)
    with pytest.raises(FutureTimeoutError):
        list(executor.map(time.sleep, [60], timeout=0.3))


def test_reports_has_one_for_each_item(executor: Any) -> None:
    """Failures included, in order, and with their values."""
    reports = list(executor.reports(invert, [1, 0, 2]))
    assert [report.status for report in reports] == ["ok", "exception", "ok"]
    assert [report.result for report in reports] == [1, None, 0.5]
    assert len(list(executor.reports(invert, [1, 0, 2], ordered=False))) == 3


def test_search_leaves_a_record(executor: Any, tmp_path: Path) -> None:
    """And is resumed from it."""
    path = tmp_path / "search.db"
    assert len(list(executor.reports(invert, [1, 0], record=path))) == 2
    again = executor.reports(invert, [1, 0, 2], record=path, resume=True, retry={"exception"})
    assert [report.result for report in again] == [None, 0.5]


def test_running_task_is_cancelled(executor: Any) -> None:
    """True at once, cancelled when it has gone."""
    future = executor.submit(time.sleep, 60)
    wait_until_running(future)
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(PATIENCE)
    assert future.report.status == "cancelled"
    assert future.cancel()


def test_pending_task_is_cancelled_at_once(executor: Any) -> None:
    """It never begins."""
    busy = [executor.submit(time.sleep, 60) for _ in range(4)]
    wait_until_running(*busy)
    waiting = executor.submit(add, 1)
    assert waiting.cancel()
    assert waiting.cancelled()
    assert waiting.report.status == "cancelled"
    executor.kill_workers()
    wait_until(lambda: all(future.cancelled() for future in busy))


def test_callbacks_are_called_once(executor: Any) -> None:
    """With the future; also when they come late."""
    seen: list[Any] = []
    future = executor.submit(add, 1)
    future.add_done_callback(seen.append)
    future.result(PATIENCE)
    wait_until(lambda: seen == [future])
    future.add_done_callback(seen.append)
    assert seen == [future] * 2


def test_result_may_be_waited_for_in_vain(executor: Any) -> None:
    """The task goes on."""
    future = executor.submit(time.sleep, 1)
    with pytest.raises(FutureTimeoutError):
        future.result(0.1)
    assert future.result(PATIENCE) is None


def test_no_task_is_taken_after_shutdown(executor: Any) -> None:
    """What was taken before is done."""
    future = executor.submit(time.sleep, 0.2)
    executor.shutdown()
    assert future.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(add, 1)


def test_shared_objects_are_arguments(executor: Any) -> None:
    """At any depth."""
    shared = executor.share([1, 2, 3])
    assert executor.submit(sum, shared).result(PATIENCE) == 6
    assert executor.submit(lambda deep: sum(deep["x"]), {"x": shared}).result(PATIENCE) == 6


def test_exit_is_an_error_of_ours(executor: Any) -> None:
    """As every end that no exception of the function's tells."""
    error = executor.submit(sys.exit, 3).exception(PATIENCE)
    assert isinstance(error, TaskError)


@pytest.mark.parametrize("wrong", [{"memory": "many"}, {"wall_time": -1}, {"nonsense": 1}])
def test_what_is_no_limit_is_told_at_once(executor: Any, wrong: dict[str, Any]) -> None:
    """Naming it."""
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        executor.limit(**wrong)
