"""A search's record: written as tasks end, whole whatever happens, resumed by key, only data."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import wait_until

from pynisher_exec import LimitedProcessExecutor, Report
from pynisher_exec.searches import record
from pynisher_exec.searches.follower import Wishes, follow
from pynisher_exec.searches.reader import read
from pynisher_exec.searches.record import Record, RecordError
from pynisher_exec.searches.record_file import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 40


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the record shall be."""
    return str(tmp_path / "search.db")


@pytest.fixture
def executor() -> Iterator[LimitedProcessExecutor]:
    """One with limits that some of the calls below meet."""
    with LimitedProcessExecutor(2, memory="200MiB", wall_time=20) as made:
        yield made


def behave(number: int) -> dict[str, int]:
    """Return, fail, or take too much."""
    if number == 1:
        raise ValueError(number)
    if number == 2:
        return {"size": len(bytearray(1 << 30))}
    return {"number": number}


def statuses(path: str) -> dict[str, str]:
    """By key, how it ended last."""
    with read(path) as reader:
        return {row["key"]: row["status"] for row in reader.tasks()}


def test_each_report_is_a_row(executor: LimitedProcessExecutor, path: str) -> None:
    """With the item's key and arguments, and all that the report says, in plain SQLite."""
    reports = list(executor.reports(behave, [0, 1, 2, 3], record=path))
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT key, arguments, status, result, exception FROM tasks"
    ).fetchall()
    connection.close()
    name = f"{behave.__module__}.behave"
    assert sorted(rows) == [
        (f"{name}(0)", "[0]", "ok", '{"number": 0}', None),
        (f"{name}(1)", "[1]", "exception", None, "ValueError"),
        (f"{name}(2)", "[2]", "memory", None, "MemorylimitException"),
        (f"{name}(3)", "[3]", "ok", '{"number": 3}', None),
    ]
    assert [report.status for report in reports] == ["ok", "exception", "memory", "ok"]


def test_what_has_been_yielded_is_in_the_record(
    executor: LimitedProcessExecutor, path: str
) -> None:
    """Whatever comes after: nothing that was seen is lost."""
    reports = executor.reports(behave, [0] * 30, record=path, key=lambda _: "same", ordered=False)
    for seen, _ in enumerate(reports, 1):
        connection = sqlite3.connect(path)
        (count,) = connection.execute("SELECT count(*) FROM tasks").fetchone()
        connection.close()
        assert count >= seen


def test_resumed_search_leaves_out_what_is_there(
    executor: LimitedProcessExecutor, path: str
) -> None:
    """And runs the rest, and what `retry` names, whose last row counts."""
    assert len(list(executor.reports(behave, [0, 1], record=path))) == 2
    reports = list(executor.reports(behave, [0, 1, 2, 3], record=path, resume=True))
    assert [report.status for report in reports] == ["memory", "ok"]
    view = executor.limit(memory=None)
    again = list(view.reports(behave, [0, 1, 2, 3], record=path, resume=True, retry={"memory"}))
    assert [report.status for report in again] == ["ok"]
    assert set(statuses(path).values()) == {"ok", "exception"}
    assert list(executor.reports(behave, [0, 1, 2, 3], record=path, resume=True)) == []


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([object()], "has no canonical form in JSON"),
        ([{1: 2}], "has no canonical form in JSON"),
        ([float("nan")], "has no canonical form in JSON"),
        ([b"bytes"], "has no canonical form in JSON"),
    ],
)
def test_arguments_without_a_canonical_form_want_a_key(
    executor: LimitedProcessExecutor, path: str, items: list[Any], message: str
) -> None:
    """A pickle's bytes are none, and two items must not be taken for one."""
    with pytest.raises(ValueError, match=message):
        list(executor.reports(behave, items, record=path))
    reports = list(executor.reports(repr, items, record=path, key=lambda _: "one"))
    assert [report.status for report in reports] == ["ok"]


@pytest.mark.parametrize("function", [lambda n: n, [1].append, behave.__call__])  # type: ignore[operator]
def test_function_without_a_name_of_its_own_wants_a_key(
    executor: LimitedProcessExecutor, path: str, function: Any
) -> None:
    """A lambda is called as every other one, a method does not say whose it is."""
    with pytest.raises(ValueError, match="pass key="):
        executor.reports(function, [1], record=path)


