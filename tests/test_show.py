"""`python -m pynisher_exec show`: a record as a table, as CSV, as JSON, and as it grows."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import pty
import sqlite3
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest

from pynisher_exec import Report, Status
from pynisher_exec.page import build
from pynisher_exec.searches.reader import read
from pynisher_exec.searches.record import Record
from pynisher_exec.searches.record_file import COLUMNS
from pynisher_exec.show import _shorten_items, printable

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 40


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A record of three tasks."""
    place = str(tmp_path / "search.db")
    record = Record(place, "mine.train", 2)
    record.write(
        [
            ("train(1)", (1,), Report(Status.OK, result=0.5, wall_time=2.0, peak_memory=10 << 20)),
            ("train(2)", (2,), Report(Status.MEMORY, message="limit passed", peak_memory=90 << 20)),
            ("train(3)", (3,), Report(Status.OK, result="\x1b[31mred", wall_time=100.0)),
        ]
    )
    record.close(ended=True)
    return place


def show(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return run("show", *arguments)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "pynisher_exec", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_table_has_a_line_for_each_item(path: str) -> None:
    """And a summary; what a task wrote gives the terminal no orders."""
    lines = show(path).stdout.splitlines()
    assert lines[0].split()[:3] == ["id", "status", "wall"]
    assert [line.split()[1] for line in lines[1:4]] == ["ok", "memory", "ok"]
    assert lines[-1] == "3 items: ok 2  memory 1"
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("columns", [120, 80, 60, 40])
def test_terminal_has_the_item_in_each_line(path: str, columns: int) -> None:
    """Whatever else has to be left out; and no line is longer than it is wide."""
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    command = [sys.executable, "-m", "pynisher_exec", "show", path]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    subprocess.run(command, stdout=far, check=True, timeout=PATIENCE, env=environment)
    os.close(far)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(near, 4096):
            shown += part
    os.close(near)
    lines = shown.decode().splitlines()
    assert max(map(len, lines)) <= columns
    for number, line in enumerate(lines[1:4], 1):
        assert f"train({number})" in line


def test_search_of_a_pid_that_is_anothers_by_now_has_ended(tmp_path: Path) -> None:
    """Its caller was killed, and another process, this one, has got its number since."""
    place = str(tmp_path / "search.db")
    record = Record(place, "mine.train", 2)
    record._connection.execute("UPDATE searches SET started_at = started_at - 1e6")
    with read(place) as reader:
        assert not reader.is_going_on()
    record._connection.execute("UPDATE searches SET started_at = started_at + 1e6")
    with read(place) as reader:
        assert reader.is_going_on()
    record.close(ended=True)


def test_statuses_are_chosen_and_columns_sorted(path: str) -> None:
    """Numbers: the largest first."""
    rows = json.loads(show(path, "--status", "ok", "--sort", "wall_time", "--json").stdout)
    assert [row["key"] for row in rows] == ["train(3)", "train(1)"]
    rows = json.loads(show(path, "--sort", "peak_memory", "--json").stdout)
    assert [row["id"] for row in rows] == [2, 1, 3]
    assert rows[1]["result"] == 0.5
    assert rows[1]["arguments"] == [1]


def test_csv_has_all_columns(path: str) -> None:
    """As any tool reads them."""
    rows = list(csv.DictReader(io.StringIO(show(path, "--csv").stdout)))
    assert [row["status"] for row in rows] == ["ok", "memory", "ok"]
    assert rows[1]["message"] == "limit passed"


def test_followed_record_ends_with_its_search(path: str) -> None:
    """All that is there is printed, then the summary."""
    done = show(path, "--follow")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "3 items: ok 2  memory 1"


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--status", "nonsense"], "no status", 125),
        (["--sort", "nonsense"], "invalid choice", 125),
        (["--follow", "--sort", "id"], "cannot --sort", 125),
    ],
)
def test_wrong_use_is_told(path: str, arguments: list[str], message: str, code: int) -> None:
    """With the status of a command line that is wrong."""
    done = show(path, *arguments)
    assert message in done.stderr
    assert done.returncode == code


def test_file_that_is_no_record_is_told(tmp_path: Path) -> None:
    """In one line."""
    done = show(str(tmp_path / "nothing.db"))
    assert done.returncode == 1
    assert done.stderr.strip().endswith("there is no such file")


