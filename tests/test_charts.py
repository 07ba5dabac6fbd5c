"""Figures for papers: what they show, and that their colours are the page's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pynisher_exec
from pynisher_exec import Report, Status
from pynisher_exec.report import Enforced
from pynisher_exec.searches.reader import Row, read
from pynisher_exec.searches.record import Record

matplotlib: Any = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402 - it takes the backend from above

from pynisher_exec import charts  # noqa: E402


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Of six tasks in two slots, two of which met a limit."""
    record = Record(tmp_path / "search.db", "mine.train", 2)
    limits = {"memory": Enforced(100 << 20, "one"), "cpu_time": Enforced(5.0, "other")}
    statuses = [Status.OK, Status.MEMORY, Status.OK] * 2
    record.write(
        [
            (str(n), (n,), Report(status, wall_time=1.0, limits=limits, started_at=1e9 + n // 2))
            for n, status in enumerate(statuses)
        ]
    )
    record.close(ended=True)
    with read(tmp_path / "search.db") as reader:
        return reader.tasks()


@pytest.mark.parametrize("draw", [charts.timeline, charts.usage, charts.wall_times])
def test_figure_has_each_status_and_its_axes_named(rows: list[Row], draw: Any) -> None:
    """In the axes that are given, or in new ones; of no tasks as well."""
    axes = matplotlib.figure.Figure().subplots()
    assert draw(rows, axes) is axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ok", "memory"]
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    draw([], matplotlib.figure.Figure().subplots())
    plt.close(draw(rows).figure)


def test_limits_are_drawn(rows: list[Row]) -> None:
    """As dashed lines."""
    axes = charts.usage(rows, matplotlib.figure.Figure().subplots())
    assert [line.get_xdata()[0] for line in axes.lines][:1] == [5.0]
    assert [line.get_ydata()[0] for line in axes.lines][1:] == [100.0]


def test_colours_are_those_of_the_page() -> None:
    """One status has one colour wherever it is seen."""
    style = (Path(pynisher_exec.__file__).parent / "page" / "page.css").read_text()
    light = style[: style.index("@media")]
    found = dict(re.findall(r"--(\w+): (#\w+)", light))
    assert {status.value: colour for status, colour in charts.COLOURS.items()} == {
        status.value: found[status.value] for status in Status
    }


def test_missing_matplotlib_is_told() -> None:
    """With what to install."""
    text = "import sys; sys.modules['matplotlib'] = None; import pynisher_exec.charts"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert "pip install 'pynisher_exec[charts]'" in done.stderr
