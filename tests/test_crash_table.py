"""One table of endings, through every way of starting."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, NamedTuple

import crashes
import pytest
from capabilities import available, requires, skip_reason
from conftest import holdings, wait_until_nothing_is_left, wait_until_running

from pynisher_exec import (
    AnythingException,
    CpuTimeoutException,
    LimitedFuture,
    LimitedProcessExecutor,
    MemorylimitException,
    PynisherError,
    Report,
    SignalException,
    SubprocessException,
    TimeoutException,
    UnpicklableError,
)

CONTEXTS = [None, "loky", "spawn", "forkserver", "fork"]
PATIENCE = 40
EVER: dict[str, Any] = {"wall_time": 20}


class Row(NamedTuple):
    """A task, its limits, and what shall come of it. `text` stands in the exception's message."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    limits: dict[str, Any]
    status: str
    future: Any
    exit_status: Any
    text: str = ""
    facts: dict[str, Any] = {}  # noqa: RUF012  (never written to)
    pickled: bool = False
    """Only where something is pickled on its way to the task."""


def cases(rows: list[Row]) -> list[Any]:
    """Make parameters of rows; those about the gate need it."""
    gate = requires("seccomp")
    return [
        pytest.param(row, id=row.name, marks=gate if row.status == "processes" else ())
        for row in rows
    ]


WALL: dict[str, Any] = {"wall_time": 0.3}
CPU: dict[str, Any] = {"cpu_time": 0.2, "wall_time": 20}
GRACE = {"grace_period": 0.2}
MEMORY = {"memory": "100MB", "wall_time": 20}
E, A = "exception", AnythingException
Function = Callable[..., Any]
HOARDS: list[tuple[str, Function, tuple[Any, ...]]] = [
    ("memory, alone", crashes.hoard, ()),
    ("memory, shared map", crashes.hold, (250 << 20,)),
    ("memory, children", crashes.hoard_with_children, ()),
    ("memory, error raised", crashes.raise_memory_error, ()),
]
UNTRAVELLED: list[tuple[type, dict[str, Any]]] = [
    (crashes.AbortsWhenPickled, EVER),
    (crashes.HangsWhenPickled, WALL),
    (crashes.AbortsWhenLoaded, EVER),
    (crashes.FailsWhenLoaded, EVER),
    (crashes.HangsWhenLoaded, WALL),
]

