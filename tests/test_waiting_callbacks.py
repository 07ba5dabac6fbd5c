"""Callbacks of futures run in the thread that ends tasks: what would wait for it is refused."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from typing import TYPE_CHECKING, Any

import crashes
import pytest
from conftest import wait_until_running

from pynisher_exec import LimitedProcessExecutor, enforce_limits, limited

if TYPE_CHECKING:
    from collections.abc import Callable

    Action = Callable[[LimitedProcessExecutor, Any], Any]

PATIENCE = 30


def said_in_callback(future: Any, action: Callable[[], Any], start: Callable[[], Any]) -> Any:
    """What comes of an action in a future's callback: its value or its exception."""
    said: Future[Any] = Future()

    def call(_: Any) -> None:
        try:
            said.set_result((action(), threading.current_thread().name))
        except Exception as error:  # noqa: BLE001  (whatever it may be)
            said.set_exception(error)

    future.add_done_callback(call)
    start()
    error = said.exception(PATIENCE)
    if error is not None:
        return error
    value, thread = said.result()
    assert thread == "pynisher_exec monitor"
    return value


def said_by_executor(action: Action) -> Any:
    """The same of an executor's future, with another one that waits for its turn."""
    with LimitedProcessExecutor(1, wall_time=50) as executor:
        busy = executor.submit(crashes.sleep_long)
        future, other = executor.submit(crashes.value), executor.submit(crashes.value)
        said = said_in_callback(future, lambda: action(executor, other), busy.cancel)
        assert other.result(PATIENCE) == 42
    return said


ENDLESS: dict[str, Action] = {
    "result": lambda _, other: other.result(),
    "result in time": lambda _, other: other.result(600),
    "exception": lambda _, other: other.exception(),
    "report": lambda _, other: other.wait_for_report(),
    "wait": lambda _, other: wait([other]),
    "as_completed": lambda _, other: list(as_completed([other])),
    "map": lambda executor, _: list(executor.map(abs, [-1])),
    "reports": lambda executor, _: list(executor.reports(abs, [-1])),
    "unordered": lambda executor, _: list(executor.reports(abs, [-1], ordered=False)),
}


@pytest.mark.parametrize("action", ENDLESS.values(), ids=ENDLESS)
def test_wait_that_could_never_end_is_refused(action: Action) -> None:
    """At once, in the callback; the executor goes on."""
    said = said_by_executor(action)
    assert isinstance(said, RuntimeError)
    assert "callback" in str(said)


def shut_a_view(executor: LimitedProcessExecutor, _: Any) -> bool:
    """Shut a view down whose task has not begun."""
    view = executor.limit(wall_time=20)
    future = view.submit(crashes.value)
    view.shutdown()
    return future.done()


def wait_for_the_first(_: LimitedProcessExecutor, other: Any) -> bool:
    """Wait for one of two, where one is done."""
    done: Future[None] = Future()
    done.set_result(None)
    return wait([other, done], return_when=FIRST_COMPLETED).done == {done}


FINITE: dict[str, tuple[Action, Any]] = {
    "poll": (lambda _, other: len(wait([other], timeout=0).not_done), 1),
    "first": (wait_for_the_first, True),
    "another executor": (lambda *_: limited(abs, wall_time=20)(-5), 5),
    "shutdown of a view": (shut_a_view, False),
}


@pytest.mark.parametrize(("action", "value"), FINITE.values(), ids=FINITE)
def test_what_need_not_wait_for_that_thread_works(action: Action, value: Any) -> None:
    """As anywhere else; a shutdown does not wait."""
    assert said_by_executor(action) == value


@pytest.mark.parametrize(
    "call",
    [limited(abs), limited(abs).report, enforce_limits()(abs)],
    ids=["call", "report", "0.6"],
)
def test_limited_call_in_a_callback_of_another_is_refused(call: Callable[[int], Any]) -> None:
    """They share an executor; later calls go on."""
    future = limited(crashes.sleep_long, wall_time=50).submit()
    wait_until_running(future)
    said = said_in_callback(future, lambda: call(-1), future.cancel)
    assert isinstance(said, RuntimeError)
    assert limited(abs, wall_time=20)(-3) == 3
