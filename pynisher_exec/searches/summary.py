"""How the tasks of a search ended, in one table."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from pynisher_exec.limits import size_text
from pynisher_exec.searches.progress import duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pynisher_exec.report import Report
    from pynisher_exec.searches.reader import Row

__all__ = ["Figures", "Summary", "summary_of"]


class Figures(NamedTuple):
    """Of some tasks: how many, seconds together, the longest, the largest in bytes."""

    items: int = 0
    cpu_time: float = 0.0
    wall_time: float = 0.0
    longest: float = 0.0
    largest: int = 0

    def with_one(self, wall_time: float, cpu_time: float, peak_memory: int) -> Figures:
        """Count one more."""
        return Figures(
            self.items + 1,
            self.cpu_time + cpu_time,
            self.wall_time + wall_time,
            max(self.longest, wall_time),
            max(self.largest, peak_memory),
        )


@dataclass
class Summary:
    """`statuses` has, by the word of each status that there was, the figures of its tasks."""

    statuses: dict[str, Figures] = field(default_factory=dict)

    def add(self, report: Report) -> None:
        """Count a task."""
        self.count(report.status.value, report.wall_time, report.cpu_time, report.peak_memory)

    def count(self, status: str, wall_time: float, cpu_time: float, peak_memory: int) -> None:
        """Count a task by what is known of it."""
        before = self.statuses.get(status, Figures())
        self.statuses[status] = before.with_one(wall_time, cpu_time, peak_memory)

    @property
    def total(self) -> int:
        """How many tasks."""
        return sum(each.items for each in self.statuses.values())

    def _ordered(self) -> list[tuple[str, Figures]]:
        """The most first; as many of each by name, and not by which of their tasks ended first."""
        return sorted(self.statuses.items(), key=lambda each: (-each[1].items, each[0]))

    def __str__(self) -> str:
        counts = "  ".join(f"{name} {each.items}" for name, each in self._ordered())
        return f"{self.total} items: {counts}" if counts else "0 items"

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        head = ("status", "items", "wall time", "the longest", "CPU time", "the largest")
        lines = [
            (
                name,
                str(each.items),
                duration(each.wall_time),
                duration(each.longest),
                duration(each.cpu_time),
                size_text(each.largest),
            )
            for name, each in self._ordered()
        ]
        rows = ["".join(f"<th>{each}</th>" for each in head)]
        rows += ["".join(f"<td>{escape(each)}</td>" for each in line) for line in lines]
        return "<table>{}</table>".format("".join(f"<tr>{row}</tr>" for row in rows))


def summary_of(rows: Iterable[Row]) -> Summary:
    """Count the ends of a record; what is no number there counts as 0."""
    found = Summary()
    for row in rows:
        sizes = (row["wall_time"] or 0.0, row["cpu_time"] or 0.0, row["peak_memory"] or 0)
        found.count(str(row["status"]), *sizes)
    return found
