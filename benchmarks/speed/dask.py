"""What limits cost on a Dask cluster: one worker of two threads on this machine."""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.processes import descendants, name_of, pss
from benchmarks.rows import MEBIBYTE
from benchmarks.speed.measure import Measured, Row, compare, single
from benchmarks.speed.real import check_that_it_is_real

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ROWS"]

PATIENCE = 60
CALLS = 20
LIMITS: dict[str, Any] = {"memory": 1 << 28, "cpu_time": 10, "wall_time": 100}


@contextmanager
def _cluster(*, check: bool = True) -> Iterator[tuple[Any, Any]]:
    """A client, and an executor over its cluster."""
    from distributed import Client, LocalCluster  # noqa: PLC0415 - only here

    from pynisher_exec.dask import LimitedDaskExecutor  # noqa: PLC0415

    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            memory_limit="2GiB",
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as made,  # type: ignore[no-untyped-call]
        Client(made) as client,  # type: ignore[no-untyped-call]
        LimitedDaskExecutor(client, **LIMITS) as executor,
    ):
        if check:
            check_that_it_is_real(executor, LIMITS)
        yield client, executor


def against_none(rounds: int, function: Callable[..., Any], *args: Any, calls: int) -> Measured:
    """A call with limits, against the same without; one that is let go delays the next one's."""
    with _cluster() as (client, executor):
        return compare(
            lambda: executor.submit(function, *args).result(PATIENCE),
            lambda: client.submit(function, *args, pure=False).result(PATIENCE),
            rounds,
            calls,
        )


def nothing(rounds: int) -> Measured:
    """A no-op."""
    return against_none(rounds, os.getpid, calls=CALLS)


def added(rounds: int) -> Measured:
    """What a no-op takes longer."""
    found = nothing(rounds)
    ours, theirs = map(_medians, (found.ours, found.theirs))
    return single([late - early for late, early in zip(ours, theirs, strict=True)], "ms")


def _medians(times: list[float]) -> list[float]:
    """Of each round."""
    return [median(times[at : at + CALLS]) for at in range(0, len(times), CALLS)]


def tenth(rounds: int) -> Measured:
    """A call of 100 ms."""
    return against_none(max(2, rounds // 3), time.sleep, 0.1, calls=5)


def bulk(rounds: int) -> Measured:
    """200 no-ops by `map`, on cores that have to do all of it: milliseconds of each."""
    with _cluster() as (client, executor):
        found = compare(
            lambda: list(executor.map(abs, range(200))),
            lambda: client.gather(client.map(abs, range(200), pure=False)),
            max(2, rounds // 3),
        )
    ours, theirs = ([each / 200 for each in times] for times in (found.ours, found.theirs))
    return Measured(ours, theirs, found.ratios, "ms")


def template(rounds: int) -> Measured:
    """What the worker's template and its supervisors take."""
    return single([_size_of_ours() for _ in range(max(1, rounds // 5))], "MiB")


def _size_of_ours() -> float:
    with _cluster(check=False) as (_, executor):
        for future in [executor.submit(time.sleep, 0.2) for _ in range(2)]:
            future.result(PATIENCE)
        time.sleep(1)
        ours = [pid for pid in descendants(os.getpid()) if name_of(pid).startswith("limit-")]
        return sum(map(pss, ours)) / MEBIBYTE


def cancelled(rounds: int) -> Measured:
    """Milliseconds until 500 that were cancelled have gone, two of which ran."""
    return single([_cancel_500() for _ in range(max(1, rounds // 5))], "ms")


def _cancel_500() -> float:
    with _cluster() as (_, executor):
        futures = [executor.submit(time.sleep, 600) for _ in range(500)]
        while sum(future.running() for future in futures) < 2:
            time.sleep(0.01)
        began = time.perf_counter()
        executor.kill_workers()
        while not all(future.cancelled() for future in futures):
            time.sleep(0.001)
        took = (time.perf_counter() - began) * 1000
        reports = [future.report for future in futures]
        ran = [report.pid for report in reports if report is not None and report.pid]
        assert len(ran) >= 2
        assert not any(Path(f"/proc/{pid}").exists() for pid in ran)
    return took


WORKER = "one worker of two threads, one call after the other"
BULK = "one worker of two threads, all at once"
BARE = "the cause by an exception; all else is the worker's"
ROWS = (
    Row(
        "dask",
        "no-op with limits on Dask",
        "the same without",
        1.3,
        None,
        nothing,
        how=WORKER,
        they_have=BARE,
    ),
    Row("dask-added", "a no-op takes longer by", "", 2, None, added, how=WORKER),
    Row(
        "dask-100ms",
        "100 ms with limits on Dask",
        "the same without",
        1.02,
        None,
        tenth,
        how=WORKER,
        they_have=BARE,
    ),
    Row(
        "dask-bulk",
        "200 no-ops by map on Dask, each",
        "the same without",
        None,
        None,
        bulk,
        how=BULK,
        they_have=BARE,
    ),
    Row("dask-template", "all our processes of a worker", "", 30, None, template, how=BULK),
    Row("dask-cancel", "500 tasks cancelled at once", "", 2000, None, cancelled, how=BULK),
)
