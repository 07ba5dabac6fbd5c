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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psutil

from pynisher_exec.report import plain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from pynisher_exec.report import Report

__all__ = ["COLUMNS", "Record", "RecordError", "Row", "read"]

APPLICATION = 0x6C696D74
"""What stands in the header of each record; "limt"."""

VERSION = 1
"""Of the tables below."""

BUSY = 60.0
"""Seconds that one writer waits for another."""

COLUMNS = {
    "search": "INTEGER NOT NULL REFERENCES searches",
    "key": "TEXT NOT NULL",
    "arguments": "TEXT NOT NULL",
    "status": "TEXT NOT NULL",
    "message": "TEXT NOT NULL",
    "result": "TEXT",
    "exception": "TEXT",
    "traceback": "TEXT",
    "exit_code": "INTEGER",
    "signal": "TEXT",
    "os_errno": "INTEGER",
    "wall_time": "REAL NOT NULL",
    "cpu_time": "REAL NOT NULL",
    "peak_memory": "INTEGER NOT NULL",
    "peak_processes": "INTEGER NOT NULL",
    "limit_reached": "TEXT",
    "stdout": "TEXT",
    "stderr": "TEXT",
    "limits": "TEXT NOT NULL",
    "started_at": "REAL",
    "recorded_at": "REAL NOT NULL",
    "pid": "INTEGER",
    "rusage": "TEXT",
}
"""Of the table `tasks`, beside its `id`."""

_SEARCHES = """
CREATE TABLE searches (
    id INTEGER PRIMARY KEY,
    function TEXT NOT NULL,
    slots INTEGER,
    pid INTEGER NOT NULL,
    host TEXT NOT NULL,
    started_at REAL NOT NULL,
    ended_at REAL
)"""
_TASKS = "CREATE TABLE tasks (id INTEGER PRIMARY KEY, {})".format(
    ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
)
_INDEX = "CREATE INDEX tasks_by_key ON tasks (key)"
_INSERT = "INSERT INTO tasks ({}) VALUES ({})".format(  # noqa: S608  (names of ours)
    ", ".join(COLUMNS), ", ".join(f":{name}" for name in COLUMNS)
)


class RecordError(RuntimeError):
    """A record cannot be read or written; the message says which file and why."""


@dataclass(frozen=True)
class Row:
    """One end of a task as a record has it: `id`, and the columns by their names."""

    id: int
    fields: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.id if name == "id" else self.fields[name]


class Record:
    """One search's part in a record, which is made where there is none.

    For one thread at a time. Raises RecordError where the file is another program's, another
    version's, damaged, or cannot be written; nothing in it is changed then.
    """

    def __init__(self, path: str | os.PathLike[str], function: str, slots: int | None) -> None:
        self.path = os.fsdecode(path)
        self._connection = _open(self.path)
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
            raise _told_of(self.path, error) from error

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


def _told_of(path: str, error: sqlite3.Error) -> RecordError:
    reason = str(error)
    if "unable to open" in reason or "readonly" in reason:
        with contextlib.suppress(OSError):  # a name too long, a folder that is closed to us
            reason = _why_closed(Path(path)) or reason
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        reason = f"no record, or a damaged one ({error})"
    return RecordError(f"record {path}: {reason}")


def _why_closed(path: Path) -> str:
    """Why a file cannot be opened: SQLite says no more than that. Empty for what is not seen."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if path.is_dir():
        return "a folder, and no file"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return "this user may not write there"
    return ""


def _connect(path: str, mode: str) -> sqlite3.Connection:
    """Open with transactions of our own, and for the thread that will have it."""
    place = quote(os.fsencode(Path(path).absolute()))
    return sqlite3.connect(
        f"file:{place}?{mode}",
        uri=True,
        timeout=BUSY,
        isolation_level=None,
        check_same_thread=False,
    )


def _open(path: str) -> sqlite3.Connection:
    """Open for writing, make the tables where the file is new, and look whether they are ours."""
    try:
        connection = _connect(path, "mode=rwc")
    except sqlite3.Error as error:
        raise _told_of(path, error) from error
    try:
        _look_at(connection, path, new=True)
        if not _version(connection):
            _make(connection, path)
        _write_ahead(connection)
        # A commit survives this process without waiting for the disk; after a power failure the
        # last ones may be missing, and the file is whole (SQLite's documentation of this pragma).
        connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error as error:
        connection.close()
        raise _told_of(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Set that mode; SQLite does not wait by itself where another connection is about to, too."""
    deadline = time.monotonic() + BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:  # noqa: PERF203  (it waits)
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _look_at(connection: sqlite3.Connection, path: str, *, new: bool) -> None:
    """RecordError for what is not ours, by its header; `new`: an empty file will do."""
    connection.execute("BEGIN")  # as one look: another process may be making the tables
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        version = _version(connection)
    finally:
        connection.execute("ROLLBACK")
    if new and not (application or tables or version):
        return
    if application != APPLICATION:
        msg = f"record {path}: a database of another program, or none"
        raise RecordError(msg)
    if version != VERSION:
        msg = f"record {path}: of version {version}, and this pynisher_exec reads version {VERSION}"
        raise RecordError(msg)
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        msg = f"record {path}: damaged ({' '.join(found.split())})"
        raise RecordError(msg)


def _make(connection: sqlite3.Connection, path: str) -> None:
    """Make the tables, unless another process has made them meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not _version(connection):
            for statement in (_SEARCHES, _TASKS, _INDEX):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    _look_at(connection, path, new=False)


@contextlib.contextmanager
def read(path: str | os.PathLike[str]) -> Iterator[Reader]:
    """Open a record to read, also while it is written; RecordError as `Record` says."""
    place = os.fsdecode(path)
    if not Path(place).exists():
        msg = f"record {place}: there is no such file"
        raise RecordError(msg)
    # Who opens it only to read leaves the files of its write-ahead log there.
    mode = "mode=rw" if os.access(place, os.W_OK) else "mode=ro"
    try:
        connection = _connect(place, mode)
        try:
            _look_at(connection, place, new=False)
            yield Reader(connection)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise _told_of(place, error) from error


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
        return [Row(first, dict(zip(COLUMNS, rest, strict=True))) for first, *rest in found]

    def searches(self) -> list[dict[str, Any]]:
        """All searches that wrote here, the first one first."""
        found = self._connection.execute("SELECT * FROM searches ORDER BY id")
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found]

    def is_going_on(self) -> bool:
        """Whether a search that writes here has not ended, as far as this machine can tell."""
        here = socket.gethostname()
        return any(
            each["ended_at"] is None
            and (each["host"] != here or _was_there(each["pid"], each["started_at"]))
            for each in self.searches()
        )


def _was_there(pid: int, moment: float) -> bool:
    """Whether a process lives, and had begun by then: another one may have got its number."""
    try:
        return psutil.Process(pid).create_time() <= moment + _CLOCKS
    except (psutil.NoSuchProcess, TypeError, ValueError, OverflowError):  # or no pid at all
        return False
    except psutil.Error:  # not ours to look at
        return True


_CLOCKS = 2.0
"""Seconds by which the time of day may have been set between a process's begin and its search's."""
