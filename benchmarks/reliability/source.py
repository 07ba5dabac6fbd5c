"""What the package's own source shows."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pynisher_exec
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.clocks import run_tries

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CHECKS"]

FOLDER = Path(pynisher_exec.__file__).parent

OF_TIME = {"CLOCK_MONOTONIC", "monotonic", "perf_counter", "process_time", "sleep", "tzset"}
"""What may be used of the module `time`: nothing of it knows what time of day it is."""

ONCE = (
    "supervisor/evidence.py:time",
    "searches/record.py:time",
    "page/__init__.py:time",
    "supervisor/cpu.py:time",
    "kernel/clock.py:time",
)
"""Where something else is used, once: the moments that a report, a record and its page show, and
from which nothing is decided; the CPU clock of another process, and CLOCK_MONOTONIC
(clock_gettime(2))."""

TOOLS = (("ruff", "check", "."), ("mypy", "pynisher_exec", "benchmarks"))
"""Types of the tests are looked at where what they need is installed, by `tox run -e types`."""

WAYS_OUT = (ast.Return, ast.Break, ast.Continue, ast.Try, ast.Yield)
MARKERS = re.compile(r"noqa: [A-Z0-9, ]+|pragma: no cover|type: ignore\S*")
REASON = re.compile(r"#.*\w{3,} .*\w{3,}")


# Clocks ------------------------------------------------------------------------------------------


def _readers(path: Path) -> Iterator[str]:
    """Whatever in a file could tell what time of day it is, by whatever name."""
    place = path.relative_to(FOLDER)
    tree = ast.parse(path.read_text())
    of_time = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in OF_TIME
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {(each.name, each.asname) for each in node.names}
            yield from (f"{place}:{name}" for name, alias in names if name == "datetime")
            yield from (f"{place}:{alias}" for name, alias in names if name == "time" and alias)
        elif isinstance(node, ast.ImportFrom) and node.module in ("datetime", "time"):
            yield f"{place}:{node.module}"
        elif isinstance(node, ast.Name) and node.id == "time" and node not in of_time:
            yield f"{place}:time"


def clocks(count: int) -> Found:
    """Row 12: nothing reads the wall clock but the report; limits hold while it jumps."""
    readers = [reader for path in FOLDER.rglob("*.py") for reader in _readers(path)]
    failures = [f"a clock that may jump: {each}" for each in readers if each not in ONCE]
    failures += [f"not once: {each}" for each in ONCE if readers.count(each) != 1]
    tried = run_tries(count)
    worst = f"{tried.what} jumped by eleven days, forth and back, ten times each second"
    return Found(tried.tries, failures + tried.failures, worst)


# What is caught ----------------------------------------------------------------------------------


def _without_reason(path: Path) -> Iterator[str]:
    """Places that catch everything, may not raise, and do not say why on their line."""
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        broad = _suppresses(node) or (
            isinstance(node, ast.ExceptHandler)
            and _is_broad(node.type)
            and not _always_raises(node.body)
        )
        line = lines[node.lineno - 1] if broad else ""  # type: ignore[attr-defined]
        if broad and not REASON.search(MARKERS.sub("", line)):
            yield f"{path.relative_to(FOLDER)}:{node.lineno}"  # type: ignore[attr-defined]


def _suppresses(node: ast.AST) -> bool:
    """Whether it is `suppress(Exception)` or the like."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name == "suppress" and any(map(_is_broad, node.args))


def _is_broad(caught: ast.expr | None) -> bool:
    if isinstance(caught, ast.Tuple):
        return any(map(_is_broad, caught.elts))
    return caught is None or (
        isinstance(caught, ast.Name) and caught.id in ("BaseException", "Exception")
    )


def _always_raises(body: list[ast.stmt]) -> bool:
    """Whether every way through these statements ends by a `raise`: one under a condition is none.

    What is not understood here (a loop, a `match`, an inner `try`) counts as a way out.
    """
    for statement in body:
        if isinstance(statement, ast.Raise):
            return True
        if isinstance(statement, ast.If) and all(
            map(_always_raises, (statement.body, statement.orelse))
        ):
            return True
        if any(isinstance(each, WAYS_OUT) for each in ast.walk(statement)):
            return False
    return False


def static(count: int) -> Found:
    """Row 26. Each of the three is tried as often; a tool that is not installed is not tried."""
    failures = [place for path in FOLDER.rglob("*.py") for place in _without_reason(path)]
    absent = []
    for name, *arguments in TOOLS:
        if importlib.util.find_spec(name) is None:
            absent.append(name)
            continue
        done = subprocess.run(
            [sys.executable, "-m", name, *arguments],
            capture_output=True,
            check=False,
            cwd=FOLDER.parent,
            text=True,
        )
        failures += [f"{name}: {done.stdout[-300:]}"] if done.returncode else []
    told = f"not tried, as it is not installed here: {', '.join(absent)}" if absent else "all tried"
    return Found(count * (1 + len(TOOLS) - len(absent)), failures, told)


CHECKS = (
    Check(
        12,
        "no limit depends on what time of day it is",
        "the package's source; wall, CPU, startup limits and grace periods while the clock jumps",
        clocks,
        50,
        2,
    ),
    Check(
        26,
        "what catches everything always raises again or says why; ruff and mypy --strict are clean",
        "the package's source",
        static,
        1,
        1,
    ),
)
