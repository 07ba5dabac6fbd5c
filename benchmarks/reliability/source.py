"""What the package's own source shows."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pynisher_exec
from benchmarks.reliability.check import Check, Found
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CHECKS"]

FOLDER = Path(pynisher_exec.__file__).parent
PATIENCE = 60

WALL_CLOCKS = {"time", "time_ns", "localtime", "ctime", "now", "today", "utcnow"}
OF_MODULES = {"time", "datetime", "date"}
READ_THE_WALL_CLOCK = {"supervisor/evidence.py:_started_at"}
"""Functions that may: the moment that a report shows, from which nothing is decided."""

REASON = re.compile(r"#.*\w{3,} .*\w{3,}")


# Clocks ------------------------------------------------------------------------------------------


def _readers(path: Path) -> Iterator[str]:
    """Functions of a file that ask what time of day it is."""
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and any(map(_reads, ast.walk(function))):
            yield f"{path.relative_to(FOLDER)}:{function.name}"


def _reads(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr in WALL_CLOCKS
        and isinstance(node.value, ast.Name)
        and node.value.id in OF_MODULES
    )


def _shifted(clock: Callable[[], float], by: float) -> float:
    return clock() + by


def _told(executor: LimitedProcessExecutor) -> str:
    future = executor.limit(wall_time=0.05).submit(time.sleep, 60)
    future.exception(PATIENCE)
    report = future.report
    if report is None or not 0.05 <= report.wall_time < 5:
        return f"none, or a wrong wall time: {report}"
    return report.status


def clocks(count: int) -> Found:
    """Row 12: nothing reads the wall clock but the report; a caller whose clock jumps is right."""
    readers = {reader for path in FOLDER.rglob("*.py") for reader in _readers(path)}
    failures = [f"{each} reads the wall clock" for each in readers - READ_THE_WALL_CLOCK]
    failures += [f"{each} is not found" for each in READ_THE_WALL_CLOCK - readers]
    true_time = time.time
    try:
        with LimitedProcessExecutor(1) as executor:
            for number in range(count):
                time.time = partial(_shifted, true_time, 1e6 if number % 2 else -1e6)
                told = _told(executor)
                failures += [] if told == "wall_time" else [told]
    finally:
        time.time = true_time
    return Found(count, failures, f"functions that read it: {', '.join(sorted(readers))}")


# What is caught ----------------------------------------------------------------------------------


def _without_reason(path: Path) -> Iterator[str]:
    """Places that catch everything, do not raise again, and do not say why on their line."""
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        broad = _suppresses(node) or (
            isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _raises(node.body)
        )
        if broad and not REASON.search(lines[node.lineno - 1]):  # type: ignore[attr-defined]
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


def _raises(body: list[ast.stmt]) -> bool:
    """Whether some way through these statements raises, functions that are made in them apart."""
    for statement in body:
        if isinstance(statement, ast.Raise):
            return True
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        for name in ("body", "orelse", "finalbody"):
            if _raises(getattr(statement, name, [])):
                return True
    return False


def static(count: int) -> Found:
    """Row 26."""
    failures = [place for path in FOLDER.rglob("*.py") for place in _without_reason(path)]
    absent = []
    for name, *arguments in (("ruff", "check", "."), ("mypy", ".")):
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
    refused = f"not installed here: {', '.join(absent)}" if absent else ""
    return Found(count, failures, "", refused)


CHECKS = (
    Check(
        12,
        "no limit depends on what time of day it is",
        "the package's source; tasks of a caller whose time.time() jumps by eleven days",
        clocks,
        50,
        2,
    ),
    Check(
        26,
        "what catches everything raises it again or says why; ruff and mypy --strict are clean",
        "the package's source",
        static,
        1,
        1,
    ),
)
