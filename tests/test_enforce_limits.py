"""`enforce_limits`: what code written for pynisher 0.6 relies on, and what is better than there."""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import gc
import inspect
import io
import itertools
import logging
import math
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle
import crashes
import enforced
import plain
import pytest
from capabilities import available, skip_reason
from conftest import holdings, wait_until_nothing_is_left
from loky.backend import context as loky_context

import pynisher_exec
from pynisher_exec import (
    AnythingException,
    CpuTimeoutException,
    EnforcedFunction,
    MemorylimitException,
    PynisherError,
    Report,
    SignalException,
    SubprocessException,
    TimeoutException,
    enforce_limits,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTEXTS = [None, "loky", "spawn", "forkserver", "fork"]
ATTRIBUTES = (
    "result",
    "exit_status",
    "exitcode",
    "os_errno",
    "wall_clock_time",
    "stdout",
    "stderr",
    "resources_function",
    "resources_pynisher",
    "report",
)
EVER: dict[str, Any] = {"wall_time_in_s": 20}


class Lines:
    """A logger that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def debug(self, line: str, *args: object) -> None:
        """Keep it."""
        self.lines.append(line % args if args else line)

    def warning(self, line: str, *args: object) -> None:
        """Keep it."""
        self.warnings.append(line % args if args else line)

    def error(self, line: str, *args: object) -> None:
        """Keep it among the warnings."""
        self.warning(line, *args)

    def index(self, beginning: str) -> int:
        """Which line, the first one, begins so."""
        found = [n for n, line in enumerate(self.lines) if line.startswith(beginning)]
        assert found, (beginning, self.lines)
        return found[0]


def wrapped(function: Callable[..., Any], **limits: Any) -> Any:
    """Wrap; Any, since mypy would take an attribute for unchanged by the next call."""
    return enforce_limits(**limits)(function)


def ended(function: Callable[..., Any], *args: Any, **limits: Any) -> Any:
    """Wrap, call once, and give the object."""
    enforced_function = wrapped(function, **limits)
    enforced_function(*args)
    return enforced_function


# The table of endings ----------------------------------------------------------------------------


class Row(NamedTuple):
    """A call, its limits, and what shall come of it."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    limits: dict[str, Any]
    value: Any
    exit_status: Any
    exitcode: int
    os_errno: int | None = None
    stderr: str | None = None
    """What `stderr` has in it; None where output is not captured."""


CAPTURED: dict[str, Any] = {**EVER, "capture_output": True}
CPU: dict[str, Any] = {"cpu_time_in_s": 0.2, "wall_time_in_s": 20}
WALL: dict[str, Any] = {"wall_time_in_s": 0.3}
LONG: dict[str, Any] = {"grace_period_in_s": 10}
BRIEF: dict[str, Any] = {"grace_period_in_s": 0.2}
A, C, M, S, T = (
    AnythingException,
    CpuTimeoutException,
    MemorylimitException,
    SubprocessException,
    TimeoutException,
)
NOTHING: tuple[Any, ...] = ()
NAMED = KeyError("a key")
HEARD = [  # needs a signal handler that is run in a busy process
    Row("soft cpu, caught", crashes.work_until_told, (), {**CPU, **LONG}, "best so far", 0, 0),
    Row("soft cpu, escaped", crashes.burn, (), {**CPU, **LONG}, None, C, 0),
]
ROWS = [
    Row("value", crashes.value, (), EVER, 42, 0, 0),
    Row("value, captured", plain.write, ("hello",), CAPTURED, "hello", 0, 0, None, "hello\n"),
    Row("value, no limit", crashes.value, (), {}, 42, 0, 0),
    Row("value None", plain.write, ("",), EVER, "", 0, 0),
    *HEARD,
    Row("soft wall, caught", crashes.sleep_until_told, (), {**WALL, **LONG}, "best so far", 0, 0),
    Row("soft wall, escaped", crashes.sleep_long, (), {**WALL, **LONG}, None, T, 0),
    Row("memory error", plain.raise_oom, (), EVER, None, M, 0),
    Row("memory error, limit", plain.raise_oom, (), {"mem_in_mb": 4000, **EVER}, None, M, 0),
    Row("memory, refused", crashes.hoard, (), {"mem_in_mb": 300, **EVER}, None, M, 0),
    Row("memory, 1 MiB", abs, (-1,), {"mem_in_mb": 1, **EVER}, None, M, 0),
    Row("memory, 32 MiB", abs, (-1,), {"mem_in_mb": 32, **EVER}, None, M, 0),
    Row("memory, half a MiB", abs, (-1,), {"mem_in_mb": 0.5, **EVER}, None, M, 0),
    Row("memory, generous", abs, (-1,), {"mem_in_mb": 4000, **EVER}, 1, 0, 0),
    Row("os error", crashes.open_nothing, (), EVER, None, S, 0, errno.ENOENT),
    Row("os error 5", plain.raise_it, (OSError(5, "x"),), EVER, None, S, 0, 5),
    Row("os error, none", plain.raise_it, (OSError("x"),), EVER, None, S, 0),
    Row("timeout error", plain.raise_it, (TimeoutError(110, "x"),), EVER, None, S, 0, 110),
    Row("exception", crashes.raise_value_error, (), EVER, None, A, 1),
    Row(
        "traceback", crashes.raise_value_error, (), CAPTURED, None, A, 1, None, "raise_value_error"
    ),
    Row(
        "its text", crashes.raise_value_error, (), CAPTURED, None, A, 1, None, "ValueError: reason"
    ),
    Row("two args", crashes.raise_two_arguments, (), CAPTURED, None, A, 1, None, "TwoArguments: f"),
    Row("key error", plain.raise_it, (NAMED,), CAPTURED, None, A, 1, None, "'a key'"),
    Row("interrupt", plain.raise_it, (KeyboardInterrupt(),), EVER, None, A, 1),
    Row("its own timeout", plain.raise_it, (TimeoutException("x"),), EVER, None, T, 0),
    Row("its own cpu", plain.raise_it, (CpuTimeoutException("x"),), EVER, None, C, 0),
    Row("its own quit", plain.raise_it, (SignalException("x"),), EVER, None, SignalException, 0),
    Row("wall", crashes.sleep_long, (), WALL, None, T, -15),
    Row("wall, in C", crashes.sleep_in_c, (), WALL, None, T, -15),
    Row("wall, ignored", crashes.ignore_everything, (), WALL, None, T, -15),
    Row("wall, stopped", crashes.stop_itself, (), WALL, None, T, -15),
    Row("wall, ignored, grace", crashes.ignore_everything, (), {**WALL, **BRIEF}, None, T, -15),
    Row("wall, swallowed", plain.sleep_on, (), {**WALL, **BRIEF}, None, T, -15),
    Row("cpu", crashes.burn, (), CPU, None, C, -9),
    Row("cpu, no grace", crashes.burn, (), {**CPU, "grace_period_in_s": 0}, None, C, -9),
    Row("cpu, in C", crashes.burn_in_c, (), CPU, None, C, -9),
    Row("cpu, in C, grace", crashes.burn_in_c, (), {**CPU, **BRIEF}, None, C, -9),
    Row("cpu, swallowed", plain.burn_on, (), {**CPU, **BRIEF}, None, C, -9),
    Row("os._exit 0", crashes.exit_at_once, (0,), EVER, None, A, 0),
    Row("os._exit 3", crashes.exit_at_once, (3,), EVER, None, A, 3),
    Row("sys.exit 0", crashes.exit_politely, (0,), EVER, None, A, 0),
    Row("sys.exit 4", crashes.exit_politely, (4,), EVER, None, A, 4),
    Row("sys.exit text", crashes.exit_politely, ("bye",), CAPTURED, None, A, 1, None, "bye"),
    Row("C exit", crashes.exit_in_c, (5,), EVER, None, A, 5),
    Row("segfault", crashes.segfault, (), EVER, None, A, -11),
    Row("abort", os.abort, (), EVER, None, A, -6),
    Row("killed", crashes.kill_itself, (signal.SIGKILL,), EVER, None, A, -9),
    Row("terminated", crashes.kill_itself, (signal.SIGTERM,), EVER, None, A, -15),
    Row("quit", crashes.kill_itself, (signal.SIGQUIT,), EVER, None, SignalException, 0),
    Row(
        "quit, grace",
        crashes.kill_itself,
        (signal.SIGQUIT,),
        {**EVER, **LONG},
        None,
        SignalException,
        0,
    ),
    Row("a lock returned", crashes.return_lock, (), EVER, None, A, 1),
]
Answers = dict[str, dict[str, Any]]


def unheard(row: Row, context: str | None) -> str:
    """Why a row cannot hold with this way of starting on this interpreter."""
    if row in HEARD and context == "fork" and not available("fork_signals"):
        return skip_reason("fork_signals")
    return ""


def snapshot(function: EnforcedFunction[..., Any]) -> dict[str, Any]:
    """All attributes, as this thread reads them."""
    return {name: getattr(function, name) for name in ATTRIBUTES}


@pytest.fixture(scope="module", params=CONTEXTS, ids=str)
def answers(request: pytest.FixtureRequest) -> Iterator[Answers]:
    """All rows through one way of starting, eight at a time, and nothing is left over."""
    before = holdings()

    def run(row: Row) -> tuple[str, dict[str, Any]]:
        function = enforce_limits(**row.limits, context=request.param)(row.function)
        returned = function(*row.args)
        return row.name, {**snapshot(function), "returned": returned, "context": request.param}

    rows = [row for row in ROWS if not unheard(row, request.param)]
    # A fork inherits `sys.stdout` as pytest has replaced it: here it shall be an ordinary one.
    with (
        contextlib.redirect_stdout(sys.__stdout__),
        contextlib.redirect_stderr(sys.__stderr__),
        ThreadPoolExecutor(8) as threads,
    ):
        found = dict(threads.map(run, rows))
    pynisher_exec.shutdown()
    gc.collect()
    assert wait_until_nothing_is_left(before, 5.0).lines == []
    yield found
    # A module's fixture is taken down after the next test's leak check has begun to count: what it
    # holds (exceptions with their tracebacks) holds nothing open.
    found.clear()


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_ending(row: Row, answers: Answers) -> None:
    """Value, exit status, exit code, errno and output are those of the table."""
    if row.name not in answers:
        pytest.skip(skip_reason("fork_signals"))
    found = answers[row.name]
    assert found["exit_status"] == row.exit_status, found["report"]
    assert (found["returned"], found["result"]) == (row.value, row.value)
    exitcode = found["exitcode"]
    if row.limits.get("mem_in_mb", 100) <= 1 and exitcode == -9:
        exitcode = 0  # see test_memory_below_the_interpreter_always_ends_alike
    assert (exitcode, found["os_errno"]) == (row.exitcode, row.os_errno), found["report"]
    if row.stderr is None:
        assert (found["stdout"], found["stderr"]) == (None, None)
    else:
        assert isinstance(found["stdout"], str)
        assert row.stderr in found["stderr"]


def test_every_ending_fills_every_attribute(answers: Answers) -> None:
    """No status is None or 5; times and resources are there whatever happened."""
    for name, found in answers.items():
        status = found["exit_status"]
        assert (isinstance(status, int) and status == 0) or issubclass(
            status, pynisher_exec.TaskError
        ), name
        assert isinstance(found["exitcode"], int), name
        assert 0 < found["wall_clock_time"] < 20, name
        assert isinstance(found["resources_function"], resource.struct_rusage), name
        assert isinstance(found["resources_pynisher"], resource.struct_rusage), name
        assert isinstance(found["report"], Report), name


def test_no_wall_limit_ends_a_call_early(answers: Answers) -> None:
    """What passed its wall limit ran for at least that long, and not much longer."""
    times = [
        (found["wall_clock_time"], found["report"].wall_time)
        for row in ROWS
        if row.exit_status is T and row.exitcode == -15
        for found in [answers[row.name]]
    ]
    assert len(times) == 6
    assert all(WALL["wall_time_in_s"] <= inner <= outer < 5 for outer, inner in times)


# Attributes --------------------------------------------------------------------------------------


def test_attributes_before_any_call_are_none() -> None:
    """They exist, and say nothing."""
    function = enforce_limits()(crashes.value)
    assert snapshot(function) == dict.fromkeys(ATTRIBUTES)


def test_attributes_of_a_call_do_not_outlive_it() -> None:
    """What an earlier call left (an errno, an exit code, output) is not read after the next one."""
    function = wrapped(plain.end_somehow, **CAPTURED)
    function(2)
    assert (function.os_errno, function.exit_status) == (1002, SubprocessException)
    assert function(0) == "value 0"
    assert (function.os_errno, function.exit_status, function.exitcode) == (None, 0, 0)
    function(1)
    assert "reason 1" in (function.stderr or "")
    assert function.result is None
    function(0)
    assert function.stderr == ""


def test_unknown_attribute_is_an_attribute_error() -> None:
    """As of any object."""
    function = enforce_limits()(crashes.value)
    assert not hasattr(function, "nonsense")


def test_report_is_the_executors() -> None:
    """The whole account, ready for JSON."""
    function = ended(crashes.sleep_long, **WALL)
    assert function.report is not None
    assert function.report.status == "wall_time"
    assert function.report.to_dict()["exit_status"] == "TimeoutException"
    assert "0.3 s" in function.report.message


def test_resources_are_those_of_this_call() -> None:
    """CPU time of the function and nothing of the calls before it."""
    function = wrapped(plain.burn_for, **EVER)
    function(0.5)
    first = function.resources_function
    assert first is not None
    assert 0.4 < first.ru_utime + first.ru_stime < 5
    function(0)
    second = function.resources_function
    assert second is not None
    assert second.ru_utime + second.ru_stime < 0.4


def test_wall_clock_time_is_seconds() -> None:
    """Of the whole call, so at least what the function slept."""
    function = ended(time.sleep, 0.2, **EVER)
    assert function.wall_clock_time is not None
    assert 0.2 <= function.wall_clock_time < 10


def test_output_is_captured_whole_and_in_order() -> None:
    """Python's streams, descriptors and subprocesses; and what a killed function had written."""
    function = ended(os.system, "echo out; echo err >&2", **CAPTURED)
    assert (function.stdout, function.stderr) == ("out\n", "err\n")
    function = ended(plain.write, "hello", 60, capture_output=True, wall_time_in_s=0.5)
    assert (function.exit_status, function.exitcode) == (TimeoutException, -15)
    assert (function.stdout, function.stderr) == ("hello\n", "hello\n")


@pytest.mark.parametrize("context", [None, "fork"])
def test_output_is_captured_where_the_caller_has_replaced_its_streams(
    context: str | None,
) -> None:
    """As a notebook, a test runner or `redirect_stdout` does: what is printed is still captured."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        function = ended(plain.write, "hello", context=context, **CAPTURED)
        failed = ended(crashes.raise_value_error, context=context, **CAPTURED)
    assert (function.stdout, function.stderr) == ("hello\n", "hello\n")
    assert "ValueError: reason" in failed.stderr
    assert (out.getvalue(), err.getvalue()) == ("", "")


@pytest.mark.parametrize(
    "error", [MemoryError("x"), OSError(5, "x"), TimeoutException("x"), SignalException("x")]
)
def test_exception_with_a_status_of_its_own_prints_no_traceback(error: Exception) -> None:
    """Only what ends with 1 is printed to stderr, as 0.6 does."""
    function = ended(plain.raise_it, error, **CAPTURED)
    assert (function.exitcode, function.stderr) == (0, "")


def test_output_without_capture_goes_where_the_callers_goes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """And the attributes are None."""
    function = ended(plain.write, "hello", **EVER)
    assert (function.stdout, function.stderr) == (None, None)
    assert capfd.readouterr() == ("hello\n", "hello\n")


# Arguments ---------------------------------------------------------------------------------------


def test_arguments_go_by_position_and_by_name() -> None:
    """In pynisher's order, with pynisher's defaults, kept under pynisher's names."""
    logger = logging.getLogger("mine")
    context = multiprocessing.get_context("fork")
    given = (4000, 20, 30, 50, 5, logger, True, context)
    names = [
        "mem_in_mb",
        "cpu_time_in_s",
        "wall_time_in_s",
        "num_processes",
        "grace_period_in_s",
        "logger",
        "capture_output",
        "context",
    ]
    parameters = inspect.signature(enforce_limits).parameters
    assert list(parameters) == names
    defaults = [parameters[name].default for name in names]
    assert defaults == [None, None, None, None, None, None, False, None]
    by_name: dict[str, Any] = dict(zip(names, given, strict=True))
    for limits in (enforce_limits(*given), enforce_limits(**by_name)):
        assert tuple(getattr(limits, name) for name in names) == given
        function = limits(plain.add)
        assert function(1, third=4) == 7
        assert (function.exit_status, function.stdout) == (0, "")


def test_one_object_limits_many_functions() -> None:
    """The factory is used again; the functions have attributes of their own."""
    limits = enforce_limits(**WALL)
    first, second = limits(abs), limits(time.sleep)
    assert first(-3) == 3
    assert second(60) is None
    assert (first.exit_status, second.exit_status) == (0, TimeoutException)


@pytest.mark.parametrize("number", [5, 5.5, Decimal("5.5")], ids=repr)
def test_ints_and_floats_are_both_taken(number: Any) -> None:
    """Wherever a number is taken; a count may be a whole float."""
    function = ended(
        abs,
        -1,
        mem_in_mb=500 * number,
        cpu_time_in_s=number,
        wall_time_in_s=number,
        num_processes=5.0,
        grace_period_in_s=number,
    )
    assert (function.result, function.exit_status) == (1, 0), function.report


def test_fractions_of_a_second_are_held() -> None:
    """Neither rounded up nor taken as no limit."""
    function = ended(crashes.sleep_long, wall_time_in_s=0.25)
    assert function.report is not None
    assert 0.25 <= function.report.wall_time < 0.9
    function = ended(crashes.burn, cpu_time_in_s=0.25)
    assert function.report is not None
    assert 0.2 <= function.report.cpu_time < 0.9


def _refusals() -> Iterator[Any]:
    """Each nonsensical argument, the error and what is in its text."""
    limits = ("mem_in_mb", "cpu_time_in_s", "wall_time_in_s", "num_processes", "grace_period_in_s")
    for name in limits:
        for value in (True, False, "5", b"5", [5], 5j, object()):
            yield name, value, TypeError
        for value in (math.nan, math.inf, -math.inf, -1, -0.5):
            yield name, value, ValueError
    for name in limits[:3]:
        for value in (0, 0.0):
            yield name, value, ValueError
    for value in (0.5, 1.5):
        yield "num_processes", value, ValueError


@pytest.mark.parametrize(("name", "value", "error"), list(_refusals()), ids=repr)
def test_nonsense_is_refused_at_construction(name: str, value: Any, error: type[Exception]) -> None:
    """The error names the argument and what was given."""
    with pytest.raises(error, match=name) as caught:
        enforce_limits(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", ["mem_in_mb", "cpu_time_in_s", "wall_time_in_s", "num_processes"])
@pytest.mark.parametrize("value", [10**400, 1e300], ids=["10**400", "1e300"])
def test_number_beyond_all_measure_is_refused_or_held(name: str, value: Any) -> None:
    """A ValueError at construction that names it, or a limit never met: no error of the library."""
    try:
        limits = enforce_limits(**{name: value})
    except ValueError as error:
        assert name in str(error)  # noqa: PT017  (either is right)
        return
    function = limits(abs)
    assert (function(-1), function.exit_status) == (1, 0), function.report


@pytest.mark.parametrize(
    ("context", "error"), [("nonsense", ValueError), (42, TypeError), (b"fork", TypeError)]
)
def test_context_that_is_none_is_refused(context: Any, error: type[Exception]) -> None:
    """The error names what would do."""
    with pytest.raises(error, match="forkserver"):
        enforce_limits(context=context)


def test_bare_decorator_is_refused_with_the_remedy() -> None:
    """`@enforce_limits` without parentheses says how it is written."""
    with pytest.raises(TypeError, match=r"@enforce_limits\(\)"):

        @enforce_limits  # type: ignore[arg-type]
        def function() -> None:
            """Do nothing."""


@pytest.mark.parametrize("thing", [42, None, "text", [abs]], ids=repr)
def test_what_is_no_function_is_refused(thing: Any) -> None:
    """When it is decorated, not when it is called."""
    with pytest.raises(TypeError, match="callable"):
        enforce_limits()(thing)


def test_limits_that_say_nothing_are_no_limits() -> None:
    """No argument at all, and each None."""
    assert enforce_limits()(abs)(-1) == 1
    nones = enforce_limits(None, None, None, None, None, None, False, None)
    assert nones(abs)(-1) == 1
    assert nones.grace_period_in_s == 0


@pytest.mark.parametrize("context", CONTEXTS)
def test_processes_are_counted_in_the_functions_tree(context: str | None) -> None:
    """As many as allowed run at once, one more is refused: as root, whatever else the user runs."""
    if not available("seccomp"):
        pytest.skip(skip_reason("seccomp"))
    held = wrapped(plain.fork_children, num_processes=2, context=context, **EVER)
    assert held(2) == 2
    assert held.exit_status == 0
    assert held(3) is None
    assert (held.exit_status, held.os_errno) == (SubprocessException, errno.EAGAIN)
    none = wrapped(plain.fork_children, num_processes=0, context=context, **EVER)
    assert none(0) == 0
    assert none(1) is None
    assert none.exit_status is SubprocessException


# Memory ------------------------------------------------------------------------------------------


def test_memory_of_the_tree_is_held() -> None:
    """Four children of 60 MB each do not pass under 150 MB; they do under 800."""
    function = ended(crashes.hoard_with_children, mem_in_mb=150, **EVER)
    assert (function.exit_status, function.result) == (MemorylimitException, None)
    function = ended(crashes.hoard_with_children, mem_in_mb=800, wall_time_in_s=1)
    assert function.exit_status is TimeoutException


def test_what_the_caller_holds_is_not_counted() -> None:
    """A caller with 300 MB runs a task under 200 MB, which may use a good part of them."""
    ballast = bytearray(300 << 20)
    function = wrapped(plain.hold, mem_in_mb=200, **EVER)
    assert function(50 << 20) == 50 << 20, function.report
    assert function.exit_status == 0
    assert function(300 << 20) is None
    assert function.exit_status is MemorylimitException
    del ballast


def test_arguments_count() -> None:
    """From zero, so with what the call brought along."""
    argument = bytes(100 << 20)
    function = wrapped(plain.size_of, mem_in_mb=80, **EVER)
    assert function(argument) is None
    assert function.exit_status is MemorylimitException
    generous = wrapped(plain.size_of, mem_in_mb=500, **EVER)
    assert generous(argument) == 100 << 20


def test_memory_below_the_interpreter_always_ends_alike() -> None:
    """A limit that is passed before the function begins is a refused allocation, and no kill."""
    function = wrapped(abs, mem_in_mb=1)

    def call(n: int) -> tuple[Any, int]:
        function(-n)
        return function.exit_status, function.exitcode

    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(call, range(400))) == {(MemorylimitException, 0)}


def test_memory_is_the_rlimit_of_that_name() -> None:
    """RLIMIT_AS of that many MiB in the function and in its subprocesses."""

    def look() -> tuple[int, bytes]:
        shell = subprocess.run(["sh", "-c", "ulimit -S -v"], capture_output=True, check=True)
        return resource.getrlimit(resource.RLIMIT_AS)[0], shell.stdout

    found = enforce_limits(mem_in_mb=700, **EVER)(look)()
    assert found == (700 << 20, b"%d\n" % (700 << 10))


# Ways of starting --------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver", "loky"])
def test_context_goes_by_name_and_by_object(context: str) -> None:
    """Both start a process that is not this one, and the attribute is the context."""
    source: Any = loky_context if context == "loky" else multiprocessing
    given = source.get_context(context)
    for way in (context, given):
        function = enforce_limits(context=way, **EVER)(os.getpid)
        assert function() not in (None, os.getpid())
        assert function.exit_status == 0
    assert enforce_limits(context=given).context.get_start_method() == given.get_start_method()


def test_fork_hands_over_what_cannot_be_pickled(tmp_path: Path) -> None:
    """A queue, locks and an open file are inherited, and globals are as the caller left them."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    wrapped(plain.put, context=context, **EVER)(queue, "thing")
    assert queue.get(timeout=20) == "thing"
    queue.close()
    queue.join_thread()
    for lock in (context.Lock(), threading.Lock()):
        assert wrapped(plain.take_lock, context="fork", **EVER)(lock) is True
    with (tmp_path / "file").open("w") as file:
        pid = wrapped(plain.write_line, context="fork", **EVER)(file, "from the task")
    assert pid not in (None, os.getpid())
    assert (tmp_path / "file").read_text() == "from the task"
    plain.Adder.later = "set at run time"  # type: ignore[attr-defined]
    try:
        look = wrapped(getattr, context="fork", **EVER)
        assert look(plain.Adder, "later") == "set at run time"
    finally:
        del plain.Adder.later  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["spawn", "forkserver"])
def test_queue_of_the_same_context_is_handed_over(name: str) -> None:
    """As multiprocessing does for a process of its own."""
    context = multiprocessing.get_context(name)
    queue = context.Queue()
    try:
        function = wrapped(plain.put, context=context, **EVER)
        function(queue, "thing")
        assert function.exit_status == 0, function.report
        assert queue.get(timeout=5) == "thing"
    finally:
        queue.close()
        queue.join_thread()
    lock = context.Lock()
    assert wrapped(plain.take_lock, context=context, **EVER)(lock) is True


def test_unpicklable_call_falls_back_to_a_fork_and_warns(tmp_path: Path) -> None:
    """By default; the warning names what could not be pickled, and only such a call warns."""
    logger = Lines()
    limits = enforce_limits(logger=logger, **EVER)
    assert limits(abs)(-1) == 1
    assert logger.warnings == []
    locked = limits(plain.take_lock)
    assert locked(threading.Lock()) is True
    assert (locked.exit_status, locked.exitcode) == (0, 0)
    (warning,) = logger.warnings
    assert "take_lock" in warning
    assert "_thread.lock" in warning
    assert "fork" in warning
    with (tmp_path / "file").open("w") as file:
        writing = limits(plain.write_line)
        pid = writing(file, "from the task")
    assert pid not in (None, os.getpid())
    assert (tmp_path / "file").read_text() == "from the task"
    assert "write_line" in logger.warnings[1]
    assert "file" in logger.warnings[1].replace("write_line", "")


def test_warning_goes_to_multiprocessings_logger_by_default(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As 0.6's lines did, so that who has set that one up goes on seeing them."""
    logger = logging.getLogger("multiprocessing")
    logger.addHandler(caplog.handler)
    try:
        assert wrapped(plain.take_lock, **EVER)(threading.Lock()) is True
    finally:
        logger.removeHandler(caplog.handler)
    found = {(record.name, record.levelname) for record in caplog.records}
    assert found == {("multiprocessing", "WARNING")}


@pytest.mark.parametrize("context", ["spawn", "forkserver", "loky"])
def test_unpicklable_call_with_a_context_is_told_of(context: str) -> None:
    """A context that was asked for is obeyed: no fork behind its back."""
    function = ended(plain.take_lock, threading.Lock(), context=context, **EVER)
    assert (function.result, function.exit_status) == (None, AnythingException)
    assert function.report is not None
    assert "cannot be pickled" in function.report.message


def test_limits_hold_in_the_fork_that_is_fallen_back_to() -> None:
    """Its wall limit ends what a lock held by another thread would hang for ever."""
    lock = threading.Lock()
    with lock:
        function = ended(plain.take_lock, lock, logger=Lines(), wall_time_in_s=0.5)
    assert (function.exit_status, function.exitcode) == (TimeoutException, -15)


def test_lock_held_by_another_thread_does_not_hang_a_call() -> None:
    """The logging module's locks are held while the call is made, and its function logs."""
    handler = logging.StreamHandler()
    logger = logging.getLogger("held")
    logger.addHandler(handler)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        handler.acquire()
        held.set()
        release.wait(40)
        handler.release()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(20)
        function = ended(plain.log_line, wall_time_in_s=20, capture_output=True)
        assert (function.result, function.exit_status) == ("logged", 0)
    finally:
        release.set()
        holder.join()
        logger.removeHandler(handler)


# What can be wrapped -----------------------------------------------------------------------------


def test_decorated_function_keeps_name_docstring_and_signature() -> None:
    """As `functools.wraps` does it."""
    function = enforced.nap
    assert (vars(function)["__name__"], function.__doc__) == ("nap", "Sleep.")
    assert vars(function)["__qualname__"] == "nap"
    assert vars(function)["__module__"] == "enforced"
    assert list(inspect.signature(function).parameters) == ["seconds"]
    assert function(0) == "rested"
    assert function(60) is None
    assert function.exit_status is TimeoutException


def test_keyword_arguments_reach_the_function() -> None:
    """Whatever their names: those of pynisher, and `self`, too."""
    function = wrapped(plain.echo, **EVER)
    names = ["self", "self2", "func", "pipe", "logger", "mem_in_mb", "args", "kwargs", "context"]
    given = dict.fromkeys(names, 1)
    assert function(1, 2, **given) == ((1, 2), given)
    assert wrapped(plain.add, **EVER)(1, third=4) == 7
    assert wrapped(plain.add, **EVER)(first=1, second=1, third=1) == 3


def test_call_that_does_not_fit_is_told_of_as_from_inside() -> None:
    """A wrong argument is the function's TypeError, in its traceback."""
    function = ended(plain.add, **CAPTURED)
    assert (function.exit_status, function.exitcode) == (AnythingException, 1)
    assert "TypeError" in (function.stderr or "")
    assert "first" in (function.stderr or "")


def test_methods_of_every_kind_are_bound() -> None:
    """Instance, static and class methods, in a process of its own."""
    model = enforced.Model(20)
    value, pid = model.fit(5, y=1) or (0, 0)
    assert value == 26
    assert pid not in (0, os.getpid())
    assert enforced.Model.double(4) == model.double(4) == 8
    assert enforced.Model.named(4) == model.named(4) == ("Model", 4)
    assert enforce_limits(**EVER)(model.plain)(3) == 60
    assert wrapped(enforced.Model.plain, **EVER)(model, 3) == 60


def test_method_has_the_attributes_of_the_last_call() -> None:
    """Read from the class or from any instance, as 0.6 keeps them with the function."""
    model = enforced.Model()
    model.fit("text")
    assert model.fit.exit_status is AnythingException
    assert enforced.Model.fit.exit_status is AnythingException
    model.fit(1)
    assert enforced.Model().fit.exit_status == 0


def test_bound_method_keeps_its_signature() -> None:
    """Without `self`, as a function's does."""
    assert vars(enforced.Model().fit)["__name__"] == "fit"
    assert list(inspect.signature(enforced.Model.fit).parameters) == ["self", "x", "y"]
    assert list(inspect.signature(enforced.Model().fit).parameters) == ["x", "y"]


def test_what_python_does_not_bind_is_not_bound() -> None:
    """A partial, builtin, bound method or object as a class's attribute takes no instance."""
    holder = enforced.HasNoFunctions()
    with warnings.catch_warnings():  # from 3.13 on Python warns of any partial in a class
        warnings.simplefilter("ignore", FutureWarning)
        assert holder.from_hex("ff") == 255
    assert holder.absolute(-1) == 1
    assert holder.joined(["a", "b"]) == "a-b"
    assert holder.adder(1) == 11


def test_callable_objects_partials_builtins_and_lambdas() -> None:
    """Everything that can be called."""
    limits = enforce_limits(**EVER)
    offset = 7
    assert limits(plain.Adder(10))(5, y=1) == 16
    assert limits(functools.partial(plain.add, 1, third=5))(1) == 7
    assert limits(functools.partial(plain.Adder(1), y=5))(1) == 7
    assert limits(lambda x: x + offset)(1) == 8
    assert limits(math.sqrt)(9) == 3
    assert limits("-".join)(["a", "b"]) == "a-b"
    assert wrapped(dict, **EVER)(a=1) == {"a": 1}


def test_object_with_every_attribute_is_wrapped_like_another() -> None:
    """A proxy (xmlrpc's, a mock) has an attribute of any name, and is no endless partial."""
    code = """
        import plain, pynisher_exec
        print(pynisher_exec.enforce_limits()(plain.Proxy())(1))
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        try:
            assert process.communicate(timeout=10)[0] == "2\n"
        finally:
            process.kill()


def test_wrapped_object_pickles_where_its_function_does() -> None:
    """By plain pickle and by cloudpickle, with its limits and its context."""
    assert pickle.loads(pickle.dumps(enforced.nap)) is enforced.nap
    assert cloudpickle.loads(cloudpickle.dumps(enforced.nap)) is enforced.nap
    assert pickle.loads(pickle.dumps(enforced.stacked)) is enforced.stacked
    for function in (enforced.forked, enforced.spawned):
        assert pickle.loads(pickle.dumps(function)) is function
    for pickler in (pickle, cloudpickle):
        again = pickler.loads(pickler.dumps(enforce_limits(**WALL)(time.sleep)))
        assert again(60) is None
        assert (again.exit_status, again.exitcode) == (TimeoutException, -15)
        method = pickler.loads(pickler.dumps(enforced.Model(20).fit))
        assert method(5)[0] == 25
        for context in ("fork", multiprocessing.get_context("fork")):
            limits = enforce_limits(context=context, logger=logging.getLogger("mine"))
            assert pickler.loads(pickler.dumps(limits(abs)))(-1) == 1
    local = cloudpickle.loads(cloudpickle.dumps(enforce_limits(**EVER)(lambda x: x + 1)))
    assert local(1) == 2
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(enforce_limits()(lambda x: x + 1))


def test_limits_pickle_and_copy() -> None:
    """The factory itself travels too, and a copy of an object has its limits."""
    limits = pickle.loads(pickle.dumps(enforce_limits(500, 10, 0.3, 4, 1)))
    assert (limits.mem_in_mb, limits.cpu_time_in_s, limits.wall_time_in_s) == (500, 10, 0.3)
    assert (limits.num_processes, limits.grace_period_in_s) == (4, 1)
    again = copy.copy(enforce_limits(**WALL)(time.sleep))
    again(60)
    assert again.exit_status is TimeoutException


def test_pool_of_another_library_runs_it() -> None:
    """A daemonic worker of a fork Pool, which may not start children by multiprocessing."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(enforce_limits(**EVER)(plain.add), range(4)) == [5, 6, 7, 8]
        assert pool.map(enforced.nap, [0, 60]) == ["rested", None]
        assert pool.apply(enforced.outer, (60,)) == ("TimeoutException", -15)
        pool.close()
        pool.join()


def test_calls_are_nested() -> None:
    """An enforced function calls itself, and another one; each call has its own process."""
    assert enforced.factorial(3) == 6
    assert enforced.outer(60) == ("TimeoutException", -15)
    assert enforced.outer.exit_status == 0
    assert enforced.outer(0) == ("0", 0)


def test_decorators_are_stacked() -> None:
    """The inner limits hold inside the outer ones, whose function returns None then."""
    assert enforced.stacked(0) == "rested"
    assert (enforced.stacked(60), enforced.stacked.exit_status) == (None, 0)
    inner = enforce_limits(**EVER)(enforce_limits(**WALL)(time.sleep))
    assert (inner(60), inner.exit_status) == (None, 0)


# Threads -----------------------------------------------------------------------------------------


def test_each_thread_reads_its_own_call() -> None:
    """16 threads on one object, all calls at once, each with another ending."""
    function = wrapped(plain.end_somehow, wall_time_in_s=1.0, capture_output=True)
    together = threading.Barrier(16)

    def call(n: int) -> tuple[int, Any, dict[str, Any]]:
        together.wait(30)
        returned = function(n)
        together.wait(50)  # all have ended, so whatever is shared has been overwritten
        return n, returned, snapshot(function)

    with ThreadPoolExecutor(16) as threads:
        for n, returned, found in threads.map(call, range(16)):
            check_mixed(n, returned, found)


def check_mixed(n: int, returned: object, found: dict[str, Any]) -> None:
    """The attributes are those of the n-th ending of `plain.end_somehow`."""
    status, exitcode = [
        (0, 0),
        (AnythingException, 1),
        (SubprocessException, 0),
        (AnythingException, n % 200),
        (AnythingException, -9),
        (MemorylimitException, 0),
        (AnythingException, n % 200),
        (TimeoutException, -15),
    ][n % plain.MIXED]
    value = f"value {n}" if n % plain.MIXED == 0 else None
    assert (found["exit_status"], found["exitcode"]) == (status, exitcode), (n, found["report"])
    assert (returned, found["result"]) == (value, value)
    assert found["os_errno"] == (1000 + n if n % plain.MIXED == 2 else None)
    stderr = found["stderr"]
    if n % plain.MIXED != 5:  # see test_exception_with_a_status_of_its_own_prints_no_traceback
        assert f"reason {n}\n" in stderr if n % plain.MIXED == 1 else stderr == ""


def test_400_calls_from_16_threads_are_all_right(marked: Any) -> None:
    """Mixed endings on one object: 400 right answers, and no process is left."""
    function = wrapped(plain.end_somehow, wall_time_in_s=1.0, capture_output=True)

    def call(n: int) -> tuple[int, Any, dict[str, Any]]:
        return n, function(n), snapshot(function)

    # One in fifty sleeps until its wall limit: the others are drawn from the seven that end at once
    drawn = [n for n in range(800) if n % 8 != 7 or n % 7 == 0][:400]
    with ThreadPoolExecutor(16) as threads:
        checked = 0
        for n, returned, found in threads.map(call, drawn):
            check_mixed(n, returned, found)
            checked += 1
    assert checked == 400
    pynisher_exec.shutdown()
    assert marked.scan() == []


def test_thread_without_a_call_reads_the_last_one() -> None:
    """A call in a worker thread is read by the thread that waits for it."""
    function = wrapped(plain.end_somehow, **EVER)
    for n, status in ((0, 0), (5, MemorylimitException)):
        thread = threading.Thread(target=function, args=(n,))
        thread.start()
        thread.join()
        assert function.exit_status == status
    function(0)
    thread = threading.Thread(target=function, args=(5,))
    thread.start()
    thread.join()
    assert function.exit_status == 0  # its own call, though the other ended later


# Log ---------------------------------------------------------------------------------------------


def test_limits_are_logged_at_construction() -> None:
    """One line each, with the value; none for what is no limit."""
    logger = Lines()
    enforce_limits(200, 10, 20, 3, 1, logger)
    for beginning in (
        "Restricting your function to 200 mb memory",
        "Restricting your function to 10 seconds cpu time",
        "Restricting your function to 20 seconds wall time",
        "Restricting your function to 3 ",
        "Allowing a grace period of 1 seconds",
    ):
        logger.index(beginning)
    assert len(logger.lines) == 5
    bare = Lines()
    enforce_limits(logger=bare)
    assert [line for line in bare.lines if line.startswith("Restricting")] == []
    bare.index("Allowing a grace period of 0 seconds")


def test_call_and_its_end_are_logged_in_order() -> None:
    """With the arguments before and the value after."""
    logger = Lines()
    ended(plain.add, 3, 4, logger=logger, **EVER)
    moments = [
        "Function called with argument: (3, 4), {}",
        "call function",
        "function returned properly: 10",
        "return value: (10, 0)",
    ]
    assert (found := [logger.index(line) for line in moments]) == sorted(found)
    assert logger.warnings == []


@pytest.mark.parametrize(
    ("function", "args", "limits", "line"),
    [
        (crashes.sleep_long, (), {**WALL, **LONG}, "signal handler: 14"),
        (crashes.kill_itself, (signal.SIGQUIT,), EVER, "signal handler: 3"),
        (crashes.exit_at_once, (3,), EVER, "Your function call closed the pipe prematurely"),
        (crashes.kill_itself, (9,), EVER, "Your function call closed the pipe prematurely"),
        (crashes.sleep_long, (), {**WALL, **LONG}, "return value: (None, "),
        (crashes.value, (), CAPTURED, "return value: (42, 0)"),
    ],
)
def test_endings_are_logged(
    function: Callable[..., Any], args: tuple[Any, ...], limits: dict[str, Any], line: str
) -> None:
    """A soft signal, a function that just ended, what is returned."""
    logger = Lines()
    ended(function, *args, logger=logger, **limits)
    logger.index(line)
    assert all(len(line) < 1000 for line in logger.lines)


def deep() -> list[Any]:
    """Lists in lists, two hundred of them."""
    made: list[Any] = []
    for _ in range(200):
        made = [made]
    return made


LARGE: list[tuple[str, Callable[[], Any]]] = [
    ("object", plain.RefusesRepr),
    ("in a list", lambda: [plain.RefusesRepr()]),
    ("in a dict", lambda: {"key": (plain.RefusesRepr(),)}),
    ("bytes", lambda: bytes(50_000_000)),
    ("text", lambda: "x" * 50_000_000),
    ("texts", lambda: ["x" * 100_000] * 500),
    ("a key", lambda: {"x" * 1_000_000: 1}),
    ("many", lambda: list(range(500_000))),
    ("deep", deep),
    ("wide", lambda: {n: list(range(10)) for n in range(1000)}),
    ("float", lambda: plain.RefusesReprFloat(1.5)),
    ("a class of that name", plain.array),
    ("large int", plain.make_large_int),
]


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in LARGE])
def test_no_line_has_the_whole_of_an_argument_or_result(make: Callable[[], Any]) -> None:
    """Nothing foreign is asked for its repr or its order, and every line stays a line."""
    logger = Lines()
    result = wrapped(plain.make, logger=logger, **EVER)
    found = result(make)
    assert result.exit_status == 0, result.report
    assert type(found).__name__ == type(make()).__name__
    thing = make()
    function = wrapped(plain.type_of, logger=logger, **EVER)
    assert function(thing) == type(thing).__name__
    assert function(thing=thing) == type(thing).__name__
    assert max(map(len, logger.lines)) < 1000


