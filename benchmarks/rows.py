"""What benchmarks have in common: a promise and what came of it, times, where they are from."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, NamedTuple

import pynisher_exec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "MEBIBYTE",
    "Row",
    "environment",
    "fork_and_wait",
    "hold",
    "percentile",
    "print_rows",
    "timed",
]

MEBIBYTE = 1 << 20


_OBJECT = 400
"""Bytes of each object: below what the allocator hands on to malloc, so in its own small pages."""


class Row(NamedTuple):
    """One promise and what came of it."""

    what: str
    measured: str
    promised: str
    kept: bool


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile, the worst at 100."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def timed(action: Callable[[], object]) -> float:
    """Milliseconds that a call takes."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def fork_and_wait() -> None:
    """What a raw fork costs this very process."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def hold(kept: list[bytes], mebibytes: int) -> None:
    """Grow to that many MiB of small objects."""
    count = mebibytes * MEBIBYTE // (_OBJECT + sys.getsizeof(b""))
    kept.extend(bytes(_OBJECT) for _ in range(count - len(kept)))


def environment(*peers: str) -> tuple[str, str]:
    """Where the numbers come from: machine, interpreter, versions of what is compared."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE / 1024
    kind = f"{_processor()}, {os.cpu_count()} cores, {size:.0f} GiB"
    machine = f"{platform.machine()}, {kind}, Linux {platform.release()}"
    versions = [f"{name} {_version(name)}" for name in ("loky", *peers)]
    ours = f"pynisher_exec {pynisher_exec.__version__}"
    python = f"Python {platform.python_version()}, {ours}, {', '.join(versions)}"
    return f"{machine}, uid {os.getuid()}", python


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else "processor unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # its rows are left out, or fail by themselves
        return "not installed"


def print_rows(rows: Iterable[Row]) -> int:
    """Print each promise as soon as it is measured; give how many were missed."""
    missed = 0
    for row in rows:
        missed += not row.kept
        word = "kept  " if row.kept else "MISSED"
        print(f"{word} {row.what}: {row.measured} (promised {row.promised})", flush=True)
    return missed
