"""How long a task lives on after its wall limit, by its supervisor's own clock."""

from __future__ import annotations

import statistics
import threading
import time

from benchmarks.rows import percentile
from benchmarks.speed.measure import Measured, Row
from pynisher_exec import LimitedProcessExecutor

__all__ = ["ROWS"]

PATIENCE = 60
LIMIT = 0.1


def lateness(count: int) -> list[float]:
    """Milliseconds from the limit until the supervisor strikes, by its clock, of some tasks.

    What the kernel then takes to end a tree of many processes, or gigabytes, is no part of it.
    """
    late = []
    with LimitedProcessExecutor(1, wall_time=LIMIT) as executor:
        for _ in range(count):
            future = executor.submit(time.sleep, PATIENCE)
            future.exception(PATIENCE)
            assert future.report is not None
            assert future.report.status == "wall_time"
            late.append((future.report.wall_time - LIMIT) * 1000)
    assert min(late) >= 0
    return late


def idle(rounds: int) -> Measured:
    """The median, with nothing else going on."""
    late = lateness(rounds * 4)
    return Measured(late, [], [statistics.median(late)], "ms")


def idle_worst(rounds: int) -> Measured:
    """95 of 100, as the median."""
    return _most(lateness(rounds * 10))


def locked(rounds: int) -> Measured:
    """95 of 100, while the caller's main thread is in C with the interpreter lock."""
    late: list[float] = []
    thread = threading.Thread(target=lambda: late.extend(lateness(rounds * 4)))
    thread.start()
    while thread.is_alive():
        sum(range(6_000_000))  # some 0.1 s
    thread.join()
    return _most(late)


def _most(late: list[float]) -> Measured:
    return Measured(late, [], [percentile(late, 95)], "ms", f"the worst: {max(late):.3g} ms")


ROWS = (
    Row("wall", "wall limit to kill, idle: median", "", 2, 0.5, idle),
    Row("wall-95", "wall limit to kill, idle: 95 %", "", 10, 3, idle_worst),
    Row("wall-locked", "the same, caller holds the lock: 95 %", "", 20, 3, locked),
)
