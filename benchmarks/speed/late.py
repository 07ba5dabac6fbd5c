"""How long a task lives on after its wall limit."""

from __future__ import annotations

import statistics
import threading
import time
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.rows import percentile
from benchmarks.speed.measure import Measured, Row, single
from benchmarks.speed.real import check_that_it_is_real
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ROWS"]

PATIENCE = 60
LIMIT = 0.1
LIMITS: dict[str, Any] = {"memory": 1 << 30, "cpu_time": 10, "wall_time": LIMIT}


def begin(path: str) -> None:
    """Tell when this was, and sleep on."""
    Path(path).write_text(repr(time.monotonic()))
    time.sleep(PATIENCE)


def until_resolved(count: int) -> list[float]:
    """Milliseconds from a limit until the future resolves, all of the task gone, of some tasks.

    The limit is counted from the function's first line.
    """
    late = []
    with TemporaryDirectory() as folder, LimitedProcessExecutor(1, **LIMITS) as executor:
        path = Path(folder, "begun")
        check_that_it_is_real(executor, LIMITS)
        for _ in range(count):
            resolved: SimpleQueue[float] = SimpleQueue()
            future = executor.submit(begin, str(path))
            future.add_done_callback(partial(_note, resolved))
            when = resolved.get(timeout=PATIENCE)
            assert future.report is not None
            assert future.report.status == "wall_time"
            late.append((when - float(path.read_text()) - LIMIT) * 1000)
    return late


def _note(resolved: SimpleQueue[float], _: object) -> None:
    resolved.put(time.monotonic())


def until_struck(count: int) -> list[float]:
    """Milliseconds from a limit until the supervisor strikes, by its clock: the caller is busy."""
    late = []
    with LimitedProcessExecutor(1, **LIMITS) as executor:
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
    return _by_rounds(until_resolved(rounds * 5), 5, statistics.median)


def idle_worst(rounds: int) -> Measured:
    """95 of 100."""
    return _by_rounds(until_resolved(rounds * 10), 30, partial(percentile, percent=95))


def locked(rounds: int) -> Measured:
    """95 of 100, while the caller's main thread is in C with the interpreter lock."""
    late: list[float] = []
    thread = threading.Thread(target=lambda: late.extend(until_struck(rounds * 4)))
    thread.start()
    while thread.is_alive():
        sum(range(6_000_000))  # some 0.1 s
    thread.join()
    return _by_rounds(late, 20, partial(percentile, percent=95))


def _by_rounds(late: list[float], size: int, figure: Callable[[list[float]], float]) -> Measured:
    rounds = [figure(late[at : at + size]) for at in range(0, len(late), size)]
    found = single(rounds, "ms", f"the worst of {len(late)}: {max(late):.3g} ms")
    return found._replace(ours=late)


ROWS = (
    Row("wall", "wall limit to all gone, idle: median", "", 2, 0.5, idle),
    Row("wall-95", "wall limit to all gone, idle: 95 %", "", 10, 3, idle_worst),
    Row("wall-locked", "wall limit to kill, caller holds the lock: 95 %", "", 20, 3, locked),
)
