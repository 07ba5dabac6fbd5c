"""A cluster as a simulation of events: one client, one scheduler, nodes of some cores. Pure.

    client --tasks--> scheduler --one at a time, in turn--> node: places, cores --ends--> scheduler

The client has its tasks ready one after the other, each after its CPU time for one. The scheduler
serves free places in the order in which it hears of them, one task each. A node has a place for
each core and some more, so that a core need not wait for the next task to come. A task, a chunk of
items, keeps a core for what the worker's process does about it, and for each item the function's
own time and what a limited call takes beside it. A node may be lost: what it ran, and what it held,
runs again elsewhere once that is noticed, and the node comes back after a while. What has ended is
with the client, which fetches each chunk as it ends.

What the scheduler has taken up it sends, also to a node that is lost before it gets there: so nodes
have to live much longer than it takes to fill all places.

One seed, one result. The same seed with other costs has the same items and the same losses.
"""

from __future__ import annotations

import random
from collections import deque
from heapq import heappop, heappush, heapreplace
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FREE", "Cluster", "Costs", "Lengths", "Outcome", "Simulation", "Work", "dice", "drawn"]


class Cluster(NamedTuple):
    """What there is. `ahead`: tasks that a node holds beyond those that run.

    lost_every: mean seconds until a node is lost, None: never; `noticed` and `back`: seconds from
    then until the scheduler knows, and until the node is there again.
    """

    nodes: int
    cores: int = 16
    ahead: int = 4
    lost_every: float | None = None
    noticed: float = 30.0
    back: float = 300.0


class Costs(NamedTuple):
    """Samples in seconds, from which one is drawn for each task: see `Figures.costs`.

    `client` and `scheduler` are one each, `worker` keeps a core, `hop` is a way between node and
    scheduler, for which nothing stands still.
    """

    client: Sequence[float]
    scheduler: Sequence[float]
    worker: Sequence[float]
    hop: Sequence[float]


FREE = Costs([0.0], [0.0], [0.0], [0.0])


class Lengths(NamedTuple):
    """How long functions run: lognormal about a mean, some ended early, some hanging.

    `fails`: share that meets a limit of memory or crashes, at any moment of its time. `hangs`:
    share that would never end, and is ended at the wall limit, `limit` times the mean.
    """

    mean: float
    sigma: float = 0.7
    fails: float = 0.02
    hangs: float = 0.002
    limit: float = 5.0


def dice(seed: object, what: str) -> random.Random:
    """Of one purpose, so that what is drawn for another one changes nothing here."""
    return random.Random(f"{seed} {what}")  # noqa: S311  (a simulation: it has to come out again)


def drawn(lengths: Lengths, count: int, seed: object) -> list[float]:
    """Seconds that so many functions run, limits included."""
    throw = dice(seed, "lengths")
    middle = lengths.sigma**2 / 2  # so that the mean is 1
    found = []
    for _ in range(count):
        length = min(throw.lognormvariate(-middle, lengths.sigma), lengths.limit)
        fate = throw.random()
        if fate < lengths.fails:
            length *= throw.random()
        elif fate < lengths.fails + lengths.hangs:
            length = lengths.limit
        found.append(length * lengths.mean)
    return found


class Work:
    """Many items, of which chunks are windows: sums over one are differences of two figures.

    So a chunk of a thousand items takes no longer to draw than one of a single item.
    """

    def __init__(self, ran: Sequence[float], calls: Sequence[float]) -> None:
        self.count = len(ran)
        self._ran = list(accumulate(ran, initial=0.0))
        self._calls = list(accumulate(calls, initial=0.0))

    def seconds(self, start: int, size: int) -> tuple[float, float]:
        """Of a chunk: what its functions run, and what its calls take beside that."""
        end = start + size
        return self._ran[end] - self._ran[start], self._calls[end] - self._calls[start]


class Outcome(NamedTuple):
    """What came of it; `useful` are seconds that functions ran and whose outcome arrived.

    A function that met its limit has an outcome, too. `scheduler` and `client`: the share of the
    time in which each was busy. `again`: chunks that were run anew.
    """

    makespan: float
    efficiency: float
    useful: float
    scheduler: float
    client: float
    again: int
    losses: int


_OPEN, _LOST, _AGAIN = -1, -2, -3
"""What an event says, but for the number of a chunk: that it has ended."""


