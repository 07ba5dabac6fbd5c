"""The executor over a Dask cluster, on a real one: scheduler, workers with nannies, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import psutil
import pytest
from conftest import wait_until
from dask_cluster import Cluster, cluster, nothing_left_over  # noqa: F401  (a fixture)
from distributed import Client, Reschedule

import pynisher_exec
from pynisher_exec import (
    AnythingException,
    CpuTimeoutException,
    MemorylimitException,
    PynisherError,
    RemoteTraceback,
    TimeoutException,
    UnpicklableError,
    limited,
)
from pynisher_exec.dask import LimitedDaskExecutor, WorkerReport
from pynisher_exec.dask.lines import MOST_KEPT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 60

# Workers cannot import this module: its functions and classes travel by value, as __main__'s do.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Any]]:
    """Two workers of two threads, and a client, for tests that leave them as they are."""
    with cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def client(running: tuple[Cluster, Any]) -> Any:
    """Its client."""
    return running[1]


def hold(size: int) -> int:
    """Hold so much memory."""
    return len(bytearray(size))


def burn() -> None:
    """Use CPU for ever."""
    while True:
        pass


class MineError(Exception):
    """An exception of the user's own module."""


def behave(number: int) -> int:
    """End in one of six ways."""
    match number % 6:
        case 1:
            raise MineError(number)
        case 2:
            return hold(1 << 30)
        case 3:
            os._exit(7)
        case 4:
            os.kill(os.getpid(), signal.SIGSEGV)
    return number * number


def print_much(size: int) -> None:
    """Write so many bytes."""
    sys.stdout.write("x" * size)


def raise_much(size: int) -> None:
    """Raise an exception that is as large."""
    raise MineError("x" * size)


def add_deep(things: Any, *, more: Any) -> int:
    """Add what lies deep in the arguments."""
    return int(sum(things[0]["x"]) + things[1]["a"] + more)


def wait_and_tell(seconds: float) -> int:
    """Take a while."""
    time.sleep(seconds)
    return 7


ENDINGS = ["ok", "exception", "memory", "exit", "signal", "ok"]


# What a task comes to ----------------------------------------------------------------------------


def test_value_and_report_come_back(client: Any) -> None:
    """With the worker's name and host; the value when it is asked for."""
    with LimitedDaskExecutor(client, wall_time=30) as executor:
        future = executor.submit(range, 1000)
        wait_until(future.done)
        report = future.report
        assert isinstance(report, WorkerReport)
        assert (report.status, report.result) == ("ok", None)
        assert report.worker in {"w0", "w1"}
        assert report.host
        told = report.to_dict()
        assert (told["worker"], told["host"]) == (report.worker, report.host)
        assert future.result(PATIENCE) == range(1000)
        assert future.wait_for_report().result == range(1000)


@pytest.mark.parametrize(
    ("value", "is_small"),
    [(1, True), ("a", True), ("a" * 2000, False), ([1, (2.0, None)], True), ({"a": [1]}, True),
     ([0] * 200, False), ({"a": {1}}, False), (b"x" * 500, True)],
)  # fmt: skip
def test_small_values_come_with_their_reports(client: Any, value: Any, is_small: bool) -> None:
    """Others when they are asked for."""
    with LimitedDaskExecutor(client) as executor:
        future = executor.submit(copy.copy, value)
        wait_until(future.done)
        assert future.report is not None
        assert future.report.result == (value if is_small else None)
        assert future.result(PATIENCE) == value


def test_exceptions_are_typed_and_have_their_traceback(client: Any) -> None:
    """The caller's own class, and where it was raised."""
    with LimitedDaskExecutor(client) as executor:
        error = executor.submit(behave, 1).exception(PATIENCE)
        assert type(error) is MineError
        assert error.args == (1,)
        assert isinstance(error.__cause__, RemoteTraceback)
        assert "in behave" in str(error.__cause__)


