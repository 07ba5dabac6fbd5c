"""How long a task lives on after its wall limit."""

from __future__ import annotations

import statistics
import threading
import time
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Late(NamedTuple):
    """Milliseconds after a limit: when the supervisor strikes, and when the future resolves.

    The first by the supervisor's own clock; the second, when all of the task is gone, counted from
    the function's first line.
    """

    struck: float
    resolved: float


def lateness(count: int) -> list[Late]:
    """Of some tasks, one after the other."""
    late = []
    with TemporaryDirectory() as folder, LimitedProcessExecutor(1, **LIMITS) as executor:
        path = Path(folder, "begun")
        check_that_it_is_real(executor, LIMITS)
        for _ in range(count):
            resolved: SimpleQueue[float] = SimpleQueue()
            future = executor.submit(begin, str(path))
            future.add_done_callback(partial(_note, resolved))
            when = resolved.get(timeout=PATIENCE)
            report = future.report
            assert report is not None
            assert report.status == "wall_time"
            whole = when - float(path.read_text())
            late.append(Late((report.wall_time - LIMIT) * 1000, (whole - LIMIT) * 1000))
    assert min(each.struck for each in late) >= 0
    return late


def _note(resolved: SimpleQueue[float], _: object) -> None:
    resolved.put(time.monotonic())


def idle(rounds: int) -> Measured:
    """The median, with nothing else going on."""
    return _by_rounds(lateness(rounds * 5), 5, statistics.median)


def idle_worst(rounds: int) -> Measured:
    """95 of 100."""
    return _by_rounds(lateness(rounds * 10), 30, partial(percentile, percent=95))


def locked(rounds: int) -> Measured:
    """95 of 100, while the caller's main thread is in C with the interpreter lock."""
    late: list[Late] = []
    thread = threading.Thread(target=lambda: late.extend(lateness(rounds * 4)))
    thread.start()
    while thread.is_alive():
        sum(range(6_000_000))  # some 0.1 s
    thread.join()
    return _by_rounds(late, 20, partial(percentile, percent=95))


def _by_rounds(late: list[Late], size: int, figure: Callable[[list[float]], float]) -> Measured:
    struck = [each.struck for each in late]
    resolved = figure([each.resolved for each in late])
    rounds = [figure(struck[at : at + size]) for at in range(0, len(late), size)]
    note = f"the worst of {len(late)}: {max(struck):.3g}; until the future resolves: {resolved:.3g}"
    return single(rounds, "ms", note)._replace(ours=struck)


ROWS = (
    Row("wall", "wall limit to kill, idle: median", "", 2, 0.5, idle),
    Row("wall-95", "wall limit to kill, idle: 95 %", "", 10, 3, idle_worst),
    Row("wall-locked", "wall limit to kill, caller holds the lock: 95 %", "", 20, 3, locked),
)
