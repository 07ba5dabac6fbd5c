"""What leaves a process arrives as itself: errors, reports, limited functions, calls."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import cloudpickle
import crashes
import pytest
from loky.backend import context as loky_context
from test_places import run_script

from pynisher_exec import (
    LimitedProcessExecutor,
    MemorylimitException,
    Report,
    Status,
    TaskError,
    UnpicklableError,
    errors,
    limited,
)
from pynisher_exec.protocol import frames, payload

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext
    from pathlib import Path

PATIENCE = 30
TASK_ERRORS = [
    found
    for name in errors.__all__
    if issubclass(found := getattr(errors, name), TaskError) and found is not TaskError
]


def by_pickle(thing: Any) -> Any:
    """Send it to another process, in effect."""
    return pickle.loads(pickle.dumps(thing))


def by_old_pickle(thing: Any) -> Any:
    """The same, as long ago."""
    return pickle.loads(pickle.dumps(thing, 2))


def by_cloudpickle(thing: Any) -> Any:
    """The same, as engines do."""
    return pickle.loads(cloudpickle.dumps(thing))


def test_buffers_are_set_aside_as_far_as_a_frame_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are in the pickle. It takes gigabytes to come so far, so the bound is lowered."""
    assert payload.MOST_ASIDE <= frames._MAX_SEGMENTS // 2
    monkeypatch.setattr(payload, "MOST_ASIDE", 2)
    buffers = [pickle.PickleBuffer(bytes([number]) * payload.OUT_OF_BAND) for number in range(4)]
    segments = payload.dump_call(buffers)
    assert len(segments) == 3
    loaded, _ = payload.load_call(segments)
    assert [bytes(buffer) for buffer in loaded] == [bytes(buffer) for buffer in buffers]


WAYS = [by_pickle, by_old_pickle, by_cloudpickle, copy.copy, copy.deepcopy]

# Errors and reports ------------------------------------------------------------------------------


@pytest.mark.parametrize("travel", WAYS)
@pytest.mark.parametrize("kind", TASK_ERRORS)
def test_error_survives_with_what_it_carries(
    kind: type[TaskError], travel: Callable[[Any], Any]
) -> None:
    """Class, message, error number and report."""
    error = kind("what happened", report=Report(Status.MEMORY, message="why"), os_errno=12)
    again = travel(error)
    assert type(again) is kind
    assert str(again) == "what happened"
    assert again.os_errno == 12
    assert again.report == error.report


@pytest.mark.parametrize("travel", WAYS)
@pytest.mark.parametrize("status", list(Status), ids=str)
def test_report_survives_whatever_its_status(status: Status, travel: Callable[[Any], Any]) -> None:
    """The error in it may lead back to it, as a future's does."""
    found = Report(status).exit_status
    error = TaskError("reason") if isinstance(found, int) else found("reason")
    report = Report(status, exception=error, message="reason", traceback="inside")
    error.report = report
    again = travel(report)
    assert (again.status, again.message, again.traceback) == (status, "reason", "inside")
    assert type(again.exception) is type(error)
    assert again.exception.report is not None
    assert again.exception.report.status is status


@pytest.mark.parametrize(
    ("function", "limits", "status"),
    [
        (crashes.value, {"memory": "100MB"}, "ok"),
        (crashes.raise_value_error, {}, "exception"),
        (crashes.open_nothing, {}, "os_error"),
        (crashes.hoard, {"memory": "50MB"}, "memory"),
        (crashes.sleep_long, {"wall_time": 0.1}, "wall_time"),
        (crashes.segfault, {}, "signal"),
    ],
)
def test_report_and_error_of_a_task_survive(
    function: Callable[[], Any], limits: dict[str, Any], status: str
) -> None:
    """With the kernel's account and the limits that stood."""
    with LimitedProcessExecutor(1, **limits) as executor:
        future = executor.submit(function)
        error = future.exception(PATIENCE)
    report = future.report
    assert report is not None
    again = by_pickle(report)
    assert (again.status, again.limits, again.rusage) == (status, report.limits, report.rusage)
    assert type(by_pickle(error)) is type(error)
    assert again.to_dict() == report.to_dict()


