"""How long a task lives on after its wall limit, as another process sees it end."""

from __future__ import annotations

import os
import statistics
import threading
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.rows import percentile
from benchmarks.speed.measure import Measured, Row, single
from benchmarks.speed.real import check_that_it_is_real
from benchmarks.speed.witness import Witness
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ROWS"]

PATIENCE = 60
LIMIT = 0.1
LIMITS: dict[str, Any] = {"memory": 1 << 30, "cpu_time": 10, "wall_time": LIMIT}


def begin(pipe: str) -> None:
    """Tell who this is and when it was, and sleep on."""
    with open(pipe, "w") as witness:
        witness.write(f"{os.getpid()} {time.monotonic()}\n")
    time.sleep(PATIENCE)


def lateness(count: int) -> list[float]:
    """Milliseconds from the limit until the process has ended, of some tasks.

    The limit is counted from the function's first line.
    """
    late = []
    with LimitedProcessExecutor(1, **LIMITS) as executor, closing(Witness()) as witness:
        check_that_it_is_real(executor, LIMITS)
        for _ in range(count):
            future = executor.submit(begin, witness.told)
            begun, ended = witness.next()
            report = future.wait_for_report()
            assert report.status == "wall_time"
            late.append((ended - begun - LIMIT) * 1000)
    return late


def idle(rounds: int) -> Measured:
    """The median, with nothing else going on."""
    return _by_rounds(lateness(rounds * 5), 5, statistics.median)


def idle_worst(rounds: int) -> Measured:
    """95 of 100."""
    return _by_rounds(lateness(rounds * 10), 30, partial(percentile, percent=95))


def locked(rounds: int) -> Measured:
    """95 of 100, while the caller's main thread is in C with the interpreter lock."""
    late: list[float] = []
    thread = threading.Thread(target=lambda: late.extend(lateness(rounds * 4)))
    thread.start()
    while thread.is_alive():
        sum(range(6_000_000))  # some 0.1 s
    thread.join()
    return _by_rounds(late, 20, partial(percentile, percent=95))


def _by_rounds(late: list[float], size: int, figure: Callable[[list[float]], float]) -> Measured:
    rounds = [figure(late[at : at + size]) for at in range(0, len(late), size)]
    found = single(rounds, "ms", f"the worst of {len(late)}: {max(late):.3g}")
    return found._replace(ours=late)


ROWS = (
    Row("wall", "wall limit to the end, idle: median", "", 2, 0.5, idle),
    Row("wall-95", "wall limit to the end, idle: 95 %", "", 10, 3, idle_worst),
    Row("wall-locked", "wall limit to the end, caller holds the lock: 95 %", "", 20, 3, locked),
)
