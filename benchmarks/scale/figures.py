"""What was measured, as samples, and what of it the simulation draws from. Pure data.

All are seconds; of CPU time where it is said. Nothing here needs Dask.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.scale.simulate import Costs

__all__ = ["REAL_LENGTH", "REAL_TASKS", "Figures", "Way", "from_json", "heartbeats", "median"]

REAL_LENGTH, REAL_TASKS = 0.1, 20
"""Seconds of each task that is really run, to hold the simulation against it; tasks for a core."""

median = statistics.median

TO_A_WORKER = 4
"""A round trip goes from the client by the scheduler to a worker, and back: four ways."""


@dataclass(frozen=True)
class Way:
    """One way of sending tasks: CPU time of each process for one of them, a figure for each round.

    `items`: how many reports one of Dask's tasks brings. `rate`: tasks a second that were reached,
    with client, scheduler and worker on this machine.
    """

    items: int
    scheduler: list[float]
    client: list[float]
    worker: list[float]
    rate: list[float]


@dataclass(frozen=True)
class Figures:
    """All that was measured.

    parts: CPU time of caller, supervisors, template and task for one limited no-op, by call.
    alone, loaded: what such a call takes, one after the other; with as many at once as cores.
    trips: from `client.submit` of a no-op to Dask's word that it is done; to the executor's result.
    ways: `submit` and `map` without limits, `executor`, `chunk` (`map` over a function that runs
        the items of a chunk, here one, each under limits), and `reports` (a chunk of one item with
        the reports of many).
    background: CPU time that the scheduler takes in a second of its own, with one worker.
    heartbeat: CPU time that it takes for one word of a worker that it is there; 0 where that is
        less than can be told from what else it does.
    crowd: how many workers there were in a second cluster, and the scheduler's CPU time for a
        task of `map` there: whether it grows with their number.
    real: efficiencies of the executor on this machine's `cores`, for sleeping tasks.
    """

    cores: int
    parts: dict[str, list[float]]
    alone: list[float]
    loaded: list[float]
    trips: dict[str, list[float]]
    ways: dict[str, Way]
    background: float
    heartbeat: float
    crowd: tuple[int, list[float]]
    real: list[float]

    def costs(self, way: str, items: int, workers: int) -> Costs:
        """What the simulation draws from, for chunks of so many items, sent this way.

        `brief`: as `chunk`, and what comes back is no longer than one report, however many items.
        """
        if way == "brief":
            way, items = "chunk", 1
        found = self.ways[way]
        taken = self.background + self.heartbeat * heartbeats(workers)
        slower = 1 / (1 - min(0.9, taken))  # the rest of its time is for tasks
        more = {
            process: (items - found.items) * self._for_an_item(process)
            for process in ("client", "scheduler")
        }
        caller = median(self.parts["caller"])  # a part of a call's time, and counted there
        return Costs(
            client=[each + more["client"] for each in found.client],
            scheduler=[(each + more["scheduler"]) * slower for each in found.scheduler],
            worker=[max(0.0, each - caller) for each in found.worker],
            hop=[each / TO_A_WORKER for each in self.trips["dask"]],
        )

    def _for_an_item(self, process: str) -> float:
        """What one item more in a chunk takes of a process: its report passes there."""
        many, one = self.ways["reports"], self.ways["chunk"]
        more = median(getattr(many, process)) - median(getattr(one, process))
        return float(max(0.0, more) / (many.items - 1))

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return asdict(self)


def from_json(found: dict[str, Any]) -> Figures:
    """What an earlier run has written."""
    workers, samples = found["crowd"]
    ways = {name: Way(**way) for name, way in found["ways"].items()}
    return Figures(**{**found, "ways": ways, "crowd": (workers, samples)})


def heartbeats(workers: int) -> float:
    """How many of these a scheduler gets in a second: Dask spaces them by the number of workers.

    Every half second from ten workers at most, every second from fifty, every other second from two
    hundred, and never more than two hundred a second.
    """
    if workers <= 10:
        return workers / 0.5
    if workers < 50:
        return workers / 1.0
    if workers < 200:
        return workers / 2.0
    return workers / (workers / 200 + 1)
