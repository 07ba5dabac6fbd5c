"""Two ways of doing the same work, a block of each in turn."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.rows import percentile, timed

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ALL", "ALONE", "Measured", "Row", "compare", "single"]

ALL = "limits on memory, CPU and wall time of the whole tree, its end, the cause"
"""What our side guarantees in each row that says nothing else."""

ALONE = "max_workers=1, one call after the other"
"""How most rows call."""


class Measured(NamedTuple):
    """What a row found: `ours` and `theirs` in `unit`, and the ratio of each round.

    Where there is nothing to compare with, `theirs` is empty and `ratios` are the rounds' figures.
    """

    ours: list[float]
    theirs: list[float]
    ratios: list[float]
    unit: str
    note: str = ""

    @property
    def ratio(self) -> float:
        """The figure that a promise is held against."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """Between which a round's ratio lies, but for the lowest and the highest quarter."""
        return percentile(self.ratios, 25), percentile(self.ratios, 75)


@dataclass(frozen=True)
class Row:
    """One promise: what is measured, against what; `must` and `aim` bound the ratio.

    From above, or from below where `at_least`; None where nothing is promised. `run` takes the
    number of rounds. `has` is what our side guarantees meanwhile, `they_have` what the other one
    does; `how`: workers, and the order of calls.
    """

    name: str
    what: str
    against: str
    must: float | None
    aim: float | None
    run: Callable[[int], Measured]
    how: str = ALONE
    has: str = ALL
    they_have: str = "nothing"
    at_least: bool = False

    def kept(self, measured: Measured) -> bool:
        """Whether the promise holds."""
        found = measured.ratio
        if self.must is None:
            return True
        return found >= self.must if self.at_least else found <= self.must

    def hides(self, measured: Measured) -> list[str]:
        """What the rounds spread over, so that another run may say otherwise."""
        low, high = measured.spread
        marks = {"the promise": self.must, "any difference": 1.0 if measured.theirs else None}
        return [name for name, at in marks.items() if at is not None and low < at < high]


def compare(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    calls: int = 1,
    after: Callable[[], object] | None = None,
) -> Measured:
    """Time both, `calls` of each in a round, whose ratio is that of the medians.

    In a round all of one, then all of the other: in between calls of the other, ours would have
    time to fork ahead, at that one's cost. Every other round begins with the other one: what runs
    second finds the caches and the clock of the processor as the first has left them. `after` each
    block of ours something is done untimed.
    """
    mine: list[float] = []
    peers: list[float] = []
    ratios = []
    for number in range(rounds):
        turns = [(ours, mine), (theirs, peers)]
        for action, times in turns if number % 2 == 0 else reversed(turns):
            times += [timed(action) for _ in range(calls)]
            if after is not None and action is ours:
                after()
        ratios.append(statistics.median(mine[-calls:]) / statistics.median(peers[-calls:]))
    return Measured(mine, peers, ratios, "ms")


def single(figures: list[float], unit: str, note: str = "") -> Measured:
    """Where a round is one figure, and is compared with nothing."""
    return Measured(figures, [], figures, unit, note)