class Simulation:
    """So many chunks of so many items, run once; `counted` says how often each chunk's end was."""

    def __init__(
        self, cluster: Cluster, work: Work, costs: Costs, chunks: int, size: int, seed: object
    ) -> None:
        self._cluster, self._costs = cluster, costs
        self._costs_dice = dice(seed, "costs").random
        self._loss_dice = dice(seed, "losses")
        starts = dice(seed, "chunks")
        # Of each chunk, what its functions run, and what its calls take beside that.
        self._work = [
            work.seconds(starts.randrange(work.count - size + 1), size) for _ in range(chunks)
        ]
        self.counted = [0] * chunks
        self._cores = [[0.0] * cluster.cores for _ in range(cluster.nodes)]
        self._epochs = [0] * cluster.nodes
        self._sent: list[dict[int, float]] = [{} for _ in range(cluster.nodes)]
        self._unnoticed: deque[int] = deque()
        self._waiting: deque[int] = deque()
        self._parked: deque[tuple[int, int]] = deque()
        # when, a number that keeps the order, node, the node's epoch, what
        self._events: list[tuple[float, int, int, int, int]] = []
        self._number = self._next = self._done = self._again = self._losses = 0
        self._submitted = self._free = self._busy = 0.0

    def run(self) -> Outcome:
        """Go on until every chunk has ended once."""
        for _ in range(self._cluster.cores + self._cluster.ahead):
            for node in range(self._cluster.nodes):
                self._at(0.0, node, _OPEN)
        for node in range(self._cluster.nodes):
            self._lose_later(0.0, node)
        now = 0.0
        while self._done < len(self.counted):
            now, _, node, epoch, what = heappop(self._events)
            self._take(now, node, epoch, what)
        cores = self._cluster.nodes * self._cluster.cores
        ran = zip(self.counted, self._work, strict=True)
        useful = sum(times * seconds for times, (seconds, _) in ran)
        return Outcome(
            makespan=now,
            efficiency=useful / (cores * now),
            useful=useful,
            scheduler=self._busy / now,
            client=self._submitted / now,
            again=self._again,
            losses=self._losses,
        )

    def _at(self, when: float, node: int, what: int) -> None:
        self._number += 1
        heappush(self._events, (when, self._number, node, self._epochs[node], what))

    def _take(self, now: float, node: int, epoch: int, what: int) -> None:
        if what == _AGAIN:
            self._waiting.append(self._unnoticed.popleft())
            self._serve_parked(now)
        elif epoch != self._epochs[node]:
            pass  # of before the node was lost
        elif what == _LOST:
            self._lose(now, node)
        else:
            if what != _OPEN:
                del self._sent[node][what]
                self._count(what)
            self._serve(now, node)

    def _count(self, chunk: int) -> None:
        self.counted[chunk] += 1
        self._done += 1

    # -- the scheduler ---------------------------------------------------------------------------

    def _serve(self, now: float, node: int) -> None:
        """A place on a node is free: find what is to run there next, and when it gets there."""
        ready = 0.0
        if self._waiting:
            chunk = self._waiting.popleft()
        elif self._next < len(self.counted):
            chunk = self._next
            self._next += 1
            self._submitted += self._draw(self._costs.client)
            ready = self._submitted
        else:
            self._parked.append((node, self._epochs[node]))
            return
        service = self._draw(self._costs.scheduler)
        self._busy += service
        self._free = max(now, self._free, ready) + service
        self._run(chunk, node, self._free + self._draw(self._costs.hop))

    def _serve_parked(self, now: float) -> None:
        """A chunk waits again: give it to a place that found nothing left, if there is one."""
        while self._waiting and self._parked:
            node, epoch = self._parked.popleft()
            if epoch == self._epochs[node]:
                self._serve(now, node)

    def _draw(self, samples: Sequence[float]) -> float:
        return samples[int(self._costs_dice() * len(samples))]

    # -- a node ----------------------------------------------------------------------------------

    def _run(self, chunk: int, node: int, arrival: float) -> None:
        """Tell when it ends: the core that is free first takes it, in the order of arrival."""
        cores = self._cores[node]
        ran, calls = self._work[chunk]
        end = max(arrival, cores[0]) + self._draw(self._costs.worker) + ran + calls
        heapreplace(cores, end)
        self._sent[node][chunk] = end
        self._at(end + self._draw(self._costs.hop), node, chunk)

    def _lose_later(self, now: float, node: int) -> None:
        if self._cluster.lost_every is not None:
            wait = self._loss_dice.expovariate(1 / self._cluster.lost_every)
            self._at(now + wait, node, _LOST)

    def _lose(self, now: float, node: int) -> None:
        """All that it ran and held is lost; what had ended is on its way, and arrives."""
        self._losses += 1
        self._epochs[node] += 1
        lost = []
        for chunk, end in self._sent[node].items():
            if end > now:
                lost.append(chunk)
            else:
                self._count(chunk)
        self._sent[node] = {}
        self._again += len(lost)
        there = now + self._cluster.back
        self._cores[node] = [there] * self._cluster.cores
        for _ in range(self._cluster.cores + self._cluster.ahead):
            self._at(there, node, _OPEN)
        self._lose_later(there, node)
        for chunk in lost:
            self._unnoticed.append(chunk)  # in the order of their events: all take as long
            self._at(now + self._cluster.noticed, node, _AGAIN)
