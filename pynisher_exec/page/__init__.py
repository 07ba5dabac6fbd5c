"""A search's record as one page of HTML, which needs nothing beside itself.

All that tasks wrote is data in the page: JSON that no parser of markup looks into, put on the
screen as text. A content security policy lets the page run its own script and nothing else, and
load nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynisher_exec.report import Status, last_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pynisher_exec.searches.reader import Row

__all__ = ["build", "lanes", "limits_of"]

LONGEST = 8000
"""Characters kept of a text that a task made; of a traceback or of stderr the last ones."""

_HERE = Path(__file__).parent


def build(
    rows: Sequence[Row], searches: Sequence[Mapping[str, Any]], *, name: str, going_on: bool
) -> str:
    """Give the page for a record's tasks; `name` is the record's."""
    style, script = (_HERE / "page.css").read_text(), (_HERE / "page.js").read_text()
    data = {
        "name": name,
        "made_at": time.time(),
        "going_on": going_on,
        "searches": [dict(search) for search in searches],
        "statuses": [status.value for status in Status],
        "tasks": _tasks(rows),
    }
    parts = {
        "POLICY": _policy(script),
        "STYLE": style,
        "SCRIPT": script,
        # What ends a script element or begins a comment in one is escaped, as JSON allows.
        "DATA": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }
    page = (_HERE / "page.html").read_text()
    for part, text in parts.items():
        before, mark, after = page.partition(f"<!--{part}-->")
        assert mark, part  # noqa: S101  (the template is ours)
        page = before + text + after
    return page


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _tasks(rows: Sequence[Row]) -> list[dict[str, Any]]:
    # What no task of ours lacks may lack in a record that another program has written to.
    spans = [(row["started_at"], row["wall_time"] or 0.0) for row in rows]
    found = []
    for row, lane in zip(rows, lanes(spans), strict=True):
        task = {
            "id": row.id,
            "key": _cut(row["key"] or "(no key)"),
            "status": row["status"] or "(no status)",
            "started": row["started_at"],
            "wall": row["wall_time"] or 0.0,
            "cpu": row["cpu_time"],
            "memory": row["peak_memory"],
            "processes": row["peak_processes"],
            "result": _cut(row["result"]),
            "limits": limits_of(row["limits"]),
            "lane": lane,
        }
        if row["status"] != Status.OK.value:
            task |= {
                "message": _cut(row["message"]),
                "exception": row["exception"],
                "exit_code": row["exit_code"],
                "signal": row["signal"],
                "traceback": _cut(row["traceback"], last=True),
                "stderr": _cut(last_lines(row["stderr"]), last=True),
            }
        found.append({name: value for name, value in task.items() if value not in (None, "")})
    return found


def lanes(spans: Sequence[tuple[float | None, float]]) -> list[int | None]:
    """Give each span (begin, length) the first lane free then; None for what never began."""
    order = sorted((begin, place) for place, (begin, _) in enumerate(spans) if begin is not None)
    given: list[int | None] = [None] * len(spans)
    busy: list[tuple[float, int]] = []
    free: list[int] = []
    for begin, place in order:
        while busy and busy[0][0] <= begin:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        given[place] = lane
        heapq.heappush(busy, (begin + spans[place][1], lane))
    return given


def limits_of(text: str) -> dict[str, float]:
    """Give the values of a task's limits, by name, from the text that a record has."""
    try:
        found = {str(name): float(each["value"]) for name, each in json.loads(text).items()}
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError, OverflowError):
        return {}  # another program may have written there
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _cut(text: str | None, *, last: bool = False) -> str | None:
    if text is None or len(text) <= LONGEST:
        return text
    return "…" + text[-LONGEST:] if last else text[:LONGEST] + "…"
