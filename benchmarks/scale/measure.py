"""What is measured on this machine: see `Figures`. Each round has all ways of sending in turn."""

from __future__ import annotations

import os
import pickle
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.processes import cpu_time_of, descendants, name_of
from benchmarks.rows import timed
from benchmarks.scale.cluster import Cluster, cluster, crowd
from benchmarks.scale.figures import REAL_LENGTH, REAL_TASKS, Figures, Way, heartbeats
from pynisher_exec import limited

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynisher_exec import Report

__all__ = ["measured", "run_chunk"]

LIMITS: dict[str, Any] = {"memory": "256MiB", "cpu_time": 10, "wall_time": 100}
MANY = 50
"""Reports that one item's is made into, to see what each one more takes on its way."""

CORES = os.cpu_count() or 1
CROWD = 100
IN_TURN = 20
PATIENCE = 60
HELPERS = {"limit-slot": "supervisor", "limit-template": "template"}

limited_abs = limited(abs, **LIMITS)  # a no-op that is everywhere, so that nothing is imported


def run_chunk(items: list[int]) -> list[Report]:
    """Run each item in a process of its own, under limits of its own."""
    return [limited_abs.report(item) for item in items]


def run_one(item: int) -> list[Report]:
    """Run one item, and bring its report home many times.

    That takes no longer than a chunk of one item, so that what scheduler and client do by the
    second is no part of the difference.
    """
    data = pickle.dumps(limited_abs.report(item))
    return [pickle.loads(data) for _ in range(MANY)]


class _Effort(NamedTuple):
    """How thorough: rounds, seconds after which none is begun, tasks of a round, calls, looks."""

    rounds: int
    seconds: float
    tasks: int
    calls: int
    idle: float


FULL, QUICK = _Effort(7, 25, 200, 300, 2.0), _Effort(2, 10, 100, 60, 1.0)


