"""What many tasks, slots and submits cost the caller, and what waits costs the machine."""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
import tracemalloc
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.processes import cpu_time_of, descendants, name_of, pss
from benchmarks.rows import MEBIBYTE, timed
from benchmarks.speed.measure import Measured, Row
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ROWS"]

PATIENCE = 60
LIMITS: dict[str, Any] = {"memory": "1GiB", "cpu_time": 100, "wall_time": 100}


def nothing() -> None:
    """Do nothing."""


def _own() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _supervisors() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if name_of(pid) == "limit-slot"]


def _sleep_in(executor: LimitedProcessExecutor, count: int) -> list[Any]:
    futures = [executor.submit(time.sleep, 600) for _ in range(count)]
    while not all(future.running() for future in futures):
        time.sleep(0.05)
    time.sleep(1)
    return futures


def sleepers_caller(rounds: int) -> Measured:
    """Share of a core that the caller uses while 100 tasks sleep."""
    return _sleepers(rounds, _own)


def sleepers_supervisors(rounds: int) -> Measured:
    """The same of all supervisors."""
    return _sleepers(rounds, lambda: sum(map(cpu_time_of, _supervisors())))


def _sleepers(rounds: int, used: Callable[[], float]) -> Measured:
    with LimitedProcessExecutor(100, **LIMITS) as executor:
        _sleep_in(executor, 100)
        shares = [_share(used, rounds) for _ in range(max(3, rounds // 3))]
        executor.kill_workers()
    return Measured(shares, [], shares, "% of a core")


def _share(used: Callable[[], float], rounds: int) -> float:
    """Hundredths of a core that are used meanwhile."""
    seconds = min(2.0, rounds / 5)
    before = used()
    time.sleep(seconds)
    return (used() - before) / seconds * 100


def fork_sleepers(count: int) -> None:
    """Have that many sleeping children, and work a little: a tree that sleeps is not walked."""
    for _ in range(count):
        if os.fork() == 0:
            time.sleep(600)
    while True:
        end = time.process_time() + 0.002
        while time.process_time() < end:
            pass
        time.sleep(0.02)


def watched(rounds: int) -> Measured:
    """Share of a core that the supervisor of one task with 200 processes uses."""
    with LimitedProcessExecutor(1, **LIMITS) as executor:
        executor.submit(fork_sleepers, 199)
        while len(descendants(os.getpid())) < 200:
            time.sleep(0.1)
        time.sleep(2)
        (supervisor,) = _supervisors()
        used = partial(cpu_time_of, supervisor)
        shares = [_share(used, rounds) for _ in range(max(3, rounds // 3))]
        executor.kill_workers()
    return Measured(shares, [], shares, "% of a core")


def idle_memory(rounds: int) -> Measured:
    """PSS of all our processes but the caller, 4 idle slots."""
    sizes = []
    for _ in range(max(3, rounds // 5)):
        with LimitedProcessExecutor(4, **LIMITS) as executor:
            futures = [executor.submit(time.sleep, 0.2) for _ in range(4)]
            for future in futures:
                future.result(PATIENCE)
            time.sleep(1)
            sizes.append(sum(map(pss, descendants(os.getpid()))) / MEBIBYTE)
    return Measured(sizes, [], sizes, "MiB")


def queued_memory(_: int) -> Measured:
    """Bytes of a queued submit in the caller."""
    count = 100_000
    with LimitedProcessExecutor(1) as executor:
        executor.submit(time.sleep, 600)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        futures = [executor.submit(nothing) for _ in range(count)]
        size = (tracemalloc.get_traced_memory()[0] - before) / count / 1024
        tracemalloc.stop()
        size -= sys.getsizeof(futures) / count / 1024
        executor.kill_workers()
    return Measured([size], [], [size], "KiB")


def queued_time(_: int) -> Measured:
    """Microseconds of a queued submit, for each 10,000 of a queue that grows to 100,000.

    How it grows is measured without the interpreter's collector, which looks through all objects
    now and then, the more of them the longer: so it does for a list of any others.
    """
    times = _submits()
    gc.disable()
    try:
        bare = _submits()
    finally:
        gc.enable()
    growth = f"without the collector {median(bare):.3g}, the last to the first as"
    return Measured(
        times, [], times, "us", f"{growth} {median(bare[-3:]) / median(bare[:3]):.2f} to 1"
    )


def _submits() -> list[float]:
    kept: list[Any] = []
    with LimitedProcessExecutor(1) as executor:
        executor.submit(time.sleep, 600)

        def submit() -> None:
            kept.extend(executor.submit(nothing) for _ in range(10_000))

        times = [timed(submit) / 10 for _ in range(10)]
        executor.kill_workers()
    return times


def slots(rounds: int) -> Measured:
    """CPU time of the caller for a task, 64 slots against 1."""
    times: dict[int, list[float]] = {1: [], 64: []}
    for _ in range(max(3, rounds // 3)):
        for count, kept in times.items():
            with LimitedProcessExecutor(count, wall_time=100) as executor:
                list(executor.map(time.sleep, [0.01] * count))
                before = _own()
                list(executor.map(abs, range(300)))
                kept.append((_own() - before) / 300 * 1e6)
    ratios = [many / one for many, one in zip(times[64], times[1], strict=True)]
    return Measured(times[64], times[1], ratios, "us")


ROWS = (
    Row("sleepers", "100 sleeping tasks: the caller", "", 0.5, 0, sleepers_caller),
    Row("sleepers-all", "100 sleeping tasks: all supervisors", "", 5, 1, sleepers_supervisors),
    Row("watched", "a task of 200 processes: its supervisor", "", 15, 5, watched),
    Row("idle", "idle executor with 4 slots", "", 40, 25, idle_memory),
    Row("queue", "a queued submit: memory", "", 3, 2, queued_memory),
    Row("queue-time", "a queued submit: time", "", 20, 10, queued_time),
    Row("slots", "CPU of the caller for a task, 64 slots", "1 slot", 1.2, 1, slots),
)
