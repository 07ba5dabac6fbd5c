"""Whether what is timed is the real thing: rows that time calls ask that first, each for itself."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pynisher_exec import CpuTimeoutException, MemorylimitException, TimeoutException

__all__ = ["check_that_all_is_on", "check_that_it_is_real", "check_that_limits_hold"]

PATIENCE = 60
ROOM = 1 << 29
"""Bytes that a process may have taken before its limit counts: a library that it has imported."""

SMALL = 1 << 27
MANY = 100

GRACE = 5
"""Seconds that the kernel's own limit may come later; the supervisor's, for the tree, is first."""


def look() -> tuple[int, str]:
    """Tell own pid and limits."""
    return os.getpid(), Path("/proc/self/limits").read_text()


def burn(seconds: float) -> int:
    """Use CPU time, tell the own pid."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return os.getpid()


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


def hold(path: str) -> None:
    """Have four processes each hold more than half of `SMALL`."""
    os.fork()
    os.fork()
    kept = b"x" * (SMALL * 5 // 8)
    time.sleep(PATIENCE)
    Path(path).write_bytes(kept)


def use_everything(outsider: int) -> tuple[int, bool]:
    """Print, start processes until one is refused, try to signal another; tell of the last two."""
    print("printed", flush=True)
    started = 0
    with contextlib.suppress(OSError):
        while started < MANY:
            if os.fork() == 0:
                time.sleep(PATIENCE)
            started += 1
    try:
        os.kill(outsider, 0)
    except PermissionError:
        return started, True
    return started, False


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
    _check_that_a_tree_is_bounded(executor)


def check_that_limits_hold(executor: Any, limits: dict[str, Any]) -> None:
    """In one process, which is reused: the limits of each task, and that one at them ends it."""
    pids = {_checked(executor.submit(look).result(PATIENCE), limits) for _ in range(20)}
    burners = [executor.limit(cpu_time=0.3).submit(burn, 0.2) for _ in range(3)]
    pids.update(each.result(PATIENCE) for each in burners)
    assert len(pids) == 1
    _check_that_a_tree_is_bounded(executor)
    assert not Path(f"/proc/{pids.pop()}").exists()


def check_that_all_is_on(executor: Any, processes: int) -> None:
    """The gate, captured output, and no signal to anybody outside."""
    future = executor.submit(use_everything, os.getpid())
    assert future.result(PATIENCE) == (processes, True)
    assert future.report.stdout.strip() == "printed"


def _check_that_a_tree_is_bounded(executor: Any) -> None:
    """By wall time, by the memory of all, by CPU time of one that descends from it no longer."""
    future = executor.limit(wall_time=0.1).submit(time.sleep, PATIENCE)
    assert isinstance(future.exception(PATIENCE), TimeoutException)
    with TemporaryDirectory() as folder:
        path = Path(folder, "pid")
        future = executor.limit(memory=SMALL, wall_time=PATIENCE).submit(hold, str(path))
        assert isinstance(future.exception(PATIENCE), MemorylimitException)
        future = executor.limit(cpu_time=0.2, wall_time=PATIENCE).submit(disown, str(path))
        assert isinstance(future.exception(PATIENCE), CpuTimeoutException)
        assert not Path("/proc", path.read_text()).exists()


def _checked(found: tuple[int, str], limits: dict[str, Any]) -> int:
    """The pid, once the kernel's limits are what was asked for, beyond what was there before."""
    pid, text = found
    soft = {line[:26].strip(): line[26:].split()[0] for line in text.splitlines()[1:]}
    if "memory" in limits:
        assert limits["memory"] <= int(soft["Max data size"]) <= limits["memory"] + ROOM
    if "cpu_time" in limits:
        assert limits["cpu_time"] <= int(soft["Max cpu time"]) <= limits["cpu_time"] + GRACE
    return pid
