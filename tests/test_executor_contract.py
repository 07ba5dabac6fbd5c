"""The contract of `concurrent.futures.Executor`, and what is added to it."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import os
import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import crashes
import pytest
from conftest import wait_until_running

from pynisher_exec import (
    LimitedFuture,
    LimitedProcessExecutor,
    MemorylimitException,
    Report,
    TimeoutException,
)

PATIENCE = 30


def add(x: int, y: int = 0) -> int:
    """Return the sum."""
    return x + y


def test_future_has_all_that_the_stdlibs_has() -> None:
    """Its `__init__` does what the base's does, and does not call it."""
    base = vars(concurrent.futures.Future())
    ours = vars(LimitedFuture())
    assert base.keys() <= ours.keys()
    plain = {name for name, value in base.items() if value is None or isinstance(value, str)}
    assert plain == {"_state", "_result", "_exception"}
    assert {name: ours[name] for name in plain} == {name: base[name] for name in plain}
    assert ours["_waiters"] == ours["_done_callbacks"] == []
    assert isinstance(ours["_condition"], type(base["_condition"]))


def busy_slots(executor: LimitedProcessExecutor, count: int) -> list[LimitedFuture[Any]]:
    """Fill the slots with tasks that sleep, and wait until they run."""
    futures = [executor.submit(crashes.sleep_long) for _ in range(count)]
    wait_until_running(*futures)
    return futures


def test_futures_and_executor_are_the_stdlibs() -> None:
    """Whatever takes an Executor or a Future takes these."""
    with LimitedProcessExecutor(1) as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        future = executor.submit(add, 1, y=2)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(PATIENCE) == 3
        assert future.done()
        assert not future.cancel()


def test_keyword_arguments_may_have_any_name() -> None:
    """`fn` and `self` are positional only, as in the stdlib."""

    def take(**names: int) -> dict[str, int]:
        return names

    with LimitedProcessExecutor(1) as executor:
        assert executor.submit(take, fn=1, self=2).result(PATIENCE) == {"fn": 1, "self": 2}


def test_wait_and_as_completed_see_every_ending() -> None:
    """Values, failures, limits and cancellations all wake those who wait."""
    with LimitedProcessExecutor(3, wall_time=0.3) as executor:
        futures: list[LimitedFuture[Any]] = [
            executor.submit(add, 1),
            executor.submit(crashes.raise_value_error),
            executor.submit(crashes.sleep_long),
            executor.submit(crashes.segfault),
        ]
        stopped = executor.limit(wall_time=None).submit(crashes.sleep_long)
        wait_until_running(stopped)
        stopped.cancel()
        futures.append(stopped)
        assert set(concurrent.futures.as_completed(futures, PATIENCE)) == set(futures)
        assert concurrent.futures.wait(futures, PATIENCE).not_done == set()


def test_wait_for_the_first_exception() -> None:
    """FIRST_EXCEPTION returns at the first failure, a limit being one."""
    with LimitedProcessExecutor(2, wall_time=0.2) as executor:
        limited = executor.submit(crashes.sleep_long)
        endless = executor.limit(wall_time=None).submit(crashes.sleep_long)
        done = concurrent.futures.wait(
            [limited, endless], PATIENCE, concurrent.futures.FIRST_EXCEPTION
        ).done
        assert done == {limited}
        endless.cancel()


def test_result_timeout_only_stops_waiting() -> None:
    """A timeout is the builtin TimeoutError, the task goes on; a limit is another class."""
    with LimitedProcessExecutor(1, wall_time=0.5) as executor:
        future = executor.submit(crashes.sleep_long)
        with pytest.raises(concurrent.futures.TimeoutError) as caught:
            future.result(0.05)
        assert not isinstance(caught.value, TimeoutException)
        assert future.report is None
        assert isinstance(future.exception(PATIENCE), TimeoutException)