ROWS = [
    *[  # first: a value has five seconds to travel, and two need them
        Row(f"value, {kind.__name__}", crashes.make, (kind,), limits, E, A, A, kind.__name__)
        for kind, limits in UNTRAVELLED
    ],
    Row("value", crashes.value, (), EVER, "ok", 42, 0),
    Row(
        "soft cpu",
        crashes.work_until_told,
        (),
        {**CPU, "grace_period": 5},
        "ok",
        "best so far",
        0,
        facts={"limit_reached": "cpu_time"},
    ),
    Row(
        "soft wall",
        crashes.sleep_until_told,
        (),
        {**WALL, "grace_period": 5},
        "ok",
        "best so far",
        0,
        facts={"limit_reached": "wall_time"},
    ),
    Row("exception", crashes.raise_value_error, (), EVER, E, ValueError, A, "reason"),
    Row(
        "os error",
        crashes.open_nothing,
        (),
        EVER,
        "os_error",
        FileNotFoundError,
        SubprocessException,
        facts={"os_errno": errno.ENOENT},
    ),
    *[
        Row(name, function, args, MEMORY, "memory", MemorylimitException, MemorylimitException)
        for name, function, args in HOARDS
    ],
    *[
        Row(name, function, (), CPU, "cpu_time", CpuTimeoutException, CpuTimeoutException)
        for name, function in [
            ("cpu, Python", crashes.burn),
            ("cpu, C", crashes.burn_in_c),
            ("cpu, children", crashes.burn_in_children),
            ("cpu, orphan", crashes.burn_in_orphan),
        ]
    ],
    *[
        Row(name, function, (), limits, "wall_time", TimeoutException, TimeoutException)
        for name, function, limits in [
            ("wall, asleep", crashes.sleep_long, WALL),
            ("wall, in C", crashes.sleep_in_c, WALL),
            ("wall, in C, grace", crashes.sleep_in_c, {**WALL, **GRACE}),
            ("wall, stopped", crashes.stop_itself, WALL),
            ("wall, stopped, grace", crashes.stop_itself, {**WALL, **GRACE}),
            ("wall, ignores signals", crashes.ignore_everything, WALL),
            ("wall, ignores signals, grace", crashes.ignore_everything, {**WALL, **GRACE}),
        ]
    ],
    *[
        Row(
            f"processes, {limit}",
            crashes.start_sleepers,
            (limit + 1,),
            {"processes": limit, **EVER},
            "processes",
            SubprocessException,
            SubprocessException,
            facts={"os_errno": errno.EAGAIN},
        )
        for limit in (0, 2)
    ],
    Row("segfault", crashes.segfault, (), EVER, "signal", A, A, "SIGSEGV"),
    Row("abort", os.abort, (), EVER, "signal", A, A, "SIGABRT"),
    Row("killed", crashes.kill_itself, (signal.SIGKILL,), EVER, "signal", A, A, "SIGKILL"),
    Row("terminated", crashes.kill_itself, (signal.SIGTERM,), EVER, "signal", A, A, "SIGTERM"),
    Row(
        "killed under limits",
        crashes.kill_itself,
        (signal.SIGKILL,),
        {**MEMORY, **CPU},
        "signal",
        A,
        A,
        "SIGKILL",
    ),
    Row(
        "quit",
        crashes.kill_itself,
        (signal.SIGQUIT,),
        EVER,
        "signal",
        SignalException,
        SignalException,
        "SIGQUIT",
    ),
    Row("os._exit", crashes.exit_at_once, (3,), EVER, "exit", A, A, "3", {"exit_code": 3}),
    Row("os._exit 0", crashes.exit_at_once, (0,), EVER, "exit", A, A, "0", {"exit_code": 0}),
    Row("sys.exit", crashes.exit_politely, (4,), EVER, "exit", A, A, "4", {"exit_code": 4}),
    Row("C exit", crashes.exit_in_c, (5,), EVER, "exit", A, A, "5", {"exit_code": 5}),
    Row("value, a lock", crashes.return_lock, (), EVER, E, UnpicklableError, A, "lock"),
    Row(
        "exception, two arguments",
        crashes.raise_two_arguments,
        (),
        EVER,
        E,
        UnpicklableError,
        A,
        "TwoArguments",
    ),
    Row(
        "call, a lock",
        crashes.take,
        (threading.Lock(),),
        EVER,
        E,
        UnpicklableError,
        A,
        "take",
        pickled=True,
    ),
    Row("fork, both return", crashes.return_twice, (), EVER, "ok", "parent", 0),
    *[
        Row(name, crashes.take, (thing,), EVER, "startup", P, P, text, pickled=True)
        for P in [PynisherError]
        for name, thing, text in [
            ("loading fails", crashes.FailsWhenLoaded(), "not here"),
            ("loading aborts", crashes.AbortsWhenLoaded(), "SIGABRT"),
            ("loading hangs", crashes.HangsWhenLoaded(), "startup_time"),
        ]
    ],
]
TABLE = cases(ROWS)


Endings = dict[str, LimitedFuture[Any]]


def why_not_in_a_fork(row: Row) -> str:
    """Say why a row has no meaning with the fork context, or cannot hold on this interpreter."""
    if row.pickled:
        return "nothing is pickled on its way into a fork"
    if row.name == "soft cpu" and not available("fork_signals"):
        return skip_reason("fork_signals")
    return ""


