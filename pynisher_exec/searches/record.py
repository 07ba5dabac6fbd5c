"""A search on disk: one SQLite file, a row for each task that has ended, written as it ends.

It holds text, numbers and JSON, never pickles, so to open somebody else's record runs nothing. The
header says whose file it is (`PRAGMA application_id`) and of which version its tables are
(`PRAGMA user_version`). Any SQLite tool reads it:

    searches   one row for each call of `reports(..., record=...)`: function, slots (tasks at once;
               null: not known), pid and host of the caller, started_at, ended_at (null while it
               goes on, and for ever where its caller was killed)
    tasks      one row for each end of a task: search (`searches.id`), key (what a resumed search
               knows the item by), arguments (JSON, or their repr as a JSON string), and what
               `pynisher_exec.Report` says under the same names; limits, result and rusage are JSON,
               exception is the name of its class. Sizes are bytes, durations seconds, moments
               seconds since 1970, `recorded_at` that of the row. A key that was run again has
               several rows: the last one counts.

Several processes may write to one file: each write is one transaction, in write-ahead mode where
the file system has that, and what has been committed survives the kill of its writer.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import time
from typing import TYPE_CHECKING, Any

from pynisher_exec.report import plain
from pynisher_exec.searches.record_file import COLUMNS, RecordError, open_record, told_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pynisher_exec.report import Report

__all__ = ["Record", "RecordError"]

_INSERT = "INSERT INTO tasks ({}) VALUES ({})".format(  # noqa: S608  (names of ours)
    ", ".join(COLUMNS), ", ".join(f":{name}" for name in COLUMNS)
)


class Record:
    """One search's part in a record, which is made where there is none.

    For one thread at a time. Raises RecordError where the file is another program's, another
    version's, damaged, or cannot be written; nothing in it is changed then.
    """

    def __init__(self, path: str | os.PathLike[str], function: str, slots: int | None) -> None:
        self.path = os.fsdecode(path)
        self._connection = open_record(self.path)
        try:
            with self._told(), self._transaction():
                self._search = self._begin(function, slots)
        except BaseException:
            self._connection.close()
            raise

    def _begin(self, function: str, slots: int | None) -> int:
        cursor = self._connection.execute(
            "INSERT INTO searches (function, slots, pid, host, started_at) VALUES (?, ?, ?, ?, ?)",
            (function, slots, os.getpid(), socket.gethostname(), _now()),
        )
        search = cursor.lastrowid
        assert search is not None  # noqa: S101  (an INSERT has one)
        return search

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Have errors name the file."""
        try:
            yield
        except sqlite3.Error as error:
            raise told_of(self.path, error) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing; waits for other writers first, not in the midst of it."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
                self._connection.execute("ROLLBACK")
            raise

    def last_statuses(self) -> dict[str, str]:
        """By key, how it ended the last time."""
        with self._told():
            found = self._connection.execute(
                "SELECT key, status FROM tasks WHERE id IN (SELECT max(id) FROM tasks GROUP BY key)"
            )
            return dict(found.fetchall())

    def write(self, ends: Sequence[tuple[str, tuple[Any, ...], Report]]) -> None:
        """Write ends of tasks: key, arguments and report of each."""
        rows = [self._row(*end) for end in ends]
        with self._told(), self._transaction():
            self._connection.executemany(_INSERT, rows)

    def _row(self, key: str, arguments: tuple[Any, ...], report: Report) -> dict[str, Any]:
        facts = report.to_dict()
        error = facts["exception"] or {}
        return {
            **{name: facts.get(name) for name in COLUMNS},
            "search": self._search,
            "key": _storable(key),
            "arguments": _json(arguments),
            "message": _storable(facts["message"]),
            "result": None if report.result is None else _json(facts["result"]),
            "exception": error.get("type"),
            "traceback": _storable(report.traceback),
            "stdout": _storable(facts["stdout"]),
            "stderr": _storable(facts["stderr"]),
            "limits": _json(facts["limits"]),
            "rusage": None if facts["rusage"] is None else _json(facts["rusage"]),
            "recorded_at": _now(),
        }

    def close(self, *, ended: bool) -> None:
        """Let go of the file; `ended`: the search has come to its end."""
        try:
            if ended:
                with self._told(), self._transaction():
                    self._connection.execute(
                        "UPDATE searches SET ended_at = ? WHERE id = ?", (_now(), self._search)
                    )
        finally:
            self._connection.close()


def _now() -> float:
    """The time of day, which is told and from which nothing is decided."""
    return time.time()


def _storable(text: str | None) -> str | None:
    """SQLite takes no lone surrogates, which stand for bytes that are no text."""
    return None if text is None else text.encode(errors="replace").decode()


def _json(value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False, default=plain)
    except (TypeError, ValueError, RecursionError):
        text = f"<{type(value).__name__} that cannot be shown>"
        with contextlib.suppress(Exception):  # a foreign __repr__ may raise anything
            text = repr(value)
        return json.dumps(text[:_LONGEST_TEXT])


_LONGEST_TEXT = 10_000
"""Characters kept of what has no form in JSON."""
