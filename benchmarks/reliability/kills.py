"""Nothing of a task outlives it: not at a limit, not from a fork bomb, not when the caller dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import wait
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.processes import name_of, state_of, zombies
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.marks import Looks, Mark
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CHECKS", "leave_daemons"]

PATIENCE = 60
DAEMONS = 3
WALL_TIME = 0.5


def leave_daemons(environment: dict[str, str]) -> None:
    """Start three daemons that ignore SIGTERM, two of them in sessions of their own; then sleep.

    They are there when this tells their pids, and those of the processes between: each says its
    own, and closes its end of a pipe by its exec.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready, tell = os.pipe()  # close-on-exec
    between = []
    for number in range(DAEMONS):
        between.append(os.fork())
        if between[-1] == 0:
            if number:
                os.setsid()
            if os.fork() == 0:
                os.write(tell, b"%d " % os.getpid())
                os.execve("/bin/sleep", ["sleep", "60"], environment)  # noqa: S606
            os._exit(0)
        os.wait()
    os.close(tell)
    with open(ready, "rb") as pids:
        daemons = [pid for pid in map(int, pids.read().split()) if name_of(pid) == "sleep"]
    os.write(1, json.dumps([between, daemons]).encode())
    time.sleep(60)


class _Killed:
    """What is left of tasks that were killed, looked at when their futures resolve."""

    def __init__(self) -> None:
        self.latest = 0.0
        self.known: set[int] = set()
        """Pids of all tasks: one that has ended is a zombie until its parent looks."""

    def look(self, mark: Mark, future: Any) -> Iterator[str]:
        """Say what is wrong with one."""
        alive = mark.scan()
        report = future.report
        between, daemons = json.loads(report.stdout)
        own = [report.pid, *between, *daemons]
        # By their pids also those that have no environment: zombies, wherever they hang.
        there = {f"{name_of(pid)} {state}" for pid in own if (state := state_of(pid))}
        self.known.update(own)
        self.latest = max(self.latest, report.wall_time - WALL_TIME)
        if alive:
            yield f"{len(alive)} alive when the future resolved"
        if there:
            yield f"its own processes were there when the future resolved: {', '.join(there)}"
        if report.status != "wall_time" or len(daemons) != DAEMONS:
            yield f"status {report.status}, {len(daemons)} daemons"


def killed_at_a_wall_limit(count: int) -> Found:
    """Row 1."""
    killed, looks = _Killed(), Looks()
    marks = [Mark() for _ in range(count)]
    ours = Mark()
    with (
        ours.on_what_is_started(),
        LimitedProcessExecutor(
            4, wall_time=WALL_TIME, capture_output=True, preload=[__name__]
        ) as executor,
    ):
        futures = [executor.submit(leave_daemons, mark.environment) for mark in marks]
        for mark, future in zip(marks, futures, strict=True):
            looks.at(future, partial(killed.look, mark))
        wait(futures)
        # No task runs any more: template and supervisors are still there, and have reaped all.
        hanging = zombies()
    left = ours.scan([each.value for each in marks])
    failures = looks.failures(count)
    failures += [f"left after the shutdown: {name_of(pid)} {pid}" for pid in left]
    failures += [f"zombie {pid} of no task" for pid in looks.zombies - killed.known]
    failures += [f"zombie {pid} at the end" for pid in [*hanging, *zombies()]]
    return Found(count, failures, f"latest {killed.latest * 1000:.1f} ms after the limit")


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