@pytest.fixture(scope="module", params=CONTEXTS, ids=str)
def endings(request: pytest.FixtureRequest) -> Endings:
    """All rows run through one way of starting, seven at a time, and nothing is left over."""
    before = holdings()
    context = request.param
    futures: Endings = {}
    with (
        LimitedProcessExecutor(6, context=context) as executor,
        LimitedProcessExecutor(1, context=context, startup_time=0.5) as hasty,
    ):
        for row in ROWS:
            if context == "fork" and why_not_in_a_fork(row):
                continue
            starter = hasty if row.name == "loading hangs" else executor
            futures[row.name] = starter.limit(**row.limits).submit(row.function, *row.args)
    gc.collect()
    assert wait_until_nothing_is_left(before, 5.0).lines == []
    return futures


@pytest.mark.parametrize("row", TABLE)
def test_ending(row: Row, endings: Endings) -> None:
    """Status, value or exception, and exit status are those of the table."""
    if row.name not in endings:
        pytest.skip(why_not_in_a_fork(row))
    future = endings[row.name]
    error, report = future.exception(0), future.report
    assert report is not None
    assert (report.status, report.exit_status) == (row.status, row.exit_status), report
    if isinstance(row.future, type):
        assert isinstance(error, row.future)
        assert row.text in str(error)
        assert report.exception is error
    else:
        assert (error, future.result()) == (None, row.future)
        assert report.result == row.future
    for name, expected in row.facts.items():
        assert getattr(report, name) == expected


def test_no_wall_limit_ends_a_task_early(endings: Endings) -> None:
    """What passed its wall limit ran for at least that long."""
    times = [
        (row.limits["wall_time"], report.wall_time)
        for row in ROWS
        if row.status == "wall_time" and (report := endings[row.name].report) is not None
    ]
    assert len(times) == 7
    assert all(limit <= time for limit, time in times)


@pytest.mark.parametrize("context", CONTEXTS)
def test_exception_has_the_remote_traceback_as_cause(context: str | None) -> None:
    """As in the stdlib's pools: the cause's text is the traceback of the task."""
    with LimitedProcessExecutor(1, context=context) as executor:
        error = executor.submit(crashes.raise_value_error).exception(PATIENCE)
    assert error is not None
    assert "raise ValueError(msg)\nValueError: reason" in str(error.__cause__)


@requires("perf")
@pytest.mark.parametrize("context", CONTEXTS)
def test_disowned_children_are_counted(context: str | None) -> None:
    """With SIGCHLD ignored nobody reaps their CPU time: the kernel's task clock has it."""
    with LimitedProcessExecutor(1, context=context, cpu_time=0.5, wall_time=20) as executor:
        error = executor.submit(crashes.burn_disowned).exception(PATIENCE)
    assert isinstance(error, CpuTimeoutException)


@pytest.mark.parametrize("context", CONTEXTS)
def test_failing_initializer_is_a_startup_failure_of_its_task(context: str | None) -> None:
    """The future says so, with the failure as the cause; also where nothing is pickled."""
    with LimitedProcessExecutor(
        1, context=context, initializer=crashes.raise_in_initializer
    ) as executor:
        future = executor.submit(crashes.value)
        error = future.exception(PATIENCE)
    assert isinstance(error, PynisherError)
    assert isinstance(error.__cause__, LookupError)
    assert future.report is not None
    assert future.report.status == "startup"


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("way", ["cancel", "kill_workers", "terminate_workers"])
def test_task_that_is_ended_by_its_caller_is_cancelled(context: str | None, way: str) -> None:
    """`cancel` answers True at once; the future is cancelled when the task has gone."""
    executor = LimitedProcessExecutor(1, context=context)
    try:
        future = executor.submit(crashes.sleep_long)
        waiting = executor.submit(crashes.sleep_long)
        wait_until_running(future)
        if way == "cancel":
            assert future.cancel()
            assert waiting.cancel()
        else:
            getattr(executor, way)()
        with pytest.raises(CancelledError):
            future.result(PATIENCE)
        assert future.report is not None
        assert (future.report.status, future.report.exit_status) == ("cancelled", A)
        assert waiting.cancelled()
    finally:
        executor.shutdown()


