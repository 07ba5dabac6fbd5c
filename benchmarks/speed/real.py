"""Whether what is timed is the real thing: every row that calls tasks asks, in its own process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pynisher_exec import CpuTimeoutException

__all__ = ["check_that_it_is_real", "check_that_limits_hold"]

PATIENCE = 60
ROOM = 1 << 29
"""Bytes that a process may have taken before its limit counts: a library that it has imported."""

GRACE = 5
"""Seconds that the kernel's own limit may come later; the supervisor's, for the tree, is first."""


def look() -> tuple[int, str]:
    """Tell own pid and limits."""
    return os.getpid(), Path("/proc/self/limits").read_text()


def disown(path: str) -> None:
    """Have a process that no longer descends from this one use a core; tell its pid in a file."""
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            Path(path).write_text(str(os.getpid()))
            while True:
                pass
        os._exit(0)
    time.sleep(PATIENCE)


def check_that_it_is_real(executor: Any, limits: dict[str, Any]) -> None:
    """Every task has a process of its own, gone when its future resolves, and the limits.

    Back to back and, where there are several workers, at once. What it starts counts as well.
    `executor` is one of ours, here or on a cluster of this machine.
    """
    pids = []
    for _ in range(20):
        pids.append(_checked(executor.submit(look).result(PATIENCE), limits))
        assert not Path(f"/proc/{pids[-1]}").exists()
    for future in [executor.submit(look) for _ in range(20)]:
        pids.append(_checked(future.result(PATIENCE), limits))
        assert not Path(f"/proc/{pids[-1]}").exists()
    assert len(set(pids)) == len(pids)
    _check_that_a_disowned_process_counts(executor)


def check_that_limits_hold(executor: Any, limits: dict[str, Any]) -> None:
    """In one process, which is reused: the limits, and that a task at one of them ends it."""
    pids = {_checked(executor.submit(look).result(PATIENCE), limits) for _ in range(20)}
    assert len(pids) == 1
    _check_that_a_disowned_process_counts(executor)
    assert not Path(f"/proc/{pids.pop()}").exists()


def _checked(found: tuple[int, str], limits: dict[str, Any]) -> int:
    """The pid, once the kernel's limits are what was asked for, beyond what was there before."""
    pid, text = found
    soft = {line[:26].strip(): line[26:].split()[0] for line in text.splitlines()[1:]}
    if "memory" in limits:
        assert limits["memory"] <= int(soft["Max data size"]) <= limits["memory"] + ROOM
    if "cpu_time" in limits:
        assert limits["cpu_time"] <= int(soft["Max cpu time"]) <= limits["cpu_time"] + GRACE
    return pid


def _check_that_a_disowned_process_counts(executor: Any) -> None:
    """It uses up its task's CPU time, and has gone by the time that the future resolves."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "pid")
        future = executor.limit(cpu_time=0.2, wall_time=PATIENCE).submit(disown, str(path))
        assert isinstance(future.exception(PATIENCE), CpuTimeoutException)
        assert not Path("/proc", path.read_text()).exists()
