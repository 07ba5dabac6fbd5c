"""What one small call costs, against a raw fork and against peers."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from itertools import repeat
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from benchmarks.rows import fork_and_wait, hold
from benchmarks.speed.measure import ALL, Measured, Row, compare
from benchmarks.speed.real import (
    check_that_all_is_on,
    check_that_it_is_real,
    check_that_limits_hold,
)
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LIMITS", "NOTHING", "PATIENCE", "ROWS"]

PATIENCE = 60
CALLS = 40
LIMITS: dict[str, Any] = {"memory": 1 << 30, "cpu_time": 10, "wall_time": 10}

NOTHING = os.getpid
"""What is called: of the standard library, so that nothing has to travel or be imported for it."""


def nothing() -> None:
    """Do nothing; travels by value."""


def against_fork(rounds: int) -> Measured:
    """A no-op, back to back, in a small caller."""
    return _against_peer(fork_and_wait, rounds, CALLS)


def against_fork_of_much(rounds: int) -> Measured:
    """The same, in a caller that holds 2 GiB of small objects."""
    held: list[bytes] = []
    hold(held, 2048)
    measured = against_fork(max(2, rounds // 4))
    return measured._replace(note=f"{len(held)} objects held")


def against_pynisher(rounds: int) -> Measured:
    """The same call with pynisher 0.6's decorator."""
    pynisher = import_module("pynisher")
    limited = pynisher.enforce_limits(mem_in_mb=8192, cpu_time_in_s=10, wall_time_in_s=10)(NOTHING)
    return _against_peer(limited, rounds)


def against_pebble(rounds: int) -> Measured:
    """The same call in pebble's process for one function."""
    from pebble.concurrent import process  # noqa: PLC0415 - only here

    wrapped: Any = process(timeout=10)(NOTHING)
    return _against_peer(lambda: wrapped().result(), rounds)


def against_fresh_workers(rounds: int) -> Measured:
    """The same call in the standard library's pool, a worker for each task."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:  # type: ignore[call-overload]
        pool.submit(NOTHING).result()
        return _against_peer(lambda: pool.submit(NOTHING).result(), max(2, rounds // 4), 5)


def _against_peer(theirs: Callable[[], object], rounds: int, calls: int = 10) -> Measured:
    with LimitedProcessExecutor(1, **LIMITS) as executor:
        check_that_it_is_real(executor, LIMITS)
        return compare(_calling(executor), theirs, rounds, calls)


def _calling(
    executor: LimitedProcessExecutor, function: Callable[[], object] = NOTHING
) -> Callable[[], object]:
    return lambda: executor.submit(function).result(PATIENCE)


def by_value(rounds: int) -> Measured:
    """What it adds that a function of the caller's `__main__` has to travel itself."""
    with LimitedProcessExecutor(1, **LIMITS) as executor:
        check_that_it_is_real(executor, LIMITS)
        return compare(_calling(executor, nothing), _calling(executor), rounds, CALLS)


def reuse_against_loky(rounds: int) -> Measured:
    """A no-op in a process that is reused, both ways."""
    from loky import ProcessPoolExecutor as Loky  # noqa: PLC0415 - only here

    pool = Loky(1)
    try:
        return _reuse(lambda: pool.submit(NOTHING).result(), rounds)
    finally:
        pool.shutdown(kill_workers=True)


def reuse_against_stdlib(rounds: int) -> Measured:
    """The same against the standard library's pool."""
    with ProcessPoolExecutor(1) as pool:
        return _reuse(lambda: pool.submit(NOTHING).result(), rounds)


def _reuse(theirs: Callable[[], object], rounds: int) -> Measured:
    theirs()
    with LimitedProcessExecutor(1, **LIMITS, max_tasks_per_child=None) as executor:
        check_that_limits_hold(executor, LIMITS)
        return compare(_calling(executor), theirs, rounds, CALLS)