def test_pending_future_is_cancelled_at_once() -> None:
    """It never runs, and those who wait hear of it."""
    with LimitedProcessExecutor(1) as executor:
        (running,) = busy_slots(executor, 1)
        pending = executor.submit(add, 1)
        assert pending.cancel()
        assert pending.cancelled()
        assert concurrent.futures.wait([pending], PATIENCE).done == {pending}
        assert pending.report is not None
        assert pending.report.status == "cancelled"
        assert running.cancel()
        with pytest.raises(CancelledError):
            running.result(PATIENCE)
        assert executor.submit(add, 1, 1).result(PATIENCE) == 2


def test_cancel_of_a_running_task_is_done_when_its_tree_has_gone() -> None:
    """True at once, not done at once; CANCELLED with a report when the processes are gone."""
    with LimitedProcessExecutor(1) as executor:
        (future,) = busy_slots(executor, 1)
        called = threading.Event()
        future.add_done_callback(lambda _: called.set())
        assert future.cancel()
        assert called.wait(PATIENCE)
        assert future.cancelled()
        assert future.report is not None
        assert future.report.status == "cancelled"


def test_callbacks_run_once_each_also_when_added_late() -> None:
    """In the order of adding; one that raises harms no other."""
    calls: list[int] = []

    def broken(_: object) -> None:
        calls.append(0)
        raise RuntimeError

    with LimitedProcessExecutor(1) as executor:
        future = executor.submit(add, 1)
        logging.getLogger("concurrent.futures").disabled = True
        future.add_done_callback(broken)
        future.add_done_callback(lambda _: calls.append(1))
        future.result(PATIENCE)
    logging.getLogger("concurrent.futures").disabled = False
    future.add_done_callback(lambda _: calls.append(2))
    assert calls == [0, 1, 2]


def test_callback_may_use_its_executor() -> None:
    """Submit, cancel and even shutdown from the monitor thread do not deadlock."""
    executor = LimitedProcessExecutor(1)
    done = threading.Event()
    second: list[LimitedFuture[int]] = []

    def go_on(_: object) -> None:
        second.append(executor.submit(add, 2))
        executor.shutdown(wait=True)
        done.set()

    executor.submit(add, 1).add_done_callback(go_on)
    assert done.wait(PATIENCE)
    assert second[0].result(PATIENCE) == 2
    executor.shutdown()