def test_text_for_a_terminal_has_no_orders() -> None:
    """And is one line."""
    assert printable("a\nb\x1b[2J\u202e") == "a\\nb\\x1b[2J\\u202e"
    assert printable("ä ✓") == "ä ✓"


CELLS = [b"\xff", "text", 1e400, -1, 2.5, "", None]


@pytest.mark.parametrize("column", COLUMNS)
def test_record_of_another_program_is_shown(path: str, tmp_path: Path, column: str) -> None:
    """SQLite keeps what it puts into a column, of whatever type: no traceback, here or there."""
    connection = sqlite3.connect(path)
    for place, cell in enumerate(CELLS):
        with contextlib.suppress(sqlite3.IntegrityError):  # NOT NULL
            statement = f"UPDATE tasks SET {column} = ? WHERE id = ?"  # noqa: S608  (ours)
            connection.execute(statement, (cell, place % 3 + 1))
            connection.commit()
            with read(path) as reader:
                rows = reader.tasks()
                assert build(rows, reader.searches(), name="", going_on=False)
    connection.execute("UPDATE searches SET function = x'ff', started_at = 'then'")
    connection.commit()
    connection.close()
    done = show(path, "--sort", column)
    assert (done.returncode, done.stderr) == (0, "")
    assert run("report", path, "-o", str(tmp_path / "page.html")).returncode == 0


def test_page_that_cannot_be_written_leaves_the_last_one(path: str, tmp_path: Path) -> None:
    """A full disk, here a file that may not grow: whole, or as it was."""
    page = tmp_path / "page.html"
    page.write_text("the last one")
    connection = sqlite3.connect(path)
    connection.execute("UPDATE tasks SET result = ?", ("x" * 8000,))
    connection.commit()
    connection.close()
    command = [sys.executable, "-m", "pynisher_exec", "report", path, "-o", str(page)]
    done = subprocess.run(
        ["sh", "-c", "ulimit -f 80; trap '' XFSZ; exec \"$@\"", "sh", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f"pynisher_exec: {page}: File too large"
    assert page.read_text() == "the last one"
    assert sorted(each.name for each in tmp_path.glob("page*")) == ["page.html"]


def test_page_never_takes_the_records_place(path: str) -> None:
    """Its name for both is a slip."""
    done = run("report", path, "-o", path)
    assert (done.returncode, "this is the record" in done.stderr) == (1, True)
    assert show(path).returncode == 0


def test_record_in_a_place_that_cannot_be_written_is_shown(path: str, tmp_path: Path) -> None:
    """A mount that is read-only; in a file that SQLite has to take as it is."""
    with read(path) as reader:
        rows = reader.tasks()
    mounted = (
        f'mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path} && exec "$@"'
    )
    command = [sys.executable, "-m", "pynisher_exec", "show", path]
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", mounted, "sh", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("no mount of one's own here")
    assert done.stdout.splitlines()[-1] == f"{len(rows)} items: ok 2  memory 1"


def test_followed_record_of_a_caller_that_has_gone_says_so(tmp_path: Path) -> None:
    """Else it looks like one that has come to its end."""
    place = str(tmp_path / "search.db")
    record = Record(place, "mine.train", 2)
    record.write([("a", (1,), Report(Status.OK)), ("a", (1,), Report(Status.EXCEPTION))])
    record._connection.execute("UPDATE searches SET pid = 1 << 30")
    lines = show(place, "--follow").stdout.splitlines()
    assert lines[-2:] == [
        "1 items: exception 1",
        "A search that wrote here has not come to its end: its caller has gone.",
    ]
    record.close(ended=True)


def test_what_all_items_share_is_said_once() -> None:
    """In a terminal, where both ends of a long item do not fit."""
    lines = [["id", "status", *"abcd", "item", "result"]]
    lines += [[*"123456", f"train({{'depth': {n}, 'rate': 0.1}})", ""] for n in (31, 32)]
    _shorten_items(lines)
    assert [line[6] for line in lines] == [
        "item: train({'depth': …",
        "…31, 'rate': 0.1})",
        "…32, 'rate': 0.1})",
    ]