def throughput(rounds: int) -> Measured:
    """No-ops by `map` on two workers, against one forker that does one after the other."""
    count = min(1000, rounds * 70)

    def fork_all() -> None:
        for _ in range(count):
            fork_and_wait()

    with LimitedProcessExecutor(2, **LIMITS) as executor:
        check_that_it_is_real(executor, LIMITS)

        def map_all() -> None:
            assert len(list(executor.map(abs, repeat(-1, count)))) == count

        measured = compare(map_all, fork_all, max(2, rounds // 3))
    rates = [1 / ratio for ratio in measured.ratios]
    return measured._replace(ratios=rates, note=f"ms for {count}")


def with_everything(rounds: int) -> Measured:
    """Gate, capture and Landlock as well, against none of them."""
    with (
        LimitedProcessExecutor(1, **LIMITS, processes=5, capture_output=True) as full,
        LimitedProcessExecutor(1, **LIMITS, no_new_privs=False) as bare,
    ):
        check_that_it_is_real(full, LIMITS)
        check_that_all_is_on(full, processes=5)
        check_that_it_is_real(bare, LIMITS)
        return compare(_calling(full), _calling(bare), rounds, CALLS)


def first_result(rounds: int) -> Measured:
    """A new executor's first result, against the start of a LokyProcess."""
    from loky.backend import get_context as loky_context  # noqa: PLC0415 - only here

    context = loky_context("loky")

    made: list[LimitedProcessExecutor] = []

    def ours() -> None:
        made.append(LimitedProcessExecutor(1, **LIMITS))
        made[-1].submit(NOTHING).result(PATIENCE)

    def end() -> None:
        while made:
            with made.pop() as executor:
                check_that_it_is_real(executor, LIMITS)

    def theirs() -> None:
        process = context.Process(target=NOTHING)
        process.start()
        process.join()

    return compare(ours, theirs, max(5, rounds), after=end)


REUSED = f"{ALL}; what a task leaves in the process is there for the next"
POOL = "the cause by an exception; a crash breaks the pool"
ROWS = (
    Row("fork", "no-op under three limits", "fork + wait", 1.2, 0.7, against_fork),
    Row("fork-2GiB", "the same, 2 GiB held", "fork + wait", 0.1, 0.03, against_fork_of_much),
    Row(
        "pynisher",
        "no-op under three limits",
        "pynisher 0.6",
        0.4,
        0.2,
        against_pynisher,
        they_have="limits on one process, the cause as far as its exit tells it",
    ),
    Row(
        "pebble",
        "no-op under three limits",
        "pebble's process",
        0.4,
        0.2,
        against_pebble,
        they_have="wall time of one process",
    ),
    Row(
        "fresh",
        "no-op under three limits",
        "max_tasks_per_child=1",
        0.15,
        0.08,
        against_fresh_workers,
        they_have=POOL,
    ),
    Row(
        "by-value",
        "no-op of the caller's own",
        "one of a module",
        None,
        None,
        by_value,
        they_have=ALL,
    ),
    Row(
        "reuse-loky",
        "no-op, reused process",
        "loky, reused",
        1.0,
        0.6,
        reuse_against_loky,
        has=REUSED,
        they_have=POOL,
    ),
    Row(
        "reuse",
        "no-op, reused process",
        "the stdlib's pool",
        1.5,
        1.0,
        reuse_against_stdlib,
        has=REUSED,
        they_have=POOL,
    ),
    Row(
        "throughput",
        "rate of 1,000 no-ops",
        "a serial forker",
        0.7,
        1.2,
        throughput,
        how="max_workers=2, by map",
        at_least=True,
    ),
    Row(
        "everything",
        "gate, capture, Landlock",
        "none of them",
        1.3,
        1.1,
        with_everything,
        has=f"{ALL}, processes, output, no signals to others",
        they_have=ALL,
    ),
    Row("first", "first result of an executor", "a LokyProcess", 1.5, 1.0, first_result),
)