def test_key_is_asked_for_once(executor: LimitedProcessExecutor, path: str) -> None:
    """What is compared with the record is what is written there."""
    asked: list[int] = []

    def key(number: int) -> str:
        asked.append(number)
        return f"{number} by question {len(asked)}"

    list(executor.reports(abs, [5, 6, 7], record=path, key=key))
    assert asked == [5, 6, 7]
    assert set(statuses(path)) == {"5 by question 1", "6 by question 2", "7 by question 3"}


def test_key_that_raises_stop_iteration_ends_no_search(
    executor: LimitedProcessExecutor, path: str
) -> None:
    """Not silently: the loop that asks would take it for the end of the items."""
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(executor.reports(abs, [1, 2], record=path, key=lambda _: next(iter(()))))


@pytest.mark.parametrize("values", [[1, "1"], [True, "true"], [None, "null"]])
def test_keys_of_different_values_differ(
    executor: LimitedProcessExecutor, path: str, values: list[Any]
) -> None:
    """A string that reads as another value's form is told from it."""
    list(executor.reports(repr, values, record=path, key=lambda value: value))
    assert len(statuses(path)) == 2


def test_cancelled_items_are_run_again(path: str) -> None:
    """They have come to nothing: the record has no row of them."""
    with LimitedProcessExecutor(1) as executor:
        reports = executor.reports(time.sleep, [0, 600, 0], record=path)
        assert next(reports).status == "ok"
        reports.close()
    assert list(statuses(path)) == ["time.sleep(0)"]


SEARCH = """
import sys, time
from pynisher_exec import LimitedProcessExecutor

def step(number):
    time.sleep(0.01)
    return number

with LimitedProcessExecutor(2, wall_time=30) as executor:
    for report in executor.reports(step, range(10_000), record=sys.argv[1], ordered=False):
        print(report.result, flush=True)
"""


def test_kill_of_the_caller_loses_nothing_that_was_told(tmp_path: Path, path: str) -> None:
    """What it has printed is in the record, which is whole, and goes on to be used."""
    program = tmp_path / "search.py"
    program.write_text(dedent(SEARCH))
    with subprocess.Popen([sys.executable, program, path], stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        told = [int(caller.stdout.readline()) for _ in range(20)]
        caller.send_signal(signal.SIGKILL)
        told += [int(line) for line in caller.stdout if line.endswith(b"\n")]
    found = {key for key, status in statuses(path).items() if status == "ok"}
    assert found >= {f"__main__.step({number})" for number in told}
    with read(path) as reader:
        assert not reader.is_going_on()
        assert [search["ended_at"] for search in reader.searches()] == [None]


def test_records_that_are_begun_at_once_are_one(path: str) -> None:
    """Whoever comes first makes the tables, and nobody fails for it."""
    at_once = threading.Barrier(8)

    def begin(_: int) -> None:
        at_once.wait()
        Record(path, "train", 1).close(ended=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, range(8)))
    with read(path) as reader:
        assert len(reader.searches()) == 8


def test_two_processes_write_to_one_record(tmp_path: Path, path: str) -> None:
    """Neither loses a row, and neither fails."""
    text = dedent(SEARCH).replace("10_000", "100").replace("0.01", "0.0")
    callers = []
    for number in range(2):
        program = tmp_path / f"search{number}.py"
        program.write_text(text)
        callers.append(subprocess.Popen([sys.executable, program, path], stdout=subprocess.DEVNULL))
    assert [caller.wait(PATIENCE) for caller in callers] == [0, 0]
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (200,)
    assert connection.execute("SELECT count(*) FROM searches").fetchone() == (2,)
    connection.close()