def test_remote_traceback_survives_with_the_report() -> None:
    """An exception loses its cause when it is pickled; the report keeps the text of it."""
    with LimitedProcessExecutor(1) as executor:
        future = executor.submit(crashes.raise_value_error)
        future.exception(PATIENCE)
    assert future.report is not None
    again = by_pickle(future.report)
    assert "in raise_value_error" in again.traceback
    assert again.to_dict()["exception"]["traceback"] == again.traceback


# Through other engines ---------------------------------------------------------------------------

safe_hoard = limited(crashes.hoard, memory="100MB", wall_time=20)


def test_memory_hit_in_a_pool_comes_home_as_itself() -> None:
    """`multiprocessing.Pool` loses a result that it cannot load, and its caller waits for ever."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        with pytest.raises(MemorylimitException) as caught:
            pool.apply_async(safe_hoard).get(PATIENCE)
        assert caught.value.report is not None
        assert caught.value.report.status == "memory"
        pool.close()
        pool.join()


def test_memory_hit_in_a_process_pool_comes_home_as_itself() -> None:
    """`ProcessPoolExecutor` is broken by a result that it cannot load."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.raises(MemorylimitException):
            pool.submit(safe_hoard).result(PATIENCE)
        assert pool.submit(abs, -1).result(PATIENCE) == 1


# Limited functions -------------------------------------------------------------------------------


@limited(wall_time=20)
def triple(x: int) -> int:
    """Return three times x."""
    return 3 * x


@pytest.mark.parametrize("travel", WAYS)
def test_decorated_function_of_a_module_travels_by_its_name(travel: Callable[[Any], Any]) -> None:
    """As an undecorated one would."""
    again = travel(triple)
    assert again is triple
    assert b"wall_time" not in pickle.dumps(triple)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_decorated_function_of_a_module_runs_in_workers(method: str) -> None:
    """Of `ProcessPoolExecutor`, started in both ways."""
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(triple, 5).result(PATIENCE) == 15


DECORATED = """
import multiprocessing, pickle
from concurrent.futures import ProcessPoolExecutor
import cloudpickle
from pynisher_exec import limited

@limited(wall_time=20)
def triple(x):
    return 3 * x

@limited(wall_time=20)
def countdown(x):
    return x if x == 0 else countdown(x - 1)  # refers to its own wrapper

if __name__ == "__main__":
    for dumps in (pickle.dumps, cloudpickle.dumps):
        print(pickle.loads(dumps(triple))(1), pickle.loads(dumps(countdown))(1))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(pool.map_async(triple, [2]).get(30))
        pool.close()
        pool.join()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        print(pool.submit(triple, 3).result(30))
"""


def test_decorated_function_of_main_travels_and_runs_in_workers(tmp_path: Path) -> None:
    """By pickle and by cloudpickle, to a forked pool and to a spawned one."""
    script = tmp_path / "script.py"
    script.write_text(DECORATED)
    done = run_script("", str(script))
    assert (done.stdout, done.stderr, done.returncode) == ("3 0\n3 0\n[6]\n9\n", "", 0)


