"""The file of a record: its tables, how it is opened, and what is refused as none of ours."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from urllib.parse import quote

__all__ = [
    "COLUMNS",
    "SEARCH_COLUMNS",
    "RecordError",
    "connect",
    "look_at",
    "open_record",
    "told_of",
]

APPLICATION = 0x6C696D74
"""What stands in the header of each record; "limt"."""

VERSION = 1
"""Of the tables below."""

BUSY = 20.0
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

SEARCH_COLUMNS = {
    "function": "TEXT NOT NULL",
    "slots": "INTEGER",
    "pid": "INTEGER NOT NULL",
    "host": "TEXT NOT NULL",
    "started_at": "REAL NOT NULL",
    "ended_at": "REAL",
}
"""Of the table `searches`, beside its `id`."""

_SEARCHES, _TASKS = (
    "CREATE TABLE {} (id INTEGER PRIMARY KEY, {})".format(
        table, ", ".join(f"{name} {kind}" for name, kind in columns.items())
    )
    for table, columns in (("searches", SEARCH_COLUMNS), ("tasks", COLUMNS))
)
_INDEX = "CREATE INDEX tasks_by_key ON tasks (key)"


class RecordError(RuntimeError):
    """A record cannot be read or written; the message says which file and why."""


def connect(path: str, mode: str) -> sqlite3.Connection:
    """Open with transactions of our own, and for the thread that will have it."""
    place = quote(os.fsencode(Path(path).absolute()))
    return sqlite3.connect(
        f"file:{place}?{mode}",
        uri=True,
        timeout=BUSY,
        isolation_level=None,
        check_same_thread=False,
    )


def open_record(path: str) -> sqlite3.Connection:
    """Open for writing, make the tables where the file is new, and look whether they are ours."""
    try:
        connection = connect(path, "mode=rwc")
    except sqlite3.Error as error:
        raise told_of(path, error) from error
    try:
        look_at(connection, path, new=True)
        if not _version(connection):
            _make(connection, path)
        _write_ahead(connection)
        # A commit survives this process without waiting for the disk; after a power failure the
        # last ones may be missing, and the file is whole (SQLite's documentation of this pragma).
        connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error as error:
        connection.close()
        raise told_of(path, error) from error
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


def look_at(connection: sqlite3.Connection, path: str, *, new: bool) -> None:
    """RecordError for what is not ours, by its header; `new`: an empty file will do."""
    connection.execute("BEGIN")  # as one look: another process may be making the tables
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        version = _version(connection)
    finally:
        with contextlib.suppress(sqlite3.Error):  # what failed has ended it, and is what is told
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
    look_at(connection, path, new=False)


def told_of(path: str, error: sqlite3.Error) -> RecordError:
    """Say what SQLite said, of which file, and what it leaves out."""
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
