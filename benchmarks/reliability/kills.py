"""Nothing of a task outlives it: not at a limit, not from a fork bomb, not when the caller dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.processes import name_of, zombies
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.marks import Mark
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["CHECKS", "leave_daemons"]

PATIENCE = 60
DAEMONS = 3
WALL_TIME = 0.5


def leave_daemons(environment: dict[str, str]) -> None:
    """Start three daemons that ignore SIGTERM, two of them in sessions of their own; then sleep.

    They are there when this says how many: each closes its end of a pipe by its exec.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready, tell = os.pipe()  # close-on-exec
    for number in range(DAEMONS):
        if os.fork() == 0:
            if number:
                os.setsid()
            if os.fork() == 0:
                os.execve("/bin/sleep", ["sleep", "60"], environment)  # noqa: S606
            os._exit(0)
        os.wait()
    os.close(tell)
    os.read(ready, 1)
    os.write(1, b"%d" % DAEMONS)
    time.sleep(60)


def killed_at_a_wall_limit(count: int) -> Found:
    """Row 1."""
    failures: list[str] = []
    latest = 0.0
    lock = threading.Lock()

    def look(mark: Mark, future: Future[Any]) -> None:
        nonlocal latest
        alive = mark.scan()
        report: Any = future.report  # type: ignore[attr-defined]
        there = name_of(report.pid)
        with lock:
            if alive:
                failures.append(f"{len(alive)} alive when the future resolved")
            if there:
                failures.append(f"its own process was there when the future resolved: {there}")
            if report.status != "wall_time" or report.stdout != str(DAEMONS):
                failures.append(f"status {report.status}, {report.stdout!r} daemons")
            latest = max(latest, report.wall_time - WALL_TIME)

    marks = [Mark() for _ in range(count)]
    ours = Mark()
    with (
        ours.on_what_is_started(),
        LimitedProcessExecutor(
            4, wall_time=WALL_TIME, capture_output=True, preload=[__name__]
        ) as executor,
    ):
        for mark in marks:
            future = executor.submit(leave_daemons, mark.environment)
            future.add_done_callback(partial(look, mark))
    left = ours.scan([each.value for each in marks])
    failures += [f"left after the shutdown: {name_of(pid)} {pid}" for pid in left]
    failures += [f"zombie {pid}" for pid in zombies()]
    return Found(count, failures, f"latest {latest * 1000:.1f} ms after the limit")


CALLER = """
import sys
sys.path[:] = {path!r}
from benchmarks.reliability.kills import leave_daemons
from pynisher_exec import LimitedProcessExecutor
import os
if __name__ == "__main__":
    executor = LimitedProcessExecutor(2)
    for _ in range(2):
        executor.submit(leave_daemons, dict(os.environ))
"""


def _daemons(mark: Mark) -> int:
    return sum(name_of(pid) == "sleep" for pid in mark.scan())


def caller_is_killed(count: int) -> Found:
    """Row 3."""
    failures: list[str] = []
    slowest = 0.0
    for _ in range(count):
        mark = Mark()
        command = [sys.executable, "-c", CALLER.format(path=sys.path)]
        with subprocess.Popen(command, env=mark.environment, stdout=subprocess.DEVNULL) as caller:
            deadline = time.monotonic() + PATIENCE
            while _daemons(mark) < 2 * DAEMONS and time.monotonic() < deadline:
                time.sleep(0.01)
            there = _daemons(mark)
            caller.kill()
            took = mark.wait_until_gone(10)
        slowest = max(slowest, took)
        if there != 2 * DAEMONS:
            failures.append(f"{there} daemons were there")
        if took > 1:
            failures.append(f"gone after {took:.1f} s")
        for pid in mark.scan():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return Found(count, failures, f"slowest {slowest * 1000:.0f} ms")


CHECKS = (
    Check(
        1,
        "nothing of a task is left when its future resolves",
        "killed at a wall limit with three daemons that ignore SIGTERM",
        killed_at_a_wall_limit,
        1000,
        20,
    ),
    Check(
        3,
        "nothing is left of a caller that was killed, within a second",
        "SIGKILL while two tasks and their daemons run",
        caller_is_killed,
        100,
        3,
    ),
)
