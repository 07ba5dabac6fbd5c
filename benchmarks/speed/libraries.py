"""Calls that need a library, once a template has imported it ahead."""

from __future__ import annotations

import os
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.speed.measure import Measured, Row, compare
from benchmarks.speed.real import check_that_it_is_real
from pynisher_exec import LimitedProcessExecutor

__all__ = ["ROWS"]

PATIENCE = 60
LIMITS: dict[str, Any] = {"memory": 1 << 31, "cpu_time": 60, "wall_time": 60}
SIZE = 3
WARM_UP = 24
"""Calls before the timed ones, after the different ones of the check: one of thousands is timed."""


def was_imported_ahead(library: str) -> bool:
    """Whether the process that forked this one has it mapped."""
    return f"/{library}/" in Path(f"/proc/{os.getppid()}/maps").read_text()


def call(library: str, rounds: int) -> Measured:
    """A function of a module that imports it, against the same call in this process, warm."""
    work = import_module(f"benchmarks.speed.users.with_{library}").work
    work(SIZE)
    with LimitedProcessExecutor(1, **LIMITS) as executor:
        deadline = time.monotonic() + PATIENCE
        executor.submit(work, SIZE).result(PATIENCE)
        while not executor.submit(was_imported_ahead, library).result(PATIENCE):
            assert time.monotonic() < deadline
            executor.submit(work, SIZE).result(PATIENCE)
        check_that_it_is_real(executor, LIMITS)
        for _ in range(WARM_UP):
            executor.submit(work, SIZE).result(PATIENCE)
        return compare(
            lambda: executor.submit(work, SIZE).result(PATIENCE),
            lambda: work(SIZE),
            max(5, rounds),
            3,
        )


WHAT = {
    "numpy": "solve 120 equations",
    "pandas": "means of groups",
    "torch": "20 steps of descent",
}
ROWS = (
    Row("sklearn", "fit on digits", "in this process", 1.5, 1.1, partial(call, "sklearn")),
    *(
        Row(name, what, "in this process", None, None, partial(call, name))
        for name, what in WHAT.items()
    ),
)