def of_another_program(path: str) -> None:
    """A database of somebody else's."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()


def of_another_version(path: str) -> None:
    """Ours, but of a later version."""
    Record(path, "f", None).close(ended=True)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def no_database(path: str) -> None:
    """A file of text."""
    Path(path).write_text("no database at all\n" * 100)


def damaged(path: str) -> None:
    """Ours, with a page of nonsense."""
    record = Record(path, "f", None)
    record.close(ended=True)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.executemany(
        "INSERT INTO searches (function, pid, host, started_at) VALUES (?, 1, 'h', 0)",
        [("x" * 500,)] * 100,
    )
    connection.commit()
    connection.close()
    with open(path, "r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(4096))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (of_another_program, "of another program"),
        (of_another_version, "of version 99, and this pynisher_exec reads version 1"),
        (no_database, "no record, or a damaged one"),
        (damaged, "damaged"),
    ],
)
def test_what_is_no_record_is_refused_and_left_as_it_is(
    executor: LimitedProcessExecutor, path: str, make: Any, message: str
) -> None:
    """Before any task runs."""
    make(path)
    before = Path(path).read_bytes()
    with pytest.raises(RecordError, match=message):
        executor.reports(behave, [0], record=path)
    with pytest.raises(RecordError, match=message), read(path):
        pass
    assert Path(path).read_bytes() == before


def test_fork_leaves_the_search_of_its_parent_alone(
    executor: LimitedProcessExecutor, path: str
) -> None:
    """It has the iterator, and closes it or ends."""
    found = executor.reports(behave, range(4), record=path)
    next(found)
    child = os.fork()
    if not child:
        found.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with read(path) as reader:
        assert reader.is_going_on()
    assert len(list(found)) == 3
    with read(path) as reader:
        assert not reader.is_going_on()
        assert len(reader.tasks()) == 4


def test_full_disk_is_told_to_who_takes_the_reports(
    executor: LimitedProcessExecutor, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search ends there; what had been written stands."""
    original = Record.write
    written: list[int] = []

    def write(self: Record, ends: Any) -> None:
        if written:
            self._connection.execute("PRAGMA max_page_count = 1")  # SQLITE_FULL from here on
        original(self, ends)
        written.append(len(ends))

    monkeypatch.setattr(Record, "write", write)
    items = ["x" * 5000 + str(number) for number in range(200)]
    with pytest.raises(RecordError, match="disk is full"):
        list(executor.reports(len, items, record=path, buffersize=4))
    assert len(statuses(path)) >= sum(written) > 0


def test_directory_that_is_not_there_is_told(executor: LimitedProcessExecutor, path: str) -> None:
    """At the call."""
    with pytest.raises(RecordError, match=r"there is no folder .*nowhere"):
        executor.reports(behave, [0], record=f"{path}/nowhere/search.db")
    with pytest.raises(RecordError, match="unable to open"):
        executor.reports(behave, [0], record="x" * 300)
    with pytest.raises(RecordError, match="a folder, and no file"):
        executor.reports(behave, [0], record=Path(path).parent)


def test_path_may_be_of_any_bytes(executor: LimitedProcessExecutor, path: str) -> None:
    """As `bytes`, and such as are no text."""
    odd: Any = os.fsencode(path) + b"-\xff"
    assert len(list(executor.reports(behave, [0, 1], record=odd))) == 2
    with read(odd) as reader:
        assert len(reader.tasks()) == 2


def test_keys_that_are_no_text_are_kept_apart(executor: LimitedProcessExecutor, path: str) -> None:
    """Names of files that no encoding fits, for one; and resumed as all others."""
    names = [os.fsdecode(b"file-\xff"), os.fsdecode(b"file-\xfe")]
    for ran in (2, 0):
        found = executor.reports(len, names, record=path, resume=True, key=str)
        assert len(list(found)) == ran
    assert len(statuses(path)) == 2


def test_numbers_of_numpy_are_keys_as_pythons_are(
    executor: LimitedProcessExecutor, path: str
) -> None:
    """In an item, and deep in it."""
    items = [np.int64(1), [np.float32(0.5)], {"a": np.bool_(True)}]
    list(executor.reports(repr, items, record=path))
    assert set(statuses(path)) == {
        "builtins.repr(1)",
        "builtins.repr([0.5])",
        'builtins.repr({"a":true})',
    }
    assert not list(executor.reports(repr, [1, [0.5], {"a": True}], record=path, resume=True))
    with pytest.raises(ValueError, match="no canonical form"):
        executor.reports(repr, [np.datetime64("2026-01-01")], record=path)


