"""What a function leaves behind, or throws, breaks none of the library's steps after it."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import crashes
import pytest
from conftest import child_pids, wait_until

from pynisher_exec import LimitedProcessExecutor, Report, TaskError, UnpicklableError, supports

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE = 30
BY_REFERENCE = True
MIB = 1 << 20


def reports_on(*calls: tuple[Any, ...], **options: Any) -> list[Report]:
    """Make these calls beside an innocent task, which must go on; tell of them."""
    with LimitedProcessExecutor(2, wall_time=20, **options) as executor:
        other = executor.submit(time.sleep, 0.2)
        reports = [executor.submit(*call).wait_for_report() for call in calls]
        assert other.result(PATIENCE) is None
        assert executor.submit(crashes.value).result(PATIENCE) == 42
    return reports


def report_on(*call: Any, **options: Any) -> Report:
    """Make one call, likewise."""
    (report,) = reports_on(call, **options)
    return report


class Unfinished(TaskError):  # noqa: N818
    """Does not call what it inherits."""

    def __init__(self, code: int) -> None:
        self.code = code


class Closed(TaskError):  # noqa: N818
    """Has an attribute of that name that cannot be set."""

    @property
    def report(self) -> None:  # type: ignore[override]
        """Nothing."""

    def __init__(self) -> None:
        Exception.__init__(self, "closed")

    def __reduce__(self) -> Any:
        return Closed, ()


@dataclass(frozen=True)
class Frozen(Exception):  # noqa: N818
    """Lets nothing be set."""

    code: int

    def __reduce__(self) -> Any:
        return Frozen, (self.code,)


class Liar(Exception):  # noqa: N818
    """Raises when asked for its class."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Raise."""
        msg = "no class"
        raise RuntimeError(msg)


EXCEPTIONS: dict[str, tuple[Callable[[], BaseException], str, type]] = {
    "unfinished": (lambda: Unfinished(3), "exception", Unfinished),
    "closed": (Closed, "exception", Closed),
    "frozen": (lambda: Frozen(3), "exception", Frozen),
    "liar": (Liar, "exception", UnpicklableError),
    "huge number": (lambda: OSError(10**5000, "x"), "os_error", OSError),
}


def throw(kind: str) -> None:
    """Raise one of these."""
    make = EXCEPTIONS[kind][0]
    raise make()


@pytest.mark.parametrize("context", [None, "fork"])
def test_exception_of_any_making_is_told_and_harms_no_other(context: str | None) -> None:
    """It arrives, or what hinders it is said; the executor goes on."""
    reports = reports_on(*((throw, kind) for kind in EXCEPTIONS), context=context)
    for report, (_, status, kind) in zip(reports, EXCEPTIONS.values(), strict=True):
        assert report.status == status, report.message
        assert type(report.exception) is kind


class Nameless(type):
    """A class of classes that tell no module."""

    @property
    def __module__(cls) -> str:  # type: ignore[override]
        """Raise."""
        msg = "no module"
        raise RuntimeError(msg)


def return_nameless() -> object:
    """Return an instance of one."""
    return Nameless("Thing", (), {})()


def test_value_whose_class_raises_is_said_to_be_unpicklable() -> None:
    """By the one future."""
    report = report_on(return_nameless, context="fork")
    assert report.status == "exception"
    assert "no module" in report.message


def lower_recursion(then: str) -> str:
    """Leave next to no depth for what comes after."""
    depth = 5
    while depth < sys.getrecursionlimit():
        with suppress(RecursionError):
            sys.setrecursionlimit(depth)
        depth += 1
    if then == "raise":
        raise ValueError(then)
    return then


def test_lowered_recursion_limit_is_not_the_librarys() -> None:
    """What the function leaves of it is for the function alone."""
    reports = reports_on((lower_recursion, "return"), (lower_recursion, "raise"))
    assert [report.status for report in reports] == ["ok", "exception"]


def use_up_descriptors(then: str) -> str:
    """Grow, and leave no descriptor."""
    kept = bytearray(4 * MIB)
    try:
        while True:
            os.dup(0)
    except OSError:
        if then == "raise":
            raise
    return f"{then} {len(kept) // MIB}"


def lower_open_files(then: str) -> str:
    """Grow, and lower the limit of descriptors for good."""
    kept = bytearray(4 * MIB)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    return f"{then} {len(kept) // MIB}"


@pytest.mark.parametrize("reuse", [1, 3])
def test_function_that_leaves_no_descriptor_is_told_as_it_ended(reuse: int) -> None:
    """Its memory can no longer be read from /proc, and that is no reason to end otherwise."""
    calls = (use_up_descriptors, "return"), (use_up_descriptors, "raise"), (lower_open_files, "")
    reports = reports_on(*calls, open_files=64, max_tasks_per_child=reuse)
    assert [report.status for report in reports] == ["ok", "os_error", "ok"]
    if reuse == 1:  # else later ones may use what the first has left
        assert all(report.peak_memory > 3 * MIB for report in reports)