@pytest.mark.parametrize("make", [set, frozenset, dict.fromkeys], ids=["set", "frozenset", "dict"])
def test_no_line_sorts_an_argument(make: Callable[[Any], Any]) -> None:
    """A line's worth of a large set costs a line: nothing foreign is compared to print it."""
    thing = make([plain.NotesOrder() for _ in range(3)])
    plain.NotesOrder.compared = 0
    assert wrapped(plain.type_of, **EVER)(thing) == type(thing).__name__
    assert plain.NotesOrder.compared == 0


def test_large_argument_and_result_are_not_printed_without_a_logger() -> None:
    """The default logger costs nothing either."""
    function = wrapped(plain.make, **EVER)
    assert len(function(plain.RefusesRepr)) == 50_000_000
    assert wrapped(plain.size_of, **EVER)(plain.RefusesRepr()) == 50_000_000


# Interrupts --------------------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, sys, threading, time
from pynisher_exec import enforce_limits
def work():
    os.write(1, b"up\\n")
    time.sleep(60)
function = enforce_limits(wall_time_in_s=50, context={context!r})(work)
try:
    function()
except KeyboardInterrupt:
    print("interrupted", function.exit_status, function.exitcode, flush=True)
print(enforce_limits(wall_time_in_s=20)(abs)(-1))
"""


@pytest.mark.parametrize("context", CONTEXTS)
def test_ctrl_c_goes_on_to_the_caller(context: str | None, marked: Any) -> None:
    """It is not swallowed, the function ends at once, and the next call works."""
    code = INTERRUPTED.format(context=context)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert rest == "interrupted None None\n1\n"
    assert time.monotonic() - began < 15
    assert marked.scan() == []


def test_status_classes_are_those_of_the_module() -> None:
    """The seven, siblings: none is caught for another."""
    seven = [A, C, M, S, T, SignalException, PynisherError]
    assert all(issubclass(kind, Exception) for kind in seven)
    assert not any(issubclass(*pair) for pair in itertools.permutations(seven, 2))