@pytest.mark.parametrize(
    ("limits", "call", "kind"),
    [
        ({"memory": "100MiB"}, (hold, 200 << 20), MemorylimitException),
        ({}, (hold, 700 << 20), MemorylimitException),  # a thread's share of the worker's 1 GiB
        ({"memory": None}, (hold, 700 << 20), None),
        ({"memory": "60%"}, (hold, 10), None),
        ({"memory": np.int64(100 << 20)}, (hold, 200 << 20), MemorylimitException),
        ({"wall_time": 0.3}, (time.sleep, 60), TimeoutException),
        ({"cpu_time": 0.3}, (burn,), CpuTimeoutException),
        ({}, (os._exit, 3), AnythingException),
    ],
)
def test_limits_hold_on_workers(
    client: Any, limits: dict[str, Any], call: tuple[Any, ...], kind: type[Exception] | None
) -> None:
    """By default memory is the worker's share."""
    with LimitedDaskExecutor(client, **limits) as executor:
        error = executor.submit(*call).exception(PATIENCE)
        assert type(error) is kind if kind is not None else error is None


def test_limit_above_the_workers_is_refused_with_both_figures(client: Any) -> None:
    """That future only."""
    with LimitedDaskExecutor(client, memory="3GiB") as executor:
        future = executor.submit(int)
        error = future.exception(PATIENCE)
        assert isinstance(error, PynisherError)
        assert "memory limit of 3 GiB" in str(error)
        assert "has 1 GiB in all" in str(error)
        assert future.report is not None
        assert future.report.status == "refused"
        assert executor.limit(memory="1GiB").submit(int).result(PATIENCE) == 0


def test_share_of_a_worker_that_is_too_small_is_refused(client: Any) -> None:
    """A percentage is known on the worker."""
    with LimitedDaskExecutor(client, memory="0.05%") as executor:
        future = executor.submit(int)
        assert "below 1 MiB" in str(future.exception(PATIENCE))
        assert future.report is not None
        assert future.report.status == "refused"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"priority": "x"}, "priority='x' must be an int"),
        ({"retries": 1.5}, "retries=1.5 must be an int"),
        ({"retries": None}, "retries=None must be an int"),
        ({"retries": -1}, "retries=-1 must be an int, 0 or more"),
        ({"workers": 5}, "workers=5 must be a worker's name or address"),
        ({"workers": [5]}, "workers=.* must be a worker's name or address"),
        ({"resources": {"GPU": "x"}}, "resources={'GPU': 'x'} must be a number"),
        ({"resources": {"GPU": -1}}, "resources={'GPU': -1} must be a number"),
        ({"resources": {"GPU": float("nan")}}, "resources={'GPU': nan} must be a number"),
    ],
)
def test_bad_options_are_told_where_the_executor_is_made(
    client: Any, wrong: Any, told: str
) -> None:
    """By name and value."""
    with pytest.raises((TypeError, ValueError), match=told):
        LimitedDaskExecutor(client, **wrong)


def test_view_names_what_is_no_limit(client: Any) -> None:
    """A slip of the pen, say."""
    with (
        LimitedDaskExecutor(client) as executor,
        pytest.raises(TypeError, match="unknown limit: wal_time"),
    ):
        executor.limit(wal_time=1)


def test_call_that_cannot_be_pickled_fails_alone(client: Any) -> None:
    """As the local executor's does."""
    with LimitedDaskExecutor(client) as executor, open(os.devnull, "rb") as file:
        wrong, right = executor.submit(len, file), executor.submit(len, "ab")  # type: ignore[arg-type]
        assert isinstance(wrong.exception(PATIENCE), UnpicklableError)
        assert right.result(PATIENCE) == 2


def test_what_lies_in_the_cluster_is_an_argument(client: Any) -> None:
    """Scattered, shared, or another task's value; at any depth."""
    with LimitedDaskExecutor(client) as executor:
        scattered = client.scatter([1, 2, 3], hash=False)
        shared = executor.share({"a": 10})
        first = executor.submit(sum, scattered)
        deep = executor.submit(add_deep, [{"x": scattered}, shared], more=first.dask_future)
        assert deep.result(PATIENCE) == 6 + 10 + 6
        assert executor.submit(abs, first).result(PATIENCE) == 6  # type: ignore[arg-type]


def test_task_that_was_not_sent_is_no_argument(client: Any) -> None:
    """Nobody would ever have its value."""
    with LimitedDaskExecutor(client) as executor, open(os.devnull, "rb") as file:
        unsent = executor.submit(len, file)  # type: ignore[arg-type]
        error = executor.submit(str, unsent).exception(PATIENCE)
        assert isinstance(error, UnpicklableError)
        assert "an argument has no value in the cluster" in str(error)


