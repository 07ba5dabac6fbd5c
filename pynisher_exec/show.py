"""`python -m pynisher_exec show search.db`: a search's record as a table, also while it goes on."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from pynisher_exec.limits import size_text
from pynisher_exec.report import Status
from pynisher_exec.searches.progress import duration
from pynisher_exec.searches.reader import Reader, Row, read
from pynisher_exec.searches.record_file import COLUMNS, RecordError
from pynisher_exec.searches.summary import summary_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["add_to", "printable"]

LOOK_EVERY = 0.5
"""Seconds between two looks at a record that is followed."""

_JSON_COLUMNS = {"arguments", "result", "limits", "rusage"}
_NUMBERS = {"id", *(name for name, kind in COLUMNS.items() if kind.startswith(("INT", "REAL")))}


def add_to(actions: argparse._SubParsersAction[Any]) -> None:
    """Add this action to a command line."""
    show = actions.add_parser("show", help="print the record of a search as a table")
    show.add_argument("record", help="the file that reports(..., record=...) wrote")
    show.add_argument("--status", action="append", metavar="STATUS", help="only these; repeatable")
    show.add_argument(
        "--sort", choices=["id", *COLUMNS], metavar="COLUMN", help="numbers: largest first"
    )
    shape = show.add_mutually_exclusive_group()
    shape.add_argument("--csv", action="store_true", help="all columns, comma-separated")
    shape.add_argument("--json", action="store_true", help="all columns, an array of objects")
    shape.add_argument("--follow", action="store_true", help="print more as it comes, to the end")
    show.set_defaults(action=_show, parser=show)


def _show(options: argparse.Namespace) -> int:
    statuses = _statuses(options)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may know no more than ASCII
        sys.stdout.reconfigure(errors="backslashreplace")
    if options.follow and options.sort:
        options.parser.error("--follow prints in the order of time: it cannot --sort")
    try:
        with read(options.record) as reader:
            if options.follow:
                with _leaving_reader():
                    _follow(reader, statuses)
                return 0
            rows = _sorted(reader.tasks(statuses=statuses), options.sort)
    except RecordError as error:
        print(f"pynisher_exec: {error}", file=sys.stderr)  # noqa: T201  (a command line's voice)
        return 1
    write = _write_csv if options.csv else _write_json if options.json else _write_table
    with _leaving_reader():
        write(rows, sys.stdout)
        sys.stdout.flush()
    return 0


@contextlib.contextmanager
def _leaving_reader() -> Iterator[None]:
    """Whoever reads may have seen enough: `| head`."""
    try:
        yield
    except BrokenPipeError:
        sys.stdout = open("/dev/null", "w", encoding="utf-8")  # noqa: SIM115  (for the last flush)


def _statuses(options: argparse.Namespace) -> list[str]:
    wanted = [name for text in options.status or () for name in text.split(",")]
    known = [status.value for status in Status]
    for name in wanted:
        if name not in known:
            options.parser.error(f"--status={name}: no status, which are {', '.join(known)}")
    return wanted


def _sorted(rows: list[Row], column: str | None) -> list[Row]:
    if column is None:
        return rows
    filled = [row for row in rows if row[column] is not None]
    filled.sort(key=lambda row: row[column], reverse=column in _NUMBERS and column != "id")
    return [*filled, *(row for row in rows if row[column] is None)]


def _write_csv(rows: Sequence[Row], file: TextIO) -> None:
    writer = csv.writer(file)
    names = ["id", *COLUMNS]
    writer.writerow(names)
    safe = printable if file.isatty() else str
    for row in rows:
        cells = ("" if row[name] is None else row[name] for name in names)
        writer.writerow([safe(cell) if isinstance(cell, str) else cell for cell in cells])


def _write_json(rows: Sequence[Row], file: TextIO) -> None:
    found = [{name: _loaded(name, row[name]) for name in ("id", *COLUMNS)} for row in rows]
    json.dump(found, file, indent=2, default=repr)
    file.write("\n")


def _loaded(name: str, value: Any) -> Any:
    """Columns of JSON become part of it; another program may have put there anything."""
    if name not in _JSON_COLUMNS or value is None:
        return value
    try:
        found = json.loads(value)
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return value
    return found


# -- the table ------------------------------------------------------------------------------------


class _Column(NamedTuple):
    title: str
    text: Callable[[Row], str]
    right: bool = False


def _result(row: Row) -> str:
    return str(row["message"] or row["result"] or "")


_TABLE = (
    _Column("id", lambda row: str(row["id"]), right=True),
    _Column("status", lambda row: str(row["status"])),
    _Column("wall", lambda row: duration(row["wall_time"]), right=True),
    _Column("cpu", lambda row: duration(row["cpu_time"]), right=True),
    _Column("peak", lambda row: size_text(row["peak_memory"]), right=True),
    _Column("procs", lambda row: str(row["peak_processes"]), right=True),
    _Column("item", lambda row: str(row["key"])),
    _Column("result", _result),
)
_FREE = 2
"""Columns at the end that share what is left of the line."""

_WIDEST = 120
"""Characters to which a column is filled up in a file, where nothing is cut."""

_LEAST_FREE = 30
"""Characters that they have at least where there are any: others go first, in this order."""

_SPARED = (5, 3, 4, 0, 2)


def _write_table(rows: Sequence[Row], file: TextIO) -> None:
    lines = [[column.title for column in _TABLE], *map(_cells, rows)]
    widths = _widths(lines)
    if file.isatty() and _left(shutil.get_terminal_size().columns, widths) < 0:
        _shorten_items(lines)
        widths = _widths(lines)
    widths = _fitted(widths, file)
    for line in lines:
        print(_joined(line, widths, is_cut=file.isatty()), file=file)
    print(_summary(rows), file=file)


def _widths(lines: list[list[str]]) -> list[int]:
    return [max(len(line[place]) for line in lines) for place in range(len(_TABLE))]


def _shorten_items(lines: list[list[str]]) -> None:
    """Say once, in the title, what all items begin with: there is not room for both ends of each.

    Up to a bracket, a comma, a blank or a slash, so that no number is cut apart.
    """
    place = [column.title for column in _TABLE].index("item")
    shared = os.path.commonprefix([line[place] for line in lines[1:]])  # noqa: RUF071  (no paths)
    shared = shared[: max(map(shared.rfind, "([{,/ ")) + 1]
    if len(lines) > 2 and len(shared) > _LEAST_SHARED:  # noqa: PLR2004  (title and two items)
        for line in lines[1:]:
            line[place] = "…" + line[place][len(shared) :]
        lines[0][place] = f"item: {shared}…"


_LEAST_SHARED = 10
"""Characters that are worth it."""


def _cells(row: Row) -> list[str]:
    return [printable(_text(column, row)) for column in _TABLE]


def _text(column: _Column, row: Row) -> str:
    try:
        return column.text(row)
    except TypeError:  # no number: another program may have written there
        return "?"


def _fitted(widths: list[int], file: TextIO) -> list[int]:
    """In a terminal a line fits, in a file nothing is cut. A column of no width is left out.

    What it costs is borne by the last two columns; where they would have too little, by figures.
    """
    if not file.isatty():
        return [*widths[:-_FREE], *(min(width, _WIDEST) for width in widths[-_FREE:])]
    columns = shutil.get_terminal_size().columns
    fixed, free = widths[:-_FREE], widths[-_FREE:]
    for place in _SPARED:
        if _left(columns, fixed) >= min(sum(free), _LEAST_FREE):
            break
        fixed[place] = 0
    left = max(_left(columns, fixed), 2)
    item = min(free[0], max(left // 2, left - free[1]))
    return [*fixed, item, left - item]


def _left(columns: int, fixed: Sequence[int]) -> int:
    return columns - sum(width + 2 for width in fixed if width) - 2


def _joined(line: Iterable[str], widths: Iterable[int], *, is_cut: bool = True) -> str:
    parts = []
    for text, width, column in zip(line, widths, _TABLE, strict=True):
        if not width:
            continue
        cut = text[: width - 1] + "…" if is_cut and len(text) > width else text
        parts.append(cut.rjust(width) if column.right else cut.ljust(width))
    return "  ".join(parts).rstrip()


def printable(text: str) -> str:
    """Text as one line that no terminal takes for orders: what a task wrote may hold any byte."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def _summary(rows: Sequence[Row]) -> str:
    return printable(str(summary_of(rows)))


def _follow(reader: Reader, statuses: Sequence[str]) -> None:
    """Print what is there and what comes, until no search writes any more."""
    seen = 0
    widths = [5, 15, 12, 12, 10, 5, 40, 60]
    titles = [column.title for column in _TABLE]
    print(_joined(titles, _fitted(widths, sys.stdout)))  # noqa: T201  (a command line's voice)
    going_on = True
    shown: dict[Any, Row] = {}  # one that is run again counts once
    try:
        while True:
            going_on = reader.is_going_on()  # asked first: what was written before it ended is read
            rows = reader.tasks(after=seen, statuses=statuses)
            for row in rows:
                print(_joined(_cells(row), _fitted(widths, sys.stdout)), flush=True)  # noqa: T201
            shown |= {row["key"]: row for row in rows}
            seen = rows[-1].id if rows else seen
            if not going_on:
                break
            time.sleep(LOOK_EVERY)
    except KeyboardInterrupt:
        print()  # noqa: T201
    print(_summary(list(shown.values())))  # noqa: T201
    if not going_on and reader.was_cut_off():
        print("A search that wrote here has not come to its end: its caller has gone.")  # noqa: T201