def parent_of(pid: int) -> int:
    """Return a process's parent."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def tell_pid_and_sleep(path: str) -> None:
    """Write the own pid to a pipe, then wait to be ended."""
    with open(path, "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    crashes.sleep_long()


@pytest.mark.parametrize("context", CONTEXTS)
def test_task_that_loses_its_supervisor_is_told_from_others(
    context: str | None, tmp_path: Path
) -> None:
    """One future fails and says so, its processes are gone, and the executor goes on."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with LimitedProcessExecutor(2, context=context) as executor:
        future = executor.submit(tell_pid_and_sleep, str(pipe))
        task = int(pipe.read_text())
        os.kill(parent_of(task), signal.SIGKILL)
        error = future.exception(PATIENCE)
        assert not Path("/proc", str(task)).exists()
        assert isinstance(error, PynisherError)
        assert future.report is not None
        assert future.report.status == "supervisor_lost"
        assert executor.submit(crashes.value).result(PATIENCE) == 42


@pytest.mark.parametrize("context", CONTEXTS)
def test_template_and_supervisor_may_both_be_killed(context: str | None, tmp_path: Path) -> None:
    """A task outlives its template; when the supervisor goes too, its future says so."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with LimitedProcessExecutor(1, context=context) as executor:
        future = executor.submit(tell_pid_and_sleep, str(pipe))
        supervisor = parent_of(int(pipe.read_text()))
        template = os.pidfd_open(parent_of(supervisor))
        signal.pidfd_send_signal(template, signal.SIGKILL)
        assert select.select([template], [], [], PATIENCE)[0]
        os.close(template)
        assert not future.done()
        os.kill(supervisor, signal.SIGKILL)
        assert isinstance(future.exception(PATIENCE), PynisherError)
        assert future.report is not None
        assert future.report.status == "supervisor_lost"
        assert executor.submit(crashes.value).result(PATIENCE) == 42


def processes_with(mark: str) -> list[str]:
    """Pids that were started with this mark in their environment."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            environment = Path("/proc", pid, "environ").read_bytes()
            if f"CRASH_MARK={mark}".encode() in environment.split(b"\0"):
                found.append(pid)
    return found


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(
    ("then", "status"),
    [("return", "ok"), ("raise", "exception"), ("sleep", "wall_time"), ("abort", "signal")],
)
def test_no_daemon_of_a_task_is_left_when_its_future_resolves(
    context: str | None, then: str, status: str
) -> None:
    """A scan of /proc in the done-callback finds no process that the task has started."""
    mark = f"{os.getpid()}-{context}-{then}"
    seen: list[list[str]] = []
    reports: list[Report | None] = []
    done = threading.Event()

    def look(future: Any) -> None:
        seen.append(processes_with(mark))
        reports.append(future.report)
        done.set()

    wall_time = 0.8 if then == "sleep" else PATIENCE
    with LimitedProcessExecutor(1, context=context, wall_time=wall_time) as executor:
        executor.submit(crashes.daemonize, mark, then).add_done_callback(look)
        assert done.wait(PATIENCE)
    assert seen == [[]]
    assert reports[0] is not None
    assert reports[0].status == status


@pytest.mark.parametrize("context", CONTEXTS)
def test_crashes_harm_no_other_task(context: str | None) -> None:
    """Among tasks that crash all others have their values, each from a process of its own."""
    with LimitedProcessExecutor(3, context=context) as executor:
        bad = [executor.submit(crashes.kill_itself, signal.SIGKILL) for _ in range(3)]
        good = [executor.submit(os.getpid) for _ in range(6)]
        bad += [executor.submit(crashes.segfault) for _ in range(3)]
        assert len({future.result(PATIENCE) for future in good}) == 6
        assert all(isinstance(future.exception(PATIENCE), AnythingException) for future in bad)
