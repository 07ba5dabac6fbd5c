"""Figures of a search's record for papers, by matplotlib (extra `charts`).

Each function takes a record's path, or the rows that `pynisher_exec.searches.reader.read` gives,
draws into `axes` (by default those of a new figure), and gives them back.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from pynisher_exec.page import lanes, limits_of
from pynisher_exec.report import Status
from pynisher_exec.searches.reader import Row, read

try:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator
except ImportError as problem:
    _MESSAGE = "pynisher_exec.charts needs matplotlib: pip install 'pynisher_exec[charts]'"
    raise ImportError(_MESSAGE) from problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Rows = Sequence[Row] | str | os.PathLike[str]

__all__ = ["COLOURS", "timeline", "usage", "wall_times"]

COLOURS = {
    Status.OK: "#2f8f4e",
    Status.EXCEPTION: "#c8372d",
    Status.OS_ERROR: "#b5482f",
    Status.MEMORY: "#8b3fc0",
    Status.CPU_TIME: "#d07a00",
    Status.WALL_TIME: "#b58900",
    Status.PROCESSES: "#0b8a94",
    Status.SIGNAL: "#8f1d3c",
    Status.EXIT: "#8a5a33",
    Status.STARTUP: "#5b6fb5",
    Status.TRANSFER: "#3f7fa8",
    Status.CANCELLED: "#8b9097",
    Status.SUPERVISOR_LOST: "#d1478f",
    Status.UNKILLABLE: "#333840",
    Status.REFUSED: "#6c757d",
}
"""Of each status, as the page of a record has them."""

_MIB = 1 << 20


def timeline(rows: Rows, axes: Any = None) -> Any:
    """A bar for each task, a line for each slot, over the seconds since the first began."""
    rows, axes = _rows(rows), _axes(axes)
    begun = [row for row in rows if row["started_at"] is not None]
    places = lanes([(row["started_at"], row["wall_time"] or 0.0) for row in begun])
    where = {row.id: place for row, place in zip(begun, places, strict=True)}
    first = min((row["started_at"] for row in begun), default=0.0)
    for status, chosen in _by_status(begun):
        mine = [(row, where[row.id]) for row in chosen]
        axes.barh(
            [place for _, place in mine],
            [row["wall_time"] or 0.0 for row, _ in mine],
            left=[row["started_at"] - first for row, _ in mine],
            color=COLOURS[status],
            label=status.value,
        )
    axes.set_xlabel("seconds")
    axes.set_ylabel("slot")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _with_legend(axes)


def usage(rows: Rows, axes: Any = None) -> Any:
    """Peak memory over CPU time, both logarithmic; dashed: the limits that most tasks had."""
    rows, axes = _rows(rows), _axes(axes)
    for status, chosen in _by_status(rows):
        axes.scatter(
            [max(row["cpu_time"] or 0, 1e-3) for row in chosen],
            [max(row["peak_memory"] or 0, 4096) / _MIB for row in chosen],
            s=10,
            color=COLOURS[status],
            label=status.value,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    cpu, memory = _limit(rows, "cpu_time"), _limit(rows, "memory")
    if cpu is not None:
        axes.axvline(cpu, linestyle="--", color="gray")
    if memory is not None:
        axes.axhline(memory / _MIB, linestyle="--", color="gray")
    axes.set_xlabel("CPU time (s)")
    axes.set_ylabel("peak memory (MiB)")
    return _with_legend(axes)


def wall_times(rows: Rows, axes: Any = None, bins: int = 30) -> Any:
    """How long the tasks took, by status, from the start of the function to its end."""
    rows, axes = _rows(rows), _axes(axes)
    groups = list(_by_status(rows))
    if groups:
        axes.hist(
            [[row["wall_time"] or 0.0 for row in chosen] for _, chosen in groups],
            bins=bins,
            stacked=True,
            color=[COLOURS[status] for status, _ in groups],
            label=[status.value for status, _ in groups],
        )
    axes.set_xlabel("wall time (s)")
    axes.set_ylabel("tasks")
    return _with_legend(axes)


def _rows(rows: Rows) -> Sequence[Row]:
    if not isinstance(rows, str | os.PathLike):
        return rows
    with read(rows) as reader:
        return reader.tasks()


def _axes(axes: Any) -> Any:
    return plt.subplots()[1] if axes is None else axes


def _with_legend(axes: Any) -> Any:
    if axes.get_legend_handles_labels()[1]:  # matplotlib warns of one without entries
        axes.legend()
    return axes


def _by_status(rows: Sequence[Row]) -> Iterator[tuple[Status, list[Row]]]:
    for status in Status:
        chosen = [row for row in rows if row["status"] == status.value]
        if chosen:
            yield status, chosen


def _limit(rows: Sequence[Row], name: str) -> float | None:
    values = Counter(found[name] for row in rows if name in (found := limits_of(row["limits"])))
    return values.most_common(1)[0][0] if values else None