def test_retries_are_for_what_the_function_raises(client: Any, tmp_path: Path) -> None:
    """A limit is met once, and no more."""

    def note(path: str, action: Any) -> None:
        with open(path, "a") as file:
            file.write("x")
        action()

    def fail() -> None:
        raise MineError

    with LimitedDaskExecutor(client, wall_time=0.5, retries=2) as executor:
        raising, slow = tmp_path / "raising", tmp_path / "slow"
        error = executor.submit(note, str(raising), fail).exception(PATIENCE)
        assert isinstance(error, MineError)
        late = executor.submit(note, str(slow), burn).exception(PATIENCE)
        assert isinstance(late, TimeoutException)
    assert (raising.read_text(), slow.read_text()) == ("xxx", "x")


def test_tasks_have_the_functions_name_in_dask(client: Any) -> None:
    """In keys, of which no two are the same."""
    with LimitedDaskExecutor(client) as executor:
        keys = [str(executor.submit(behave, 0).dask_future.key) for _ in range(3)]  # type: ignore[union-attr]
        assert len(set(keys)) == 3
        assert all(key.startswith("behave-") for key in keys)


@pytest.mark.parametrize("ends", [print_much, raise_much])
def test_scheduler_keeps_nothing_of_what_was_heard(client: Any, ends: Any) -> None:
    """What tasks wrote and raised goes by it, and may be large."""
    with LimitedDaskExecutor(client, capture_output="4MiB") as executor:
        topic = executor._lines.topic
        for _ in range(3):
            executor.submit(ends, 3 << 20).exception(PATIENCE)
        client.sync(asyncio.sleep, 0.1)
        assert 0 < sizes_of(client, topic) <= MOST_KEPT
        futures = [executor.submit(ends, 3 << 20) for _ in range(8)]
        assert [future.exception(PATIENCE) is None for future in futures] == [
            ends is print_much
        ] * 8
        assert sizes_of(client, topic) <= MOST_KEPT
    assert client.get_events(topic) == ()


def sizes_of(client: Any, topic: str) -> int:
    """Bytes of the events that the scheduler has."""
    return sum(len(pickle.dumps(event)) for event in client.get_events(topic))


# Ends --------------------------------------------------------------------------------------------


def test_cancel_ends_the_tree_on_the_worker(running: tuple[Cluster, Any], client: Any) -> None:
    """When the future is cancelled nothing of the task is there."""
    made, _ = running
    with LimitedDaskExecutor(client) as executor:
        future = executor.submit(burn)
        wait_until(future.running)
        assert made.tasks()
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result(PATIENCE)
        assert future.report is not None
        assert future.report.status == "cancelled"


def test_cancel_ends_what_another_task_needs(running: tuple[Cluster, Any], client: Any) -> None:
    """That one ends as well, and says why."""
    made, _ = running
    with LimitedDaskExecutor(client) as executor:
        future = executor.submit(burn)
        needs = executor.submit(str, future)
        wait_until(future.running)
        began = time.monotonic()
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result(PATIENCE)
        assert time.monotonic() - began < 5
        wait_until(lambda: not made.tasks())
        assert "an argument was cancelled" in str(needs.exception(PATIENCE))


def test_future_that_is_done_keeps_no_argument(client: Any) -> None:
    """Its own value, and no more."""
    with LimitedDaskExecutor(client) as executor:
        future = executor.submit(len, executor.share(b"x" * 10_000))  # type: ignore[arg-type]
        assert future.result(PATIENCE) == 10_000
        wait_until(lambda: len(client.futures) == 1)


