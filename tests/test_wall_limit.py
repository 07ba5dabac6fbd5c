"""The wall limit as the reason of an ending: late, early, handled or flooded, it is told right."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import crashes
import pytest
from conftest import wait_until

from pynisher_exec import LimitedProcessExecutor, TimeoutException
from pynisher_exec.supervisor import on_time

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 30


def call(function: Callable[[], Any]) -> Any:
    """Call it."""
    return function()


def exit_by_handler() -> None:
    """Exit in C from the handler."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
    crashes.sleep_long()


def leave_by_handler() -> None:
    """Exit as Python does, with success."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    crashes.sleep_long()


def return_by_handler() -> str:
    """Return a value."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        crashes.sleep_long()
    except KeyboardInterrupt:
        return "graceful"
    return "slept"


@pytest.mark.parametrize("function", [exit_by_handler, leave_by_handler, return_by_handler])
def test_handler_of_sigterm_never_changes_the_verdict(function: Callable[[], Any]) -> None:
    """The task is over its limit, whatever it manages to do between SIGTERM and the kill."""
    with LimitedProcessExecutor(4, wall_time=0.1) as executor:
        reports = list(executor.reports(call, [function] * 16))
    assert {str(report.status) for report in reports} == {"wall_time"}
    assert all(report.result is None for report in reports)


def test_function_that_ends_after_its_limit_is_over_it() -> None:
    """Always, though it may return before it is killed."""
    with LimitedProcessExecutor(4, wall_time=0.2) as executor:
        reports = list(executor.reports(time.sleep, [0.2] * 20))
    assert [str(report.status) for report in reports] == ["wall_time"] * 20


class SlowToPickle:
    """Takes a while to leave its task."""

    def __reduce__(self) -> tuple[type[int], tuple[()]]:
        time.sleep(0.6)
        return int, ()


def return_slowly() -> SlowToPickle:
    """Return in time what passes the limit by being pickled; leave output in the buffer."""
    sys.stdout.write("last words")
    return SlowToPickle()


def test_soft_limit_that_falls_into_pickling_loses_nothing() -> None:
    """The function had returned: the value is kept, and what its buffers held is written."""
    with LimitedProcessExecutor(1, wall_time=0.4, grace_period=10, capture_output=True) as executor:
        report = executor.submit(return_slowly).wait_for_report()
    assert (str(report.status), report.result) == ("ok", 0)
    assert report.stdout == "last words"
    assert report.exit_code == 0


def flood(processes: int) -> None:
    """Send words to the supervisor, on the task's own line, from many processes."""
    until = time.monotonic() + PATIENCE
    lines = []
    for fd in range(3, 64):
        try:
            line = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        lines += [line] if line.type == socket.SOCK_SEQPACKET else []
    assert lines
    for _ in range(processes - 1):
        if os.fork() == 0:
            break
    while time.monotonic() < until:
        lines[0].send(b"x")
    os._exit(0)


def test_flood_on_the_line_of_a_task_does_not_delay_its_limit() -> None:
    """The supervisor reads a little at a time, and never forgets its clocks."""
    with LimitedProcessExecutor(1, wall_time=0.5) as executor:
        future = executor.submit(flood, 12)
        assert isinstance(future.exception(PATIENCE // 2), TimeoutException)
        assert executor.submit(crashes.value).result(PATIENCE) == 42


SOFT = """
import os, signal, sys
from pynisher_exec import TimeoutException
from pynisher_exec.kernel import clock
from pynisher_exec.limits import Limits
from pynisher_exec.task.soft import SoftSignals

def function():
    try:
        os.kill(os.getpid(), signal.SIGALRM)
    except TimeoutException:
        print("told")
soft = SoftSignals(Limits(wall_time=10, grace_period=1), on_quit=False, below=function.__code__)
soft.install(clock.monotonic() - float(sys.argv[1]))
function()
"""


@pytest.mark.parametrize(("ago", "end"), [("10", ("told\n", 0)), ("9", ("", -signal.SIGALRM))])
def test_alarm_is_the_limits_from_the_moment_that_the_supervisor_counts_to(
    ago: str, end: tuple[str, int]
) -> None:
    """Earlier it is one that the function has set for itself, and has not handled."""
    done = subprocess.run(
        [sys.executable, "-c", SOFT, ago], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.returncode) == end, done.stderr


def stay_on_the_first_processor(path: str) -> None:
    """Tell when the function began, and sleep."""
    began = time.monotonic()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    Path(f"{path}-new").write_text(f"{os.getpid()} {began}")
    Path(f"{path}-new").rename(path)
    time.sleep(60)


HOG = """
import os, sys, time
begin, end = map(float, sys.argv[1:])
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
time.sleep(max(0, begin - time.monotonic()))
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
while time.monotonic() < end: pass
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root: to keep a processor from others")
def test_kill_from_outside_before_the_limit_is_the_cause(tmp_path: Path) -> None:
    """Though a busy machine lets the task die of it only after the limit."""
    late = False
    with LimitedProcessExecutor(1, wall_time=0.6) as executor:
        for number in range(3):
            told = tmp_path / str(number)
            future = executor.submit(stay_on_the_first_processor, str(told))
            wait_until(told.exists)
            pid, began = told.read_text().split()
            times = [str(float(began) + 0.3), str(float(began) + 0.9)]
            with subprocess.Popen([sys.executable, "-S", "-c", HOG, *times]) as hog:
                time.sleep(max(0.0, float(began) + 0.4 - time.monotonic()))
                os.kill(int(pid), signal.SIGKILL)
            if hog.returncode:
                pytest.skip("needs the right to a real-time schedule (CAP_SYS_NICE)")
            report = future.wait_for_report()
            assert (report.status, report.signal) == ("signal", signal.SIGKILL), report
            late = late or report.wall_time >= 0.6
    assert late, "it always died before the limit"


@pytest.mark.parametrize("wait", [0.0, 0.0004, 0.0019, 0.0137, 0.1])
def test_wait_for_a_limit_is_slept_to_its_end_but_never_ends_early(wait: float) -> None:
    """Polls of whole milliseconds stop short of the moment, and a sleep does the rest."""
    due = time.monotonic() + wait
    polled = 0.0
    while pause := on_time.until(due, sharp=True):
        polled += pause
        select.poll().poll(pause)
    assert time.monotonic() >= due
    assert (polled > 0) == (wait > on_time.FINE)


def test_nothing_due_is_waited_for_without_end() -> None:
    """And what is far off for as long as poll(2) can."""
    assert on_time.until(math.inf, sharp=False) is None
    assert on_time.until(1e12, sharp=False) == on_time.LONGEST_WAIT * 1000
