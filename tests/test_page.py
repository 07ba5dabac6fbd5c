"""The page of a record: data and no markup, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import sqlite3
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynisher_exec import Report, Status
from pynisher_exec.page import build, lanes
from pynisher_exec.searches.reader import read
from pynisher_exec.searches.record import Record

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "</script><script>document.title='taken'</script><!-- <img src=x onerror=alert(1)>"


def page(tmp_path: Path, count: int = 3) -> str:
    """The page of a search whose tasks wrote markup everywhere."""
    place = str(tmp_path / "search.db")
    record = Record(place, f"mine.{HOSTILE}", 2)
    statuses = [Status.OK, Status.MEMORY, Status.EXCEPTION]
    record.write(
        [
            (
                f"train({number}, {HOSTILE})",
                (number, HOSTILE),
                Report(
                    statuses[number % 3],
                    result=HOSTILE,
                    message=HOSTILE,
                    traceback=HOSTILE,
                    stderr=HOSTILE,
                    wall_time=1.0,
                    started_at=1000.0 + number // 2,
                ),
            )
            for number in range(count)
        ]
    )
    record.close(ended=True)
    with read(place) as reader:
        return build(reader.tasks(), reader.searches(), name=HOSTILE, going_on=False)


def test_what_tasks_wrote_is_no_markup(tmp_path: Path) -> None:
    """It lies in the data alone, where no parser of markup takes it for more."""
    text = page(tmp_path)
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert data["tasks"][1]["stderr"] == HOSTILE
    assert data["name"] == HOSTILE


def test_page_of_a_record_that_another_program_has_written_to(tmp_path: Path) -> None:
    """Keys that are empty, limits that are no number: the data has what the page wants."""
    page(tmp_path)
    connection = sqlite3.connect(tmp_path / "search.db")
    limits = ['{"memory": {"value": 1e999}}', '{"memory": {"value": 1' + "0" * 400 + "}}"]
    for number, text in enumerate(limits, 1):
        connection.execute("UPDATE tasks SET key = '', limits = ? WHERE id = ?", (text, number))
    connection.commit()
    connection.close()
    with read(tmp_path / "search.db") as reader:
        text = build(reader.tasks(), reader.searches(), name="", going_on=False)
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    for task in json.loads(found[1])["tasks"]:
        assert task["key"]
        assert task["limits"] == {}


def test_page_loads_nothing(tmp_path: Path) -> None:
    """No address but its own anchors; its policy says so to the browser."""
    text = page(tmp_path)
    assert "default-src 'none'" in text
    assert re.findall(r'(?:src|href)="([^"#][^"]*)"', text) == ["data:,"]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.floats(0, 100), st.floats(0, 50)), st.tuples(st.none(), st.just(0.0))
        ),
        max_size=40,
    )
)
def test_bars_of_one_lane_do_not_overlap(spans: list[tuple[float | None, float]]) -> None:
    """And no more lanes are used than tasks ran at once."""
    given_lanes = lanes(spans)
    for place, ((begin, length), lane) in enumerate(zip(spans, given_lanes, strict=True)):
        assert (lane is None) == (begin is None)
        if begin is None:
            continue
        for (other, took), same in list(zip(spans, given_lanes, strict=True))[:place]:
            if same == lane and other is not None:
                assert begin >= other + took or other >= begin + length


@pytest.mark.parametrize("count", [0, 1])
def test_page_of_few_tasks_is_made(tmp_path: Path, count: int) -> None:
    """Of none, too."""
    assert "<!doctype html>" in page(tmp_path, count)