def test_submit_that_is_interrupted_is_not_waited_for(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before the call has been sent, and after it."""
    for name in ("_note", "_lines.follow"):
        executor = LimitedDaskExecutor(client)
        with monkeypatch.context() as patch:
            owner = executor._lines if "." in name else executor
            patch.setattr(owner, name.rpartition(".")[2], interrupt)
            with pytest.raises(KeyboardInterrupt):
                executor.submit(abs, -1)
        began = time.monotonic()
        executor.shutdown()
        assert time.monotonic() - began < 4


def interrupt(*_: Any) -> None:
    """Be struck by Ctrl-C."""
    raise KeyboardInterrupt


# What is not ours, and runs where no limit holds -------------------------------------------------


class LeavesError(Exception):
    """Ends the thread that tells the futures, if that loads it; Dask's own it spares."""

    def __reduce__(self) -> Any:
        return leave, ()


def leave() -> Exception:
    """End this thread, if it is the one."""
    if threading.current_thread().name == "pynisher_exec dask":
        raise SystemExit(5)
    return LeavesError()


class OnceError(Exception):
    """Can be pickled once."""

    def __init__(self, times: int = 0) -> None:
        super().__init__(times)
        self.times = times

    def __reduce__(self) -> Any:
        if self.times:
            raise MineError
        return OnceError, (1,)


class TextError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Loads:
    """As an argument it is a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def raises(error: Exception) -> None:
    """Raise it."""
    raise error


def raise_new(kind: type[Exception]) -> None:
    """Raise one that has not been pickled yet."""
    raise kind


def test_exception_that_ends_the_thread_which_loads_it_fails_alone(client: Any) -> None:
    """The others go on, and so do later ones."""
    with LimitedDaskExecutor(client) as executor:
        futures = [executor.submit(abs, -number) for number in range(5)]
        error = executor.submit(raises, LeavesError()).exception(PATIENCE)
        assert isinstance(error, UnpicklableError)
        assert [future.result(PATIENCE) for future in futures] == list(range(5))
        assert executor.submit(abs, -1).result(PATIENCE) == 1


def test_exception_that_is_pickled_once_keeps_its_report(client: Any) -> None:
    """That of a function which has raised."""
    with LimitedDaskExecutor(client) as executor:
        future = executor.submit(raise_new, OnceError)
        assert "cannot be pickled again" in str(future.exception(PATIENCE))
        assert future.report is not None
        assert future.report.status == "exception"


def test_exception_without_a_text_ends_no_worker(client: Any) -> None:
    """Dask asks for that, where no limit holds."""
    before = set(client.scheduler_info()["workers"])
    with LimitedDaskExecutor(client) as executor:
        assert isinstance(executor.submit(raises, TextError()).exception(PATIENCE), TextError)
        assert executor.submit(abs, -1).result(PATIENCE) == 1
    assert set(client.scheduler_info()["workers"]) == before


@pytest.mark.parametrize("shares", [False, True])
def test_calls_are_loaded_in_their_task(client: Any, shares: bool) -> None:
    """Under its limits, and where it harms nobody: with what lies in the cluster as well."""
    before = set(client.scheduler_info()["workers"])
    with LimitedDaskExecutor(client, startup_time=1, memory="200MiB") as executor:
        more: Any = executor.share([1]) if shares else [1]
        told = [
            str(executor.submit(add, Loads(*call), more).exception(PATIENCE))
            for call in ((time.sleep, 60), (sys.exit, 7), (int, "x"))
        ]
        assert executor.submit(add, Loads(int, 1), more).result(PATIENCE) == 2
    assert "startup_time" in told[0]
    assert told[1].startswith("the call could not be loaded in its task: SystemExit: 7")
    assert told[2].startswith("the call could not be loaded in its task: ValueError: ")
    assert set(client.scheduler_info()["workers"]) == before


def add(one: Any, others: list[int]) -> Any:
    """Add them all."""
    return one + sum(others)


def test_many_are_cancelled_at_once(client: Any) -> None:
    """Those that wait as well as those that run."""
    with LimitedDaskExecutor(client) as executor:
        futures = [executor.submit(time.sleep, 600) for _ in range(500)]
        wait_until(lambda: sum(future.running() for future in futures) == 4)
        began = time.monotonic()
        executor.kill_workers()
        wait_until(lambda: all(future.cancelled() for future in futures))
        assert time.monotonic() - began < 10


def test_client_that_vanishes_leaves_no_task(
    running: tuple[Cluster, Any], client: Any, tmp_path: Path
) -> None:
    """Killed, with no word of farewell."""
    made, _ = running
    script = tmp_path / "script.py"
    script.write_text(
        dedent(f"""
            import time
            from distributed import Client
            from pynisher_exec.dask import LimitedDaskExecutor
            executor = LimitedDaskExecutor(Client({made.address!r}))
            futures = [executor.submit(time.sleep, 600) for _ in range(4)]
            while sum(future.running() for future in futures) < 4:
                time.sleep(0.01)
            print("running", flush=True)
            time.sleep(600)
        """)
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"running\n"
        assert made.tasks()
        caller.kill()
    wait_until(lambda: not made.tasks())
    with LimitedDaskExecutor(client) as executor:
        assert executor.submit(abs, -1).result(PATIENCE) == 1


def test_closed_client_is_told(running: tuple[Cluster, Any]) -> None:
    """At the constructor, at a submit, and on what was open."""
    made, _ = running
    other: Any = Client(made.address)  # type: ignore[no-untyped-call]
    executor = LimitedDaskExecutor(other)
    future = executor.submit(time.sleep, 600)
    wait_until(future.running)
    other.close()
    assert isinstance(future.exception(PATIENCE), PynisherError)
    with pytest.raises(RuntimeError, match="the client is closed"):
        executor.submit(int)
    with pytest.raises(RuntimeError, match="the client is closed"):
        LimitedDaskExecutor(other)
    with pytest.raises(TypeError, match="client="):
        LimitedDaskExecutor(None)  # type: ignore[arg-type]
    executor.shutdown()


def test_other_version_on_a_worker_is_told(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any task, naming both sides."""
    monkeypatch.setattr("pynisher_exec.dask.worker.__version__", "9.9")
    with pytest.raises(RuntimeError, match=rf"{pynisher_exec.__version__}, the client .* 9\.9"):
        LimitedDaskExecutor(client)


# Clusters that are harmed ------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_mixed_endings_are_each_right(client: Any) -> None:
    """2,000 tasks on two workers of two threads."""
    with LimitedDaskExecutor(client, wall_time=60) as executor:
        reports = list(executor.reports(behave, range(2000)))
    assert [str(report.status) for report in reports] == [ENDINGS[n % 6] for n in range(2000)]
    for number, report in enumerate(reports):
        assert report.result == (number**2 if number % 6 in (0, 5) else None)


def test_worker_that_is_killed_costs_no_answer(tmp_path: Path) -> None:
    """Its tasks run again on others; nothing of ours survives it."""
    with cluster(tmp_path) as (made, client), LimitedDaskExecutor(client) as executor:
        futures = [executor.submit(pow, number, 2) for number in range(100)]
        futures += [executor.submit(wait_and_tell, 2) for _ in range(4)]
        wait_until(lambda: any(future.running() for future in futures[100:]))
        victim = next(
            each
            for each in made.below()
            for child in each.children()
            if child.name().startswith("limit-")
        )
        below = victim.children(recursive=True)
        victim.kill()
        _, alive = psutil.wait_procs(below, 5)
        assert not alive
        assert [future.result(PATIENCE) for future in futures[:100]] == [n * n for n in range(100)]
        assert [future.result(PATIENCE) for future in futures[100:]] == [7] * 4


def test_scheduler_that_is_killed_is_a_clear_end(tmp_path: Path) -> None:
    """No hang, and no process left on the workers."""
    with cluster(tmp_path) as (made, client):
        executor = LimitedDaskExecutor(client)
        future = executor.submit(time.sleep, 600)
        wait_until(future.running)
        client._timeout = 1  # to come back, which is 30 s by default
        made.scheduler.kill()
        error = future.exception(PATIENCE)
        assert isinstance(error, PynisherError)
        assert "the connection to the scheduler was lost" in str(error)
        executor.shutdown()
        wait_until(lambda: not made.tasks(), 60)


def test_retired_worker_gives_its_task_to_another(tmp_path: Path) -> None:
    """As an adaptive cluster does when it shrinks."""
    with cluster(tmp_path) as (_, client), LimitedDaskExecutor(client) as executor:
        futures = [executor.submit(wait_and_tell, 2) for _ in range(4)]
        wait_until(lambda: all(future.running() for future in futures))
        client.retire_workers(names=["w0"])
        assert len([future.result(PATIENCE) for future in futures]) == 4
        wait_until(lambda: len(client.scheduler_info()["workers"]) == 1)
        again = [executor.submit(abs, -number) for number in range(20)]
        assert [future.result(PATIENCE) for future in again] == list(range(20))


# `limited` in an engine's worker -----------------------------------------------------------------


def test_limited_function_runs_in_daemonic_workers(
    running: tuple[Cluster, Any], client: Any
) -> None:
    """With one template for each worker process."""
    made, _ = running
    safe = limited(bytearray, memory="100MiB", wall_time=30)
    right = client.map(safe, range(20), pure=False)
    assert client.gather(right) == [bytearray(size) for size in range(20)]
    wrong = client.submit(safe, 300 << 20)
    with pytest.raises(MemorylimitException):
        wrong.result(PATIENCE)
    templates = [each for each in made.helpers() if each.name() == "limit-template"]
    assert 1 <= len(templates) <= 2


def test_memory_of_a_template_is_small(running: tuple[Cluster, Any], client: Any) -> None:
    """What a worker pays for it."""
    made, _ = running
    with LimitedDaskExecutor(client) as executor:
        executor.submit(int).result(PATIENCE)
    sizes = []
    for each in made.helpers():
        with contextlib.suppress(psutil.Error):
            if each.name() == "limit-template":
                sizes.append(each.memory_full_info().pss)
    assert sizes
    assert max(sizes) < 30 << 20


def fill(count: int) -> bytes:
    """Give a value that a worker has no room for many of."""
    return b"x" * count


def test_values_that_wait_may_be_spilled(tmp_path: Path) -> None:
    """As plain Dask's: more than a worker's memory holds, and the next task still runs."""
    with (
        cluster(tmp_path, 1) as (_, client),
        LimitedDaskExecutor(client, memory="300MiB") as executor,
    ):
        futures = [executor.submit(fill, 80 << 20) for _ in range(16)]
        for future in futures:
            assert future.exception(PATIENCE) is None
        assert executor.submit(abs, -1).result(PATIENCE) == 1


def test_argument_whose_task_failed_is_named(client: Any) -> None:
    """With its own exception, as Dask gives it."""
    with LimitedDaskExecutor(client, memory="200MiB") as executor:
        first = executor.submit(divmod, 1, 0)
        second = executor.submit(str, first.dask_future)
        with pytest.raises(ZeroDivisionError):
            second.result(PATIENCE)
        report = second.report
        assert report is not None
        assert report.status == "exception"
        assert report.message.startswith("the task of an argument failed: ZeroDivisionError")


def test_function_that_asks_dask_to_run_it_again_is_not(client: Any) -> None:
    """It is an exception like any other."""

    def ask() -> None:
        raise Reschedule

    with LimitedDaskExecutor(client, memory="200MiB") as executor:
        future = executor.submit(ask)
        assert isinstance(future.exception(PATIENCE), Reschedule)


def begin_and_wait(folder: str) -> None:
    """Tell that it runs, and do not end."""
    with open(f"{folder}/{os.getpid()}", "w"):
        time.sleep(600)


def test_task_that_is_cancelled_as_it_begins_is_gone_with_its_future(
    running: tuple[Cluster, Any], tmp_path: Path
) -> None:
    """Once the client knows of its begin, which its worker tells before anything of it runs."""
    _, client = running
    with LimitedDaskExecutor(client, memory="200MiB") as executor:
        for _ in range(10):
            future = executor.submit(begin_and_wait, str(tmp_path))
            wait_until(future.running, PATIENCE)
            wait_until(lambda: list(tmp_path.iterdir()), PATIENCE)
            future.cancel()
            with pytest.raises(CancelledError):
                future.result(PATIENCE)
            [note] = tmp_path.iterdir()
            assert not psutil.pid_exists(int(note.name))
            note.unlink()


def test_executor_outlives_its_scheduler(tmp_path: Path) -> None:
    """One that is started anew at its address does not know who wants to hear of what."""
    with cluster(tmp_path, 1) as (made, client), LimitedDaskExecutor(client) as executor:
        assert executor.submit(abs, -1).result(PATIENCE) == 1
        made.restart_scheduler()
        wait_until(lambda: client.status != "running", PATIENCE)
        wait_until(lambda: client.status == "running", PATIENCE)
        made.worker("another")
        client.wait_for_workers(1, timeout=PATIENCE)
        late = executor.limit(wall_time=0.3).submit(time.sleep, 60)  # first, and told by no value
        assert isinstance(late.exception(PATIENCE), TimeoutException)
        assert late.report is not None
        assert late.report.status == "wall_time"
        for number in range(3):
            assert executor.submit(abs, -number).result(PATIENCE) == number