def measured(*, quick: bool, tell: Callable[[str], None]) -> Figures:
    """Measure all; some 40 seconds, or 15."""
    effort = QUICK if quick else FULL
    tell("one node")
    parts, alone = _parts(effort.calls)
    loaded = _loaded(effort.calls)
    tell("a cluster")
    with cluster(CORES) as found:
        trips, ways, background = _ways(found, effort)
        real = _real(found.client, max(2, effort.rounds // 2))
    tell(f"a cluster of {CROWD} workers")
    with crowd(CROWD) as found:
        heard, scheduler = _crowded(found, effort)
    return Figures(
        cores=CORES,
        parts=parts,
        alone=alone,
        loaded=loaded,
        trips=trips,
        ways=ways,
        background=background,
        heartbeat=max(0.0, heard - background) / (heartbeats(CROWD) - heartbeats(1)),
        crowd=(CROWD, scheduler),
        real=real,
    )


# -- one node -------------------------------------------------------------------------------------


def _parts(calls: int) -> tuple[dict[str, list[float]], list[float]]:
    """CPU time of each process that has to do with a call, and what the call takes."""
    run_chunk([1] * 20)  # template and supervisors are there, and what they import
    parts: dict[str, list[float]] = {"caller": [], "supervisor": [], "template": [], "task": []}
    alone = []
    for number in range(calls):
        helpers = _helpers()
        before = _clocks(helpers)
        began = time.perf_counter()
        report = limited_abs.report(number)
        took = time.perf_counter() - began
        if not set(helpers) <= set(_helpers()):
            continue  # one was replaced meanwhile, or had nothing to do
        alone.append(took)
        for name, now in _clocks(helpers).items():
            parts[name].append(now - before[name])
        assert report.rusage is not None
        parts["task"].append(report.rusage.ru_utime + report.rusage.ru_stime)
    return parts, alone


def _helpers() -> dict[int, str]:
    """Supervisors and templates of this process, by pid."""
    names = {pid: name_of(pid) for pid in descendants(os.getpid())}
    return {pid: HELPERS[name] for pid, name in names.items() if name in HELPERS}


def _clocks(helpers: dict[int, str]) -> dict[str, float]:
    """CPU time so far: of this process, and of each kind of helper together."""
    found = {"caller": time.process_time(), "supervisor": 0.0, "template": 0.0}
    for pid, name in helpers.items():
        found[name] += cpu_time_of(pid)
    return found


def _loaded(calls: int) -> list[float]:
    """What a call takes with as many at once as there are cores."""
    found: list[float] = []

    def go_on() -> None:
        found.extend(timed(lambda: limited_abs.report(1)) / 1000 for _ in range(calls))

    threads = [threading.Thread(target=go_on) for _ in range(CORES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


# -- a cluster ------------------------------------------------------------------------------------


def _ways(found: Cluster, effort: _Effort) -> tuple[dict[str, list[float]], dict[str, Way], float]:
    from pynisher_exec.dask import LimitedDaskExecutor  # noqa: PLC0415 - not without distributed

    client = found.client
    with LimitedDaskExecutor(client, **LIMITS) as executor:
        actions = _actions(client, executor, effort.tasks)
        for _, _, action in actions.values():
            action()  # connections are there, templates, and what they import
        background = _idle(found.scheduler, effort.idle)
        ways = {name: Way(items, [], [], [], []) for name, (items, _, _) in actions.items()}
        end = time.monotonic() + effort.seconds
        for number in range(effort.rounds):
            if number > 1 and time.monotonic() > end:
                break  # on a busy machine
            for name, (_, count, action) in actions.items():
                _add(ways[name], found, background, count, action)
        trips = _trips(client, executor, effort.calls // 3)
    return trips, ways, background


def _actions(
    client: Any, executor: Any, tasks: int
) -> dict[str, tuple[int, int, Callable[[], object]]]:
    """For each way: items of a task, how many tasks, and how they are done."""
    few = tasks // 2

    def submit() -> None:
        for future in [client.submit(abs, item, pure=False) for item in range(tasks)]:
            future.result(PATIENCE)

    def send(function: Callable[..., object], items: list[Any]) -> Any:
        return client.gather(client.map(function, items, pure=False))

    return {
        "submit": (1, tasks, submit),
        "map": (1, 2 * tasks, lambda: send(abs, list(range(2 * tasks)))),
        "executor": (1, few, lambda: list(executor.reports(abs, range(few)))),
        "chunk": (1, few, lambda: send(run_chunk, [[1]] * few)),
        "reports": (MANY, few, lambda: send(run_one, [1] * few)),
    }


def _add(
    way: Way, found: Cluster, background: float, count: int, action: Callable[[], object]
) -> None:
    """Do one round, and note what a task has taken, but for what the scheduler takes anyway."""
    before = cpu_time_of(found.scheduler), time.process_time(), cpu_time_of(found.workers)
    took = timed(action) / 1000
    after = cpu_time_of(found.scheduler), time.process_time(), cpu_time_of(found.workers)
    scheduler, client, worker = (b - a for a, b in zip(before, after, strict=True))
    way.scheduler.append(max(0.0, scheduler - background * took) / count)
    way.client.append(client / count)
    way.worker.append(worker / count)
    way.rate.append(count / took)


def _real(client: Any, rounds: int) -> list[float]:
    """How efficient the executor is in truth, with tasks that sleep: a check of the simulation."""
    from pynisher_exec.dask import LimitedDaskExecutor  # noqa: PLC0415 - not without distributed

    lengths = [REAL_LENGTH] * REAL_TASKS * CORES
    with LimitedDaskExecutor(client, **LIMITS) as executor:
        took = [timed(lambda: list(executor.reports(time.sleep, lengths))) for _ in range(rounds)]
    return [sum(lengths) * 1000 / each / CORES for each in took]


def _trips(client: Any, executor: Any, calls: int) -> dict[str, list[float]]:
    """There and back, one after the other; without fetching the value.

    Some of a kind in turn: Dask's client sends every 10 ms at most, so a trip's time depends on
    when the one before it was sent.
    """
    from distributed import wait  # noqa: PLC0415 - only here

    def dask() -> None:
        wait(client.submit(abs, 1, pure=False), PATIENCE)  # type: ignore[no-untyped-call]

    kinds = {"dask": dask, "executor": lambda: executor.submit(abs, 1).result(PATIENCE)}
    trips: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(calls // IN_TURN):
        for name, trip in kinds.items():
            trips[name] += [timed(trip) / 1000 for _ in range(IN_TURN)]
    return trips


def _crowded(found: Cluster, effort: _Effort) -> tuple[float, list[float]]:
    """The scheduler's CPU time in a second without tasks, and for a task."""
    client, scheduler = found.client, []
    tasks = 5 * effort.tasks
    client.gather(client.map(abs, range(tasks), pure=False))
    background = _idle(found.scheduler, effort.idle)
    for _ in range(max(2, effort.rounds // 3)):
        before = cpu_time_of(found.scheduler)
        took = timed(lambda: client.gather(client.map(abs, range(tasks), pure=False))) / 1000
        used = cpu_time_of(found.scheduler) - before - background * took
        scheduler.append(max(0.0, used) / tasks)
    return background, scheduler


def _idle(pid: int, seconds: float) -> float:
    """CPU time that a process takes in a second while nothing is asked of it; median of three."""
    found = []
    for _ in range(3):
        before, began = cpu_time_of(pid), time.monotonic()
        time.sleep(seconds / 2)
        found.append((cpu_time_of(pid) - before) / (time.monotonic() - began))
    return statistics.median(found)
