"""What the package's own source shows."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
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

    from pynisher_exec import LimitedFuture

__all__ = ["CHECKS"]

FOLDER = Path(pynisher_exec.__file__).parent
PATIENCE = 60

OF_TIME = {"monotonic", "perf_counter", "process_time", "sleep", "tzset"}
"""What may be used of the module `time`: nothing of it knows what time of day it is."""

ONCE = ("supervisor/evidence.py:time", "supervisor/cpu.py:time")
"""Where something else is used, once: the moment that a report shows, and from which nothing is
decided; the CPU clock of another process (clock_gettime(2))."""

MAY_SET_THE_CLOCK = "PYNISHER_EXEC_MAY_SET_THE_CLOCK"
"""Set where the machine is a guest of our own."""

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


def _shifted(clock: Callable[[], float], by: float) -> float:
    return clock() + by


def _wrong(future: LimitedFuture[None]) -> str:
    """What is wrong with how a wall limit was held, seen from here and from there."""
    began = time.monotonic()
    future.exception(PATIENCE)
    report, took = future.report, time.monotonic() - began
    good = report is not None and report.status == "wall_time" and 0.5 <= report.wall_time < 5
    return "" if good and took < 5 else f"{report}, here {took:.1f} s"


@contextlib.contextmanager
def _jumping_clock() -> Iterator[tuple[str, Callable[[float], None]]]:
    """What jumps, and how to have it jump: the machine's clock where that is allowed."""
    if MAY_SET_THE_CLOCK in os.environ and os.geteuid() == 0:
        began = time.clock_gettime(time.CLOCK_REALTIME) - time.monotonic()
        yield (
            "the machine's clock",
            lambda by: time.clock_settime(time.CLOCK_REALTIME, began + time.monotonic() + by),
        )
        time.clock_settime(time.CLOCK_REALTIME, began + time.monotonic())
        return
    true_time = time.time

    def jump(by: float) -> None:
        time.time = partial(_shifted, true_time, by)

    try:
        yield "the caller's time.time()", jump
    finally:
        time.time = true_time


def clocks(count: int) -> Found:
    """Row 12: nothing reads the wall clock but the report; limits hold while it jumps."""
    readers = [reader for path in FOLDER.rglob("*.py") for reader in _readers(path)]
    failures = [f"a clock that may jump: {each}" for each in readers if each not in ONCE]
    failures += [f"not once: {each}" for each in ONCE if readers.count(each) != 1]
    with _jumping_clock() as (what, jump), LimitedProcessExecutor(1) as executor:
        for number in range(count):
            future = executor.limit(wall_time=0.5).submit(time.sleep, 60)
            while not (future.running() or future.done()):
                time.sleep(0.001)
            jump(1e6 if number % 2 else -1e6)
            failures += [told] if (told := _wrong(future)) else []
    return Found(count, failures, f"{what} was set eleven days forth and back")


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
        "the package's source; tasks that run while the clock jumps by eleven days",
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
