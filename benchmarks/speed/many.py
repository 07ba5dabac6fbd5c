"""What many tasks, slots and submits cost the caller, and what waits costs the machine."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
import time
import tracemalloc
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.processes import cpu_time_of, descendants, name_of, pss
from benchmarks.rows import MEBIBYTE, timed
from benchmarks.speed.measure import ALL, Measured, Row, single
from benchmarks.speed.real import check_that_it_is_real
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ROWS"]

PATIENCE = 60
LIMITS: dict[str, Any] = {"memory": 1 << 30, "cpu_time": 100, "wall_time": 100}
SUBMITS = 100_000
ONE = "max_workers=1, one call; nothing else is started on the machine"
QUEUED = f"max_workers=1, which is busy; {SUBMITS:,} submits"


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
        check_that_it_is_real(executor, LIMITS)
        _sleep_in(executor, 100)
        shares = [_share(used, rounds) for _ in range(max(3, rounds // 3))]
        executor.kill_workers()
    return single(shares, "% of a core")


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
    return _watched(rounds, 8 << 30)


def watched_near(rounds: int) -> Measured:
    """The same where what they have mapped passes the limit, but for what they share."""
    return _watched(rounds, 1 << 30)


def _watched(rounds: int, memory: int) -> Measured:
    limits = {**LIMITS, "memory": memory}
    with LimitedProcessExecutor(1, **limits) as executor:
        check_that_it_is_real(executor, limits)
        executor.submit(fork_sleepers, 199)
        while len(descendants(os.getpid())) < 200:
            time.sleep(0.1)
        time.sleep(2)
        supervisor = max(_supervisors(), key=lambda pid: len(descendants(pid)))  # one waits
        used = partial(cpu_time_of, supervisor)
        shares = [_share(used, rounds) for _ in range(max(3, rounds // 3))]
        executor.kill_workers()
    return single(shares, "% of a core")


def idle_memory(rounds: int) -> Measured:
    """PSS of all our processes but the caller, two seconds after brief tasks in 4 slots."""
    sizes = []
    for _ in range(max(3, rounds // 5)):
        with LimitedProcessExecutor(4, **LIMITS) as executor:
            check_that_it_is_real(executor, LIMITS)
            list(executor.map(time.sleep, [0.02] * 200))
            time.sleep(2)
            sizes.append(sum(map(pss, descendants(os.getpid()))) / MEBIBYTE)
    return single(sizes, "MiB")


def queued_memory(rounds: int) -> Measured:
    """Bytes of a queued submit in the caller."""
    sizes = []
    for _ in range(max(1, rounds // 5)):
        with LimitedProcessExecutor(1, **LIMITS) as executor:
            check_that_it_is_real(executor, LIMITS)
            executor.submit(time.sleep, 600)
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            futures = [executor.submit(nothing) for _ in range(SUBMITS)]
            size = tracemalloc.get_traced_memory()[0] - before - sys.getsizeof(futures)
            tracemalloc.stop()
            sizes.append(size / SUBMITS / 1024)
            executor.kill_workers()
            del futures
    return single(sizes, "KiB")


def queued_time(rounds: int) -> Measured:
    """Microseconds of a queued submit, for each tenth of a queue that grows."""
    times = [each for _ in range(max(1, rounds // 5)) for each in _submits()]
    return single(times, "us")


def queued_growth(rounds: int) -> Measured:
    """What a submit costs at the end of a queue, against the beginning: the median of 30,000.

    It is measured without the interpreter's collector, which looks through all objects now and
    then, the more of them the longer: so it does for a list of any others.
    """
    first, last = [], []
    gc.disable()
    try:
        for _ in range(max(1, rounds // 3)):
            times = _submits()
            first.append(median(times[:3]))
            last.append(median(times[-3:]))
            gc.collect()
    finally:
        gc.enable()
    ratios = [late / early for late, early in zip(last, first, strict=True)]
    return Measured(last, first, ratios, "us")


def _submits() -> list[float]:
    kept: list[Any] = []
    tenth = SUBMITS // 10
    with LimitedProcessExecutor(1, **LIMITS) as executor:
        check_that_it_is_real(executor, LIMITS)
        executor.submit(time.sleep, 600)

        def submit() -> None:
            kept.extend(executor.submit(nothing) for _ in range(tenth))

        times = [timed(submit) * 1000 / tenth for _ in range(10)]
        executor.kill_workers()
    return times


def slots(rounds: int) -> Measured:
    """CPU time of the monitor thread for a task, 64 slots against 1."""
    times: dict[int, list[float]] = {1: [], 64: []}
    for _ in range(max(3, rounds // 3)):
        for count, kept in times.items():
            with LimitedProcessExecutor(count, **LIMITS) as executor:
                check_that_it_is_real(executor, LIMITS)
                list(executor.map(time.sleep, [0.01] * count))
                clock = _clock_of_the_monitor()
                before = time.clock_gettime(clock)
                list(executor.map(abs, range(300)))
                kept.append((time.clock_gettime(clock) - before) / 300 * 1e6)
    ratios = [many / one for many, one in zip(times[64], times[1], strict=True)]
    return Measured(times[64], times[1], ratios, "us")


def _clock_of_the_monitor() -> int:
    (ident,) = [each.ident for each in threading.enumerate() if "monitor" in each.name]
    assert ident is not None
    return time.pthread_getcpuclockid(ident)


ROWS = (
    Row(
        "sleepers",
        "100 sleeping tasks: the caller",
        "",
        0.5,
        0,
        sleepers_caller,
        how="max_workers=100",
    ),
    Row(
        "sleepers-all",
        "100 sleeping tasks: all supervisors",
        "",
        5,
        1,
        sleepers_supervisors,
        how="max_workers=100",
    ),
    Row("watched", "a task of 200 processes: its supervisor", "", 15, 5, watched, how=ONE),
    Row("watched-near", "the same, 2 GiB in view, limit 1 GiB", "", 15, 5, watched_near, how=ONE),
    Row(
        "idle",
        "idle executor with 4 slots",
        "",
        40,
        25,
        idle_memory,
        how="max_workers=4, two seconds after 200 brief tasks",
    ),
    Row("queue", "a queued submit: memory", "", 3, 2, queued_memory, how=QUEUED),
    Row("queue-time", "a queued submit: time", "", 20, 10, queued_time, how=QUEUED),
    Row(
        "queue-growth",
        "a submit behind 70,000 and more",
        "up to 30,000",
        1.2,
        1,
        queued_growth,
        how=f"{QUEUED}, without the interpreter's collector",
        they_have=ALL,
    ),
    Row(
        "slots",
        "the monitor thread for a task, 64 slots",
        "1 slot",
        1.2,
        1,
        slots,
        how="max_workers=64 and 1, by map",
        they_have=ALL,
    ),
)
