"""A record as it is read: rows whose cells are what their columns say, whoever wrote them."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pynisher_exec.searches.record_file import (
    COLUMNS,
    SEARCH_COLUMNS,
    RecordError,
    connect,
    look_at,
    told_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

__all__ = ["Reader", "Row", "read"]


@dataclass(frozen=True)
class Row:
    """One end of a task as a record has it: `id`, and the columns by their names."""

    id: int
    fields: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.id if name == "id" else self.fields[name]


@contextlib.contextmanager
def read(path: str | os.PathLike[str]) -> Iterator[Reader]:
    """Open a record to read, also while it is written; RecordError as `Record` says."""
    place = os.fsdecode(path)
    if not Path(place).exists():
        msg = f"record {place}: there is no such file"
        raise RecordError(msg)
    try:
        connection = connect(place, _mode(Path(place)))
        try:
            look_at(connection, place, new=False)
            connection.text_factory = lambda text: text.decode(errors="replace")
            yield Reader(connection)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise told_of(place, error) from error


def _mode(path: Path) -> str:
    """How to open it. Who does so only to read leaves the files of its write-ahead log there.

    Where these cannot be made, and there are none, nobody writes: it is read as it is.
    """
    if os.access(path, os.W_OK) and os.access(path.absolute().parent, os.W_OK):
        return "mode=rw"
    log = path.with_name(f"{path.name}-wal")
    is_whole = not log.exists() or not log.stat().st_size
    return "mode=ro&immutable=1" if is_whole else "mode=ro"


class Reader:
    """What a record holds, as it is at each question."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def tasks(self, *, after: int = 0, statuses: Collection[str] = ()) -> list[Row]:
        """The last end of each key, by id: those written later than that id, of those statuses."""
        marks = ", ".join("?" * len(statuses))
        condition = f"AND status IN ({marks})" if statuses else ""
        found = self._connection.execute(
            f"SELECT id, {', '.join(COLUMNS)} FROM tasks WHERE id > ? {condition} "  # noqa: S608  (names of ours)
            "AND id IN (SELECT max(id) FROM tasks GROUP BY key) ORDER BY id",
            (after, *statuses),
        )
        return [Row(first, _typed(COLUMNS, rest)) for first, *rest in found]

    def searches(self) -> list[dict[str, Any]]:
        """All searches that wrote here, the first one first."""
        found = self._connection.execute(
            f"SELECT id, {', '.join(SEARCH_COLUMNS)} FROM searches ORDER BY id"  # noqa: S608  (names of ours)
        )
        return [{"id": first, **_typed(SEARCH_COLUMNS, rest)} for first, *rest in found]

    def was_cut_off(self) -> bool:
        """Whether a search that wrote here never came to its end; asked where none goes on."""
        return any(each["ended_at"] is None for each in self.searches())

    def is_going_on(self) -> bool:
        """Whether a search that writes here has not ended, as far as this machine can tell."""
        here = socket.gethostname()
        return any(
            each["ended_at"] is None
            and (each["host"] != here or _was_there(each["pid"], each["started_at"]))
            for each in self.searches()
        )


def _typed(columns: Mapping[str, str], cells: Iterable[Any]) -> dict[str, Any]:
    """Give cells by name; SQLite keeps what another program has put there, whatever it is."""
    return {
        name: _cell(kind, cell) for (name, kind), cell in zip(columns.items(), cells, strict=True)
    }


def _cell(kind: str, value: Any) -> Any:
    """Text as text, a number as one; else as if nothing stood there."""
    if kind.startswith("TEXT"):
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        return value if value is None else str(value)
    is_number = isinstance(value, int | float) and math.isfinite(value)
    if is_number and kind.startswith("INTEGER"):
        return int(value)
    return value if is_number else None


def _was_there(pid: int | None, moment: float | None) -> bool:
    """Whether a process lives, and had begun by then: another one may have got its number."""
    if pid is None or moment is None:
        return False
    try:
        return psutil.Process(pid).create_time() <= moment + _CLOCKS
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # or no pid at all
        return False
    except psutil.Error:  # not ours to look at
        return True


_CLOCKS = 2.0
"""Seconds by which the time of day may have been set between a process's begin and its search's."""
