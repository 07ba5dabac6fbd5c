"""One contract, kept by both executors: on this machine, and over a Dask cluster."""

from __future__ import annotations

import os
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
from dask_cluster import cluster, nothing_left_over  # noqa: F401  (a fixture)

from pynisher_exec import (
    LimitedProcessExecutor,
    MemorylimitException,
    RemoteTraceback,
    TaskError,
    TimeoutException,
    UnpicklableError,
)
from pynisher_exec.dask import LimitedDaskExecutor
from pynisher_exec.searches.reader import read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 60

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no such module


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


@pytest.mark.parametrize("thing", [{"x": 1}, {"x": 2}, [], [1, [2]], (), range(3), "text"])
def test_shared_object_is_what_was_given(executor: Any, thing: Any) -> None:
    """Whatever it is, and whatever else was shared."""
    others = [executor.share({"x": 7}), executor.share([0])]
    handle = executor.share(thing)
    found = executor.submit(lambda shared: (type(shared).__name__, shared), handle).result(PATIENCE)
    assert found == (type(thing).__name__, thing)
    assert executor.submit(dict, others[0]).result(PATIENCE) == {"x": 7}


def test_view_takes_nothing_after_the_executors_end(executor: Any) -> None:
    """Nor does it wait for ever."""
    view = executor.limit(wall_time=30)
    assert view.submit(abs, -1).result(PATIENCE) == 1
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        view.submit(abs, -1)


def test_end_of_an_executor_is_its_views_as_well(executor: Any) -> None:
    """`shutdown` waits for their tasks, `kill_workers` ends them."""
    view = executor.limit(wall_time=60)
    slow = view.submit(time.sleep, 0.5)
    endless = view.submit(time.sleep, 600)
    assert slow.exception(PATIENCE) is None
    executor.kill_workers()
    executor.shutdown()
    assert endless.cancelled()


WAYS_TO_WAIT: list[Any] = [
    lambda executor: executor.submit(abs, -1).result(PATIENCE),
    lambda executor: list(executor.reports(abs, [-1])),
]


@pytest.mark.parametrize("wait_in_a_callback", WAYS_TO_WAIT)
def test_wait_that_could_never_end_is_refused(executor: Any, wait_in_a_callback: Any) -> None:
    """In a callback; the executor goes on."""
    raised: list[BaseException] = []
    done = threading.Event()

    def call(_: Any) -> None:
        try:
            wait_in_a_callback(executor)
        except RuntimeError as error:
            raised.append(error)
        finally:
            done.set()

    executor.submit(time.sleep, 0.2).add_done_callback(call)
    assert done.wait(PATIENCE)
    assert len(raised) == 1
    assert executor.submit(abs, -2).result(PATIENCE) == 2


def test_shutdown_in_a_callback_ends_what_it_can(executor: Any) -> None:
    """It does not wait for what only its own thread could tell."""
    later = executor.submit(time.sleep, 0.5)
    executor.submit(time.sleep, 0.1).add_done_callback(lambda _: executor.shutdown())
    assert later.exception(PATIENCE) is None


def test_fork_takes_nothing(executor: Any) -> None:
    """The executor is its parent's."""
    assert executor.submit(abs, -1).result(PATIENCE) == 1
    child = os.fork()
    if not child:
        try:
            executor.submit(abs, -1)
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_record_has_values_of_any_length(executor: Any, tmp_path: Path) -> None:
    """Wherever they lie."""
    place = tmp_path / "search.db"
    assert len(list(executor.reports(lambda n: "x" * n, [5000], record=place, key=str))) == 1
    with read(place) as reader:
        [row] = reader.tasks()
    assert row["result"] == '"' + "x" * 500 + '"' or len(row["result"]) > 1000


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
