"""The same small call by every peer, and what each of them guarantees meanwhile.

No promise is held against these rows (those that are stand in `calls`): they show what a user pays
with each, and what for. Workers that are reused are the cheapest, and promise the least.
"""

from __future__ import annotations

import contextlib
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.speed.calls import LIMITS, NOTHING, PATIENCE
from benchmarks.speed.measure import ALONE, Measured, Row, compare
from benchmarks.speed.real import check_that_it_is_real
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ROWS"]

CALLS = 10
BATCH = 20
"""Calls that joblib gets at once: it has no way to submit one."""


class Peer(NamedTuple):
    """One way to make a call elsewhere. `open` gives it, for the length of its context."""

    name: str
    what: str
    guarantees: str
    open: Callable[[], contextlib.AbstractContextManager[Callable[[], object]]]
    batch: int = 1


NO_LIMITS = "no limits, the worker is reused, a crash breaks the pool"


@contextlib.contextmanager
def _stdlib() -> Iterator[Callable[[], object]]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda: pool.submit(NOTHING).result(PATIENCE)


@contextlib.contextmanager
def _loky() -> Iterator[Callable[[], object]]:
    from loky import ProcessPoolExecutor as Loky  # noqa: PLC0415 - each needs one peer only

    pool = Loky(1)
    yield lambda: pool.submit(NOTHING).result(PATIENCE)
    pool.shutdown(kill_workers=True)


@contextlib.contextmanager
def _loky_process() -> Iterator[Callable[[], object]]:
    from loky.backend import get_context as loky_context  # noqa: PLC0415

    context = loky_context("loky")

    def call() -> None:
        process = context.Process(target=NOTHING)
        process.start()
        process.join()

    yield call


@contextlib.contextmanager
def _joblib() -> Iterator[Callable[[], object]]:
    from joblib import Parallel, delayed  # noqa: PLC0415

    with Parallel(n_jobs=2, batch_size=1) as parallel:
        yield lambda: parallel(delayed(NOTHING)() for _ in range(BATCH))


@contextlib.contextmanager
def _billiard(**options: Any) -> Iterator[Callable[[], object]]:
    from billiard import Pool  # noqa: PLC0415

    pool = Pool(1, timeout=10, **options)
    yield lambda: pool.apply(NOTHING)
    pool.terminate()
    pool.join()


@contextlib.contextmanager
def _deadpool(**options: Any) -> Iterator[Callable[[], object]]:
    from deadpool import Deadpool  # noqa: PLC0415

    with Deadpool(max_workers=1, **options) as pool:
        yield lambda: pool.submit(NOTHING, deadpool_timeout=10).result(PATIENCE)


@contextlib.contextmanager
def _pebble(**options: Any) -> Iterator[Callable[[], object]]:
    from pebble import ProcessPool  # noqa: PLC0415

    with ProcessPool(1, **options) as pool:
        yield lambda: pool.schedule(NOTHING, timeout=10).result()


@contextlib.contextmanager
def _pynisher_1() -> Iterator[Callable[[], object]]:
    """From a folder of its own: both lines of pynisher have one import name."""
    if "PYNISHER_1" not in os.environ:
        msg = "pynisher 1.0 is not there: PYNISHER_1 names no folder that has it"
        raise ModuleNotFoundError(msg)
    sys.path.insert(0, os.environ["PYNISHER_1"])
    pynisher = import_module("pynisher")
    yield pynisher.limit(NOTHING, memory=(8, "GB"), cpu_time=(10, "s"), wall_time=(10, "s"))


PEERS = (
    Peer("stdlib", "ProcessPoolExecutor, reused", NO_LIMITS, _stdlib),
    Peer("loky", "loky's executor, reused", NO_LIMITS, _loky),
    Peer("loky-process", "a LokyProcess for each", "no limits, the exit code", _loky_process),
    Peer("joblib", f"joblib, {BATCH} calls on 2 workers, reused", NO_LIMITS, _joblib, BATCH),
    Peer(
        "billiard",
        "billiard's pool, reused",
        "wall time; no tree, no memory, no CPU time, the worker is reused",
        _billiard,
    ),
    Peer(
        "billiard-1",
        "billiard, maxtasksperchild=1",
        "wall time; no tree, no memory, no CPU time",
        lambda: _billiard(maxtasksperchild=1),
    ),
    Peer(
        "deadpool",
        "deadpool-executor, reused",
        "wall time, tree of living children; no memory, no CPU time, the worker is reused",
        _deadpool,
    ),
    Peer(
        "deadpool-1",
        "deadpool-executor, max_tasks_per_child=1",
        "wall time, tree of living children; no memory, no CPU time",
        lambda: _deadpool(max_tasks_per_child=1),
    ),
    Peer(
        "pebble-pool",
        "pebble's pool, reused",
        "wall time; no tree, no memory, no CPU time, the worker is reused",
        _pebble,
    ),
    Peer(
        "pebble-pool-1",
        "pebble's pool, max_tasks=1",
        "wall time; no tree, no memory, no CPU time",
        lambda: _pebble(max_tasks=1),
    ),
    Peer(
        "pynisher-1",
        "pynisher 1.0's limit",
        "address space, CPU and wall time of each process, the tree of living children; the cause",
        _pynisher_1,
    ),
)


def _measure(peer: Peer, rounds: int) -> Measured:
    with LimitedProcessExecutor(1, **LIMITS) as executor, peer.open() as call:

        def ours() -> None:
            for _ in range(peer.batch):
                executor.submit(NOTHING).result(PATIENCE)

        check_that_it_is_real(executor, LIMITS)
        ours()
        call()
        return compare(ours, call, max(2, rounds // 3), CALLS)


def _row(peer: Peer) -> Row:
    measure = partial(_measure, peer)
    what = "no-op under three limits" if peer.batch == 1 else f"{peer.batch} of them, one by one"
    how = ALONE if peer.batch == 1 else f"max_workers=1, {peer.batch} calls one after the other"
    return Row(peer.name, what, peer.what, None, None, measure, how, they_have=peer.guarantees)


ROWS = tuple(map(_row, PEERS))