def test_submit_after_shutdown_is_refused() -> None:
    """RuntimeError, as in the stdlib; shutting down twice is fine, unused too."""
    executor = LimitedProcessExecutor(1)
    view = executor.limit(wall_time=1)
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(add, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        view.submit(add, 1)


def test_shutdown_cancels_pending_futures_when_asked() -> None:
    """What runs is finished, what waits is cancelled."""
    executor = LimitedProcessExecutor(1)
    running = executor.submit(time.sleep, 0.3)
    wait_until_running(running)
    pending = [executor.submit(add, 1) for _ in range(3)]
    executor.shutdown(cancel_futures=True)
    assert running.result(0) is None
    assert all(future.cancelled() for future in pending)


def test_shutdown_without_waiting_returns_at_once() -> None:
    """The tasks are finished all the same."""
    executor = LimitedProcessExecutor(1)
    future = executor.submit(time.sleep, 0.3)
    executor.shutdown(wait=False)
    assert not future.done()
    assert future.result(PATIENCE) is None


def test_dropped_executor_does_not_lose_its_work() -> None:
    """Pending futures of an executor that nobody holds are done."""
    futures = [LimitedProcessExecutor(1).submit(add, n) for n in range(3)]
    gc.collect()
    assert [future.result(PATIENCE) for future in futures] == [0, 1, 2]


def test_more_tasks_than_slots_run_no_more_at_once() -> None:
    """`max_workers` bounds what runs at the same time."""

    def span() -> tuple[float, float]:
        began = time.monotonic()
        time.sleep(0.1)
        return began, time.monotonic()

    with LimitedProcessExecutor(2) as executor:
        spans = [future.result(PATIENCE) for future in [executor.submit(span) for _ in range(6)]]
    for began, _ in spans:
        assert sum(first <= began < last for first, last in spans) <= 2


def test_every_task_has_a_process_of_its_own() -> None:
    """No pid serves twice, and the report tells it."""
    with LimitedProcessExecutor(2) as executor:
        futures = [executor.submit(os.getpid) for _ in range(8)]
        pids = [future.result(PATIENCE) for future in futures]
    assert len(set(pids)) == 8
    assert [future.report.pid for future in futures if future.report] == pids


# map and reports ---------------------------------------------------------------------------------


def test_map_keeps_order_and_stops_at_the_shortest() -> None:
    """As the builtin does."""
    with LimitedProcessExecutor(2) as executor:
        assert list(executor.map(add, [1, 2, 3], [10, 20])) == [11, 22]
        assert list(executor.map(add, [])) == []


@pytest.mark.parametrize("chunksize", [1, 5, 100])
def test_chunksize_puts_no_two_items_under_one_limit(chunksize: int) -> None:
    """Each item has a process and limits of its own: together they would pass this one."""
    with LimitedProcessExecutor(2, wall_time=1) as executor:
        values = executor.map(time.sleep, [0.4] * 4, chunksize=chunksize)
        assert list(values) == [None] * 4


def test_map_rejects_nonsense() -> None:
    """ValueError and TypeError at the call, not at the first item."""
    with LimitedProcessExecutor(1) as executor:
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(add, [1], chunksize=0)
        with pytest.raises(ValueError, match="buffersize"):
            executor.map(add, [1], buffersize=0)
        with pytest.raises(TypeError, match="buffersize"):
            executor.map(add, [1], buffersize=1.5)  # type: ignore[arg-type]


def test_map_with_a_buffersize_reads_no_further_ahead() -> None:
    """An endless iterable is consumed as its values are."""
    seen: list[int] = []

    def numbers() -> Any:
        for n in range(10**9):
            seen.append(n)
            yield n

    with LimitedProcessExecutor(2) as executor:
        values = executor.map(add, numbers(), buffersize=3)
        assert [next(values) for _ in range(5)] == [0, 1, 2, 3, 4]
        assert len(seen) <= 9
        values.close()  # type: ignore[attr-defined]


def test_map_raises_the_first_failure_and_cancels_the_rest() -> None:
    """Also what already runs."""
    with LimitedProcessExecutor(2, wall_time=20) as executor:
        values = executor.map(call, [crashes.raise_value_error, crashes.sleep_long])
        began = time.monotonic()
        with pytest.raises(ValueError, match="reason"):
            next(values)
    assert time.monotonic() - began < 15


def call(function: Any) -> Any:
    """Call it."""
    return function()


def test_map_timeout_counts_from_the_call() -> None:
    """The builtin TimeoutError, and what still runs is cancelled."""
    with LimitedProcessExecutor(1, wall_time=20) as executor:
        values = executor.map(time.sleep, [0, 60], timeout=1)
        assert next(values) is None
        with pytest.raises(concurrent.futures.TimeoutError):
            next(values)


@pytest.mark.parametrize("ordered", [True, False])
def test_reports_gives_one_for_each_item(ordered: bool) -> None:
    """Failures included, a limit, a crash and an unfit call among them."""
    functions = [crashes.sleep_long, crashes.value, crashes.segfault, crashes.raise_value_error]
    with LimitedProcessExecutor(2, wall_time=0.5) as executor:
        reports = list(executor.reports(call, functions, ordered=ordered))
    statuses = [str(report.status) for report in reports]
    expected = ["wall_time", "ok", "signal", "exception"]
    assert statuses == expected if ordered else sorted(statuses) == sorted(expected)
    assert all(isinstance(report, Report) for report in reports)


def test_closing_reports_early_cancels_its_own_tasks() -> None:
    """And nobody else's."""
    with LimitedProcessExecutor(3, wall_time=20) as executor:
        other = executor.submit(time.sleep, 0.5)
        reports = executor.reports(call, [crashes.value, crashes.sleep_long])
        assert next(reports).status == "ok"
        reports.close()
        assert other.result(PATIENCE) is None


# limits, views, initializer, logging -------------------------------------------------------------


def test_view_changes_removes_and_inherits_limits() -> None:
    """What is left out is inherited, None removes, the slots are shared."""
    with LimitedProcessExecutor(1, wall_time=0.2, memory="100MB") as executor:
        free = executor.limit(wall_time=None)
        future = free.submit(time.sleep, 0.4)
        assert future.result(PATIENCE) is None
        assert future.report is not None
        assert set(future.report.limits) == {"memory", "startup_time"}
        free.shutdown()
        with pytest.raises(RuntimeError):
            free.submit(add, 1)
        assert isinstance(executor.submit(crashes.hoard).exception(PATIENCE), MemorylimitException)


def test_initializer_runs_in_every_task_before_its_baseline() -> None:
    """Each task is a fresh process, so each runs it; what it holds is not charged."""
    with LimitedProcessExecutor(
        1, memory="50MB", initializer=hold_on, initargs=(100 << 20,)
    ) as executor:
        futures = [executor.submit(held) for _ in range(2)]
        assert [future.result(PATIENCE) for future in futures] == [100 << 20] * 2


_held = bytearray()


def hold_on(count: int) -> None:
    """Keep memory."""
    _held.extend(bytes(count))


def held() -> int:
    """Tell how much."""
    return len(_held)


def test_preload_is_imported_once_in_the_template() -> None:
    """Tasks find the module loaded; a module that is missing fails the futures and says so."""

    def loaded() -> bool:
        import sys  # noqa: PLC0415

        return "sqlite3" in sys.modules

    with LimitedProcessExecutor(1) as executor:
        assert not executor.submit(loaded).result(PATIENCE)
    with LimitedProcessExecutor(1, preload=["sqlite3"]) as executor:
        assert executor.submit(loaded).result(PATIENCE)
    with LimitedProcessExecutor(1, preload=["no_such_module"]) as executor:
        future = executor.submit(add, 1)
        assert "no_such_module" in str(future.exception(PATIENCE))
        assert future.report is not None
        assert future.report.status == "startup"


def test_template_is_renewed_when_the_environment_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A variable that libraries read as they are loaded must reach the next tasks."""

    def look() -> tuple[str | None, int]:
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:
            return os.environ.get("OMP_NUM_THREADS"), file.read().count(b"OMP_NUM_THREADS=3")

    with LimitedProcessExecutor(1) as executor:
        executor.submit(look).result(PATIENCE)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert executor.submit(look).result(PATIENCE) == ("3", 1)


def test_one_line_is_logged_for_each_limit_that_was_hit(caplog: pytest.LogCaptureFixture) -> None:
    """And nothing for what passed none."""
    with caplog.at_level(logging.DEBUG, "pynisher_exec"), LimitedProcessExecutor(1) as executor:
        executor.submit(add, 1).result(PATIENCE)
        executor.submit(crashes.segfault).exception(PATIENCE)
        assert caplog.records == []
        executor.limit(wall_time=0.2).submit(crashes.sleep_long).exception(PATIENCE)
    (record,) = caplog.records
    assert "limit=wall_time value=0.2 status=wall_time" in record.getMessage()
    assert "function=sleep_long" in record.getMessage()


def test_callback_that_exits_harms_no_other_task() -> None:
    """`sys.exit` in a callback ends nothing but the callback."""

    def leave(_: object) -> None:
        raise SystemExit

    with LimitedProcessExecutor(1) as executor:
        executor.submit(add, 1).add_done_callback(leave)
        assert executor.submit(add, 2).result(PATIENCE) == 2


def test_defect_of_the_monitor_thread_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Should it ever fail, running and queued futures say so, and submit refuses."""
    executor = LimitedProcessExecutor(1)
    futures = [executor.submit(crashes.sleep_long) for _ in range(2)]
    wait_until_running(futures[0])
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(executor._pool._monitor, "_obey", lambda: 1 / 0)
    executor._pool._reactor.ring()
    for future in futures:
        assert "monitor thread has failed" in str(future.exception(PATIENCE))
    with pytest.raises(RuntimeError):
        executor.submit(add, 1)
    executor.shutdown()
