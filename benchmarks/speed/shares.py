"""One large data set that many tasks read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.processes import descendants, pss
from benchmarks.speed.calls import NOTHING
from benchmarks.speed.measure import ALL, Measured, Row, compare, single
from benchmarks.speed.real import check_that_it_is_real
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ROWS"]

PATIENCE = 60
LENGTH = (1 << 30) // 8
TASKS = 1000
LIMITS: dict[str, Any] = {"memory": 1 << 28, "cpu_time": 60, "wall_time": 60}
PRELOAD = ["numpy"]
WORKERS = 2


def take(array: NDArray[Any]) -> int:
    """Take it, and read nothing."""
    return len(array)


def read(array: NDArray[Any]) -> float:
    """Read all of it."""
    return float(array.sum())


def memory(rounds: int) -> Measured:
    """Most that is held beyond the caller's own array while 1,000 tasks read, in copies of it.

    Of all processes, the caller's among them, each page divided by those who have it, and of what
    is shared what nobody has mapped at that moment, too.
    """
    array = np.ones(LENGTH)
    most = 0.0
    tasks = min(TASKS, rounds * 70)
    with LimitedProcessExecutor(WORKERS, **LIMITS, preload=PRELOAD) as executor:
        list(executor.map(read, [np.ones(10)] * WORKERS))
        check_that_it_is_real(executor, LIMITS)
        before = _held()
        handle = executor.share(array)
        futures = [executor.submit(read, handle) for _ in range(tasks)]
        for number, future in enumerate(futures):
            assert future.result(PATIENCE) == LENGTH
            if number % 20 == 0:
                most = max(most, _held() - before)
    beyond = (most - array.nbytes) / array.nbytes * 100
    return single([beyond], "%", f"{tasks} tasks; beyond the caller's own array and one copy of it")


def _held() -> float:
    """Bytes; shared memory as the system counts it, since it may be mapped by nobody."""
    anonymous = sum(pss(pid, "Pss_Anon") for pid in [os.getpid(), *descendants(os.getpid())])
    with open("/proc/meminfo") as file:
        shared = next(int(line.split()[1]) << 10 for line in file if line.startswith("Shmem:"))
    return anonymous + shared


def attach(rounds: int) -> Measured:
    """A call that takes the data set and reads nothing, against a no-op."""
    with LimitedProcessExecutor(1, **LIMITS, preload=PRELOAD) as executor:
        check_that_it_is_real(executor, LIMITS)
        handle = executor.share(np.ones(LENGTH))
        assert executor.submit(take, handle).result(PATIENCE) == LENGTH
        return compare(
            lambda: executor.submit(take, handle).result(PATIENCE),
            lambda: executor.submit(NOTHING).result(PATIENCE),
            rounds,
            20,
        )


def first_reading(rounds: int) -> Measured:
    """All of it read in a fresh task, with the call, against the same reading in the caller."""
    array = np.ones(LENGTH)
    with LimitedProcessExecutor(1, **LIMITS, preload=PRELOAD) as executor:
        handle = executor.share(array)
        assert executor.submit(read, handle).result(PATIENCE) == LENGTH
        check_that_it_is_real(executor, LIMITS)
        return compare(
            lambda: executor.submit(read, handle).result(PATIENCE),
            lambda: read(array),
            max(5, rounds),
        )


ROWS = (
    Row(
        "share-memory",
        "1,000 tasks on 1 GiB that is shared",
        "",
        5,
        1,
        memory,
        how=f"max_workers={WORKERS}, all at once; nothing else on the machine takes shared memory",
    ),
    Row("share-attach", "1 GiB taken, not read", "a no-op", 1.2, 1.05, attach, they_have=ALL),
    Row("share-read", "1 GiB read in a fresh task", "read in the caller", 1.3, 1.05, first_reading),
)