@pytest.mark.parametrize(
    ("retry", "message"),
    [("memory", r"no set of statuses, such as \{'memory'\}"), ({"oom"}, "they are ok, exception")],
)
def test_retry_is_a_set_of_statuses(
    executor: LimitedProcessExecutor, path: str, retry: Any, message: str
) -> None:
    """Said before any task runs."""
    with pytest.raises(ValueError, match=message):
        executor.reports(behave, [0], record=path, resume=True, retry=retry)


def test_reports_sum_up_what_has_been_taken(executor: LimitedProcessExecutor) -> None:
    """For a notebook, and as text."""
    reports = executor.reports(behave, range(9), ordered=False)
    assert str(reports.summary) == "0 items"
    assert len(list(reports)) == 9
    assert str(reports.summary) == "9 items: ok 7  exception 1  memory 1"
    shown = reports._repr_html_()
    assert "<td>exception</td><td>1</td>" in shown


def test_what_tasks_wrote_is_kept_as_text(path: str) -> None:
    """Bytes that are no text, too."""
    with LimitedProcessExecutor(1, capture_output=True) as executor:
        list(
            executor.reports(os.write, [1], [b"\xff<script>\n"], record=path, key=lambda *_: "one")
        )
    with read(path) as reader:
        (row,) = reader.tasks()
    assert row["stdout"].endswith("<script>\n")
    assert json.loads(row["arguments"])


def test_search_left_in_the_middle_has_its_record_at_exit(tmp_path: Path, path: str) -> None:
    """Tasks are done before the interpreter ends, and what came of them is written."""
    program = tmp_path / "left.py"
    text = dedent(SEARCH).replace("10_000", "10").replace("with Limited", "if executor := Limited")
    text = text.replace(") as executor:", "):").replace("print(report.result, flush=True)", "break")
    program.write_text(text)
    assert (
        subprocess.run([sys.executable, program, path], check=False, timeout=PATIENCE).returncode
        == 0
    )
    wait_until(lambda: len(statuses(path)) >= 1, PATIENCE)


def test_deadline_ends_what_runs_and_begins_no_more(path: str) -> None:
    """The reports say which, and a resumed search runs those."""
    with LimitedProcessExecutor(1) as executor:
        began = time.monotonic()
        reports = list(executor.reports(time.sleep, [0, 600, 601], record=path, deadline=1))
        assert [report.status for report in reports] == ["ok", "cancelled", "cancelled"]
        few = executor.reports(time.sleep, [0, 600, 601], record=path, deadline="1s", buffersize=1)
        assert [report.status for report in few] == ["ok", "cancelled"]
        assert time.monotonic() - began < PATIENCE
    assert list(statuses(path)) == ["time.sleep(0)"]


def test_task_that_the_deadline_meets_as_it_is_submitted_is_cancelled() -> None:
    """Between the question whether it may begin and its submit."""
    follower = follow(abs, [[-1]], Wishes(deadline=600), 1)
    assert follower is not None
    ((key, args),) = follower.wanted([(-1,)])
    follower.is_over = True
    with LimitedProcessExecutor(1) as executor:
        future = executor.submit(time.sleep, 600)
        follower.add(future, key, args)
        assert future.cancelled()
        follower.close(ended=True)


def test_deadline_needs_no_record() -> None:
    """One that does not come changes nothing; one that has passed lets nothing begin."""
    with LimitedProcessExecutor(2) as executor:
        assert [each.result for each in executor.reports(abs, [-1, -2], deadline=600)] == [1, 2]
        with pytest.raises(ValueError, match="deadline"):
            executor.reports(abs, [-1], deadline=-1)


def test_notebook_shows_text_as_text(executor: LimitedProcessExecutor) -> None:
    """What a task wrote is no markup, in a report and in its future."""
    future = executor.submit(eval, "'<script>' + 1")
    report = future.wait_for_report()
    for shown in (report._repr_html_(), future._repr_html_()):
        assert "exception" in shown
        assert "<script>" not in shown
    assert "&lt;script&gt;" in executor.submit(str, "<script>").wait_for_report()._repr_html_()


def test_columns_are_documented() -> None:
    """Each is a fact of a report, or said in the module."""
    facts = {field.name for field in dataclasses.fields(Report)}
    for name in COLUMNS:
        assert name in facts or name in str(record.__doc__)
