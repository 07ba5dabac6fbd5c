"""The simulation for each number of nodes and length of task, and the tables of it."""

from __future__ import annotations

import math
import os
import statistics
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.scale.figures import REAL_LENGTH, REAL_TASKS
from benchmarks.scale.simulate import FREE, Cluster, Lengths, Outcome, Simulation, Work, dice, drawn
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.scale.figures import Figures

__all__ = [
    "LENGTHS",
    "MOST",
    "NODES",
    "Cell",
    "Place",
    "Setting",
    "batched",
    "cells",
    "demand",
    "foretold",
    "show",
    "single",
    "smallest",
]

NODES = (10, 100, 1000)
LENGTHS = (0.1, 1.0, 10.0, 60.0)

POOL = 50_000
"""Items that are drawn, of which each chunk is a window."""

MOST = 1000
"""Items in a chunk at most."""

TOO_MUCH = 0.95
"""From this demand on, client or scheduler is called the bound."""


HEADING = (
    "nodes    task     K  efficiency         seeds  ideal  kept  makespan  scheduler  client  again"
    "  bound"
)


class Setting(NamedTuple):
    """What is not measured, but supposed.

    per_core: Dask tasks for each core. threads: of each Dask worker, so that a node of 16 cores has
    four. lost_every: mean seconds until a node is lost. share: of their time that client and
    scheduler are to be busy at most, where chunks are sized for it.
    """

    cores: int = 16
    threads: int = 4
    per_core: int = 16
    seeds: int = 3
    lost_every: float = 100 * 3600.0
    share: float = 0.5
    lengths: Lengths = Lengths(1.0)


class Place(NamedTuple):
    """A cell to be: a way of sending, nodes, a task's mean length, items of a chunk."""

    way: str
    nodes: int
    length: float
    size: int


class Cell(NamedTuple):
    """One cell of a table: medians over the seeds, with the least and the most efficiency.

    ideal: efficiency of the same items with the same losses where nothing else costs anything.
    kept: makespan of that by the makespan that there is. bound: of which of the two more is asked
    than it can do, so that cores wait.
    """

    way: str
    nodes: int
    length: float
    size: int
    efficiency: float
    low: float
    high: float
    ideal: float
    kept: float
    makespan: float
    scheduler: float
    client: float
    again: int
    bound: str


class _Job(NamedTuple):
    """One run, and the same without costs."""

    figures: Figures
    setting: Setting
    place: Place
    seed: int


def demand(figures: Figures, setting: Setting, place: Place) -> dict[str, float]:
    """The share of their time that client and scheduler would be busy if no core ever waited."""
    cores = place.nodes * setting.cores
    costs = figures.costs(place.way, place.size, cores // setting.threads)
    item = place.length + statistics.fmean(figures.loaded)
    rate = cores / (place.size * item + statistics.fmean(costs.worker))
    return {
        "client": rate * statistics.fmean(costs.client),
        "scheduler": rate * statistics.fmean(costs.scheduler),
    }


def smallest(figures: Figures, setting: Setting, way: str, nodes: int, length: float) -> int:
    """The least size of a chunk that keeps both below their share; the most where none does."""
    for size in range(1, MOST):
        if max(demand(figures, setting, Place(way, nodes, length, size)).values()) <= setting.share:
            return size
    return MOST


def single() -> list[Place]:
    """All numbers of nodes and lengths, each item a task of Dask's; the longest runs first."""
    return [Place("executor", nodes, length, 1) for nodes in reversed(NODES) for length in LENGTHS]


def batched(
    figures: Figures, setting: Setting, way: str, places: Iterable[Cell | Place]
) -> list[Place]:
    """The same places, with chunks."""
    return [
        Place(way, nodes, length, smallest(figures, setting, way, nodes, length))
        for _, nodes, length, *_ in places
    ]


def cells(figures: Figures, setting: Setting, places: Sequence[Place]) -> list[Cell]:
    """Simulate all, in as many processes as there are cores."""
    jobs = [
        _Job(figures, setting, place, seed) for place in places for seed in range(setting.seeds)
    ]
    with LimitedProcessExecutor(os.cpu_count(), memory="2GiB", wall_time="5min") as executor:
        ends = list(executor.map(_run, jobs))
    found = [
        _cell(figures, setting, place, ends[number * setting.seeds :][: setting.seeds])
        for number, place in enumerate(places)
    ]
    return sorted(found, key=lambda cell: (cell.nodes, cell.length))


def foretold(figures: Figures) -> float:
    """What the simulation says of the tasks that were really run here: see `Figures.real`."""
    calls = dice("foretold", "calls").choices(figures.loaded, k=POOL)
    work = Work([REAL_LENGTH] * POOL, calls)
    costs = figures.costs("executor", 1, 1)
    chunks = REAL_TASKS * figures.cores
    ahead = math.ceil(figures.cores / 10)
    runs = [
        Simulation(Cluster(1, figures.cores, ahead), work, costs, chunks, 1, seed).run()
        for seed in range(20)
    ]
    return statistics.median(run.efficiency for run in runs)


def _run(job: _Job) -> tuple[Outcome, Outcome]:
    setting, place = job.setting, job.place
    ran = drawn(setting.lengths._replace(mean=place.length), POOL, job.seed)
    calls = dice(job.seed, "calls").choices(job.figures.loaded, k=POOL)
    cluster = Cluster(
        place.nodes,
        setting.cores,
        ahead=setting.cores // setting.threads,  # Dask's, of 1.1 tasks for a thread, rounded up
        lost_every=setting.lost_every,
    )
    workers = place.nodes * setting.cores // setting.threads
    costs = job.figures.costs(place.way, place.size, workers)
    chunks = place.nodes * setting.cores * setting.per_core
    real = Simulation(cluster, Work(ran, calls), costs, chunks, place.size, job.seed).run()
    bare = Work(ran, [0.0] * POOL)
    ideal = Simulation(cluster._replace(ahead=0), bare, FREE, chunks, place.size, job.seed).run()
    return real, ideal


def _cell(
    figures: Figures, setting: Setting, place: Place, ends: Sequence[tuple[Outcome, Outcome]]
) -> Cell:
    efficiencies = [real.efficiency for real, _ in ends]
    asked, who = max((share, who) for who, share in demand(figures, setting, place).items())
    return Cell(
        *place,
        efficiency=statistics.median(efficiencies),
        low=min(efficiencies),
        high=max(efficiencies),
        ideal=statistics.median(ideal.efficiency for _, ideal in ends),
        kept=statistics.median(ideal.makespan / real.makespan for real, ideal in ends),
        makespan=statistics.median(real.makespan for real, _ in ends),
        scheduler=statistics.median(real.scheduler for real, _ in ends),
        client=statistics.median(real.client for real, _ in ends),
        again=round(statistics.median(real.again for real, _ in ends)),
        bound=who if asked >= TOO_MUCH else "",
    )


def show(found: Sequence[Cell]) -> str:
    """A line for each cell, under a heading."""
    lines = [HEADING]
    lines += [
        f"{cell.nodes:5}  {cell.length:4g} s {cell.size:5}  {cell.efficiency:10.2f}  "
        f"{cell.low:.2f} to {cell.high:.2f}  {cell.ideal:5.2f}  {cell.kept:.2f}  "
        f"{cell.makespan:6.0f} s  {cell.scheduler:9.0%}  {cell.client:6.0%}  {cell.again:5}  "
        f"{cell.bound}".rstrip()
        for cell in found
    ]
    return "\n".join(lines)