@pytest.mark.parametrize(
    "first",
    [
        "import pynisher_exec.decorator",
        "import pynisher_exec.legacy",
        "import pickle; pickle.loads(sys.stdin.buffer.read())",
    ],
)
def test_public_function_is_not_hidden_by_what_is_imported_first(first: str) -> None:
    """Unpickling a limited function imports its module, which shall not take the name `limited`."""
    code = (
        f"import sys; {first}\n"
        "from pynisher_exec import enforce_limits, limited, shutdown\n"
        "print(limited(abs, wall_time=20)(-4), callable(enforce_limits))\n"
        "shutdown()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(limited(abs, wall_time=20)),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout, done.stderr) == (b"4 True\n", b"")


# Calls -------------------------------------------------------------------------------------------

GUARDED = """
import threading
from pynisher_exec import enforce_limits, limited

lock = threading.Lock()  # cannot be pickled, so `guarded` cannot travel by value

@limited(wall_time=20)
def guarded(x):
    with lock:
        return x + 1
"""


def test_decorated_function_may_use_an_unpicklable_global(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It travels by its wrapper's name, called by itself as well as submitted elsewhere."""
    (tmp_path / "guarded_module.py").write_text(GUARDED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "guarded_module", raising=False)
    module = importlib.import_module("guarded_module")
    try:
        assert module.guarded(1) == 2
        with LimitedProcessExecutor(1, wall_time=20) as executor:
            assert executor.submit(module.guarded, 2).result(PATIENCE) == 3
            assert executor.submit(module.guarded.__wrapped__, 3).result(PATIENCE) == 4
    finally:
        del sys.modules["guarded_module"]


PICKLING_CONTEXTS = ["spawn", "forkserver", "loky"]
"""The ways of starting that pickle what they start with."""


def context_named(name: str) -> BaseContext:
    """The context object that `context=name` stands for."""
    source: Any = loky_context if name == "loky" else multiprocessing
    context: BaseContext = source.get_context(name)
    return context


@pytest.mark.parametrize("name", PICKLING_CONTEXTS)
def test_call_through_a_context_carries_its_locks(name: str) -> None:
    """They travel only while multiprocessing starts a process; and a lambda comes along."""
    lock = context_named(name).Lock()

    with LimitedProcessExecutor(1, context=name, wall_time=20) as executor:
        task = executor.submit(lambda: lock.acquire(timeout=10))
        assert task.result(PATIENCE)
    assert not lock.acquire(block=False)  # the task's lock is this one
    lock.release()


@pytest.mark.parametrize("name", PICKLING_CONTEXTS)
def test_call_through_a_context_carries_its_pipes(name: str) -> None:
    """A connection's descriptor goes to the process with it, as a `Process`'s argument does."""
    reader, writer = context_named(name).Pipe(duplex=False)
    with reader, writer, LimitedProcessExecutor(1, context=name, wall_time=20) as executor:
        executor.submit(writer.send, "from the task").result(PATIENCE)
        assert reader.poll(10)
        assert reader.recv() == "from the task"


@pytest.mark.parametrize("name", PICKLING_CONTEXTS)
def test_call_through_a_context_carries_its_queues(name: str) -> None:
    """What the task puts into one arrives, its feeder thread's work included."""
    queue = context_named(name).Queue()
    try:
        with LimitedProcessExecutor(1, context=name, wall_time=20) as executor:
            executor.submit(lambda x: queue.put(2 * x), 4).result(PATIENCE)
        assert queue.get(timeout=10) == 8
    finally:
        queue.close()
        queue.join_thread()


def test_lock_of_a_thread_in_a_closure_is_named() -> None:
    """Where nothing helps, the future says what could not be pickled."""
    lock = threading.Lock()
    with LimitedProcessExecutor(1, context="spawn") as executor:
        error = executor.submit(lambda: lock).exception(PATIENCE)
    assert "lock" in str(error)


class BoundElsewhere:
    """A function's place-holder that stands for something in the thread that bound it alone."""

    def __call__(self) -> None:
        """Be callable."""

    def __reduce__(self) -> Any:
        msg = "unbound"
        raise TypeError(msg)

    def __getattr__(self, name: str) -> Any:
        if name == "__qualname__" and threading.current_thread() is not threading.main_thread():
            msg = "unbound"
            raise RuntimeError(msg)
        raise AttributeError(name)


def test_function_that_cannot_be_named_there_fails_its_own_future() -> None:
    """Whoever pickles it, and cannot, wants to name it, and goes on without."""
    with LimitedProcessExecutor(1, wall_time=5) as executor:
        error = executor.submit(BoundElsewhere()).exception(PATIENCE)
        assert isinstance(error, UnpicklableError)
        assert "BoundElsewhere" in str(error)
        assert executor.submit(abs, -1).result(PATIENCE) == 1


FAILS = """
from pynisher_exec import LimitedProcessExecutor

def fail():
    raise ValueError("here")  # this very line

with LimitedProcessExecutor(1) as executor:
    print(executor.submit(fail).wait_for_report().traceback)
"""


def test_traceback_of_a_scripts_function_shows_file_and_line(tmp_path: Path) -> None:
    """Though it travels by value."""
    script = tmp_path / "search.py"
    script.write_text(FAILS)
    command = [sys.executable, str(script)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert f'File "{script}", line 5, in fail' in shown
    assert 'raise ValueError("here")  # this very line' in shown
