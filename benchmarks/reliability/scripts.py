"""Programs that are callers: run as processes of their own, judged by what they print and leave."""

from __future__ import annotations

import random
import subprocess
import sys
from textwrap import dedent
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.reliability.check import Found
from benchmarks.reliability.marks import Mark

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PATIENCE", "Script", "run_all"]

PATIENCE = 60

GONE_WITHIN = 1.0
"""Seconds after a caller's end, whatever end, within which nothing of it is left."""

HEAD = """
import os, signal, sys, threading, time
sys.path[:] = {path!r}
from pynisher_exec import LimitedProcessExecutor, limited
from benchmarks.reliability.callers import burn, seen

def answers(executor):
    futures = [executor.submit(abs, -n) for n in range(8)]
    return [future.result({patience}) for future in futures] == list(range(8))
"""


class Script(NamedTuple):
    """What a caller does; it prints what is expected, or something is wrong."""

    name: str
    text: str
    expected: str = "True\n"
    flags: Sequence[str] = ()
    code: int = 0
    quiet: bool = False
    """Whether it must print nothing on standard error."""
    environment: dict[str, str] = {}  # noqa: RUF012 - never written to


class _Ran(NamedTuple):
    """What was wrong, the seconds until all was gone after the end, and what the script told."""

    wrong: list[str]
    gone_after: float = 0.0
    late: float = 0.0


def _run(script: Script) -> _Ran:
    """Run it once."""
    mark = Mark()
    code = HEAD.format(path=sys.path, patience=PATIENCE) + dedent(script.text)
    try:
        done = subprocess.run(
            [sys.executable, *script.flags, "-c", code],
            capture_output=True,
            check=False,
            env={**mark.environment, **script.environment},
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return _Ran([f"{script.name}: hangs"])
    took = mark.wait_until_gone(GONE_WITHIN)
    wrong = []
    if (done.stdout, done.returncode) != (script.expected, script.code):
        wrong.append(f"{script.name}: {done.stdout!r}, {done.returncode}: {done.stderr[-300:]}")
    if script.quiet and done.stderr:
        wrong.append(f"{script.name}: says {done.stderr[-300:]!r}")
    if mark.scan():
        wrong.append(f"{script.name}: processes are left")
    told = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("late ")]
    return _Ran(wrong, took, max(map(float, told), default=0.0))


def run_all(scripts: tuple[Script, ...], count: int) -> Found:
    """Run each as often; where there is no time for all of them, some that chance picks.

    The same ones each time would leave the others untried in the short form for ever.
    """
    if count < len(scripts):
        scripts = tuple(random.sample(scripts, count))
    failures: list[str] = []
    slowest = latest = 0.0
    for number in range(count):
        ran = _run(scripts[number % len(scripts)])
        failures += ran.wrong
        slowest, latest = max(slowest, ran.gone_after), max(latest, ran.late)
    late = f"at most {latest * 1000:.0f} ms late, " if latest else ""
    worst = f"{late}all gone at most {slowest * 1000:.0f} ms after the caller"
    return Found(count, failures, worst)