def freeze_time(moment: float) -> str:
    """Leave a clock that stands, as what freezes time for tests does."""
    time.monotonic = lambda: moment
    return "in time"


@pytest.mark.parametrize("grace", [None, 5])
def test_replaced_clock_does_not_make_a_function_late(grace: float | None) -> None:
    """When it ended is asked for by another name."""
    calls = (freeze_time, 1.0), (freeze_time, 1_577_836_800.0)
    for report in reports_on(*calls, grace_period=grace):
        assert (report.status, report.result) == ("ok", "in time")
        assert report.wall_time < 5


class Halved:
    """Travels halved, and is doubled in place where it is loaded."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __getstate__(self) -> dict[str, Any]:
        return {"array": self.array / 2}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["array"] *= 2
        self.__dict__.update(state)


def make_halved(count: int) -> Halved:
    """Make one of ones."""
    return Halved(pytest.importorskip("numpy").ones(count))


def test_trial_in_the_task_leaves_the_value_as_it_was() -> None:
    """It is loaded there to see that it can be, and the bytes that are sent stay what they were."""
    pytest.importorskip("numpy")
    for report in reports_on(*((make_halved, count) for count in (100, 20_000, 1_000_000))):
        assert report.result.array.min() == report.result.array.max() == 1


def fork_and_load() -> int:
    """What loading a call may do."""
    os.fork()
    return 1


class Forking:
    """Forks where it is loaded."""

    def __reduce__(self) -> Any:
        return fork_and_load, ()


def note_run(path: Path, _: object) -> None:
    """Leave a line."""
    with path.open("a") as file:
        file.write("ran\n")


def test_fork_while_a_call_is_loaded_runs_the_function_once(tmp_path: Path) -> None:
    """Only the process that was started as the task goes on."""
    assert report_on(note_run, tmp_path / "runs", Forking()).status == "ok"
    assert (tmp_path / "runs").read_text() == "ran\n"


def test_memory_without_bound_is_a_limit_like_others() -> None:
    """More than an rlimit can say is no reason to fail."""
    assert report_on(crashes.value, memory=sys.maxsize).status == "ok"


@pytest.mark.skipif(supports("processes") != "hard", reason="no seccomp notification here")
def test_few_open_files_do_not_weaken_the_limit_of_subprocesses() -> None:
    """The gate's descriptor comes first."""
    report = report_on(crashes.value, open_files=3, processes=0)
    assert report.limits["processes"].mechanism == "seccomp user notification"


DEFAULT_TIMEOUT = """
    import socket
    socket.setdefaulttimeout(0.05)
    from pynisher_exec import LimitedProcessExecutor, supports

    print(str(supports("wall_time")))
    for context in (None, "fork"):
        with LimitedProcessExecutor(1, wall_time=20, context=context) as executor:
            future = executor.submit(bytes, 30_000_000)
            sum(range(5_000_000))  # the interpreter lock is held meanwhile
            print(len(future.result(20)))
"""


def test_default_timeout_of_sockets_is_for_the_users_own() -> None:
    """A finished task waits for a slow caller as long as ever."""
    assert socket.getdefaulttimeout() is None
    code = dedent(DEFAULT_TIMEOUT)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("hard\n30000000\n30000000\n", "")


def leave_orphans(count: int, seconds: float) -> int:
    """Let orphans use CPU time each, then wait until they are no zombies any more either."""
    ended, tell = os.pipe()
    for _ in range(count):
        if os.fork() == 0:
            if os.fork() == 0:
                while time.process_time() < seconds:
                    pass
            os._exit(0)
        os.wait()
    os.close(tell)
    os.read(ended, 1)  # its end: all have gone
    wait_until(lambda: child_pids(os.getppid()) == [os.getpid()], 10)
    return count


@pytest.mark.parametrize(
    "options", [{}, {"processes": 20}, {"max_tasks_per_child": None}], ids=["alone", "gate", "kept"]
)
def test_ended_orphans_are_reaped_while_the_task_runs(options: dict[str, Any]) -> None:
    """A long one that leaves some each second does not run out of pids; all they used counts."""
    with LimitedProcessExecutor(1, wall_time=60, **options) as executor:
        for _ in range(2):
            future = executor.submit(leave_orphans, 10, 0.05)
            assert future.result(PATIENCE) == 10
            report = future.wait_for_report()
            assert 0.5 < report.cpu_time < 1.5
            assert report.rusage is not None
            assert 0.5 < report.rusage.ru_utime + report.rusage.ru_stime < 1.5
