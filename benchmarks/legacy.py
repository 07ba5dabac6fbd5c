"""What a call of `enforce_limits` costs against pynisher 0.6's, by default, in one caller.

Both run the same no-op under the same limits, turn by turn, in a process that holds more and more:
0.6 forks the caller, so what the caller holds is part of its price. The memory is that of many
Python objects, in small pages, as a program's own is.
"""

from __future__ import annotations

import statistics
import threading
import time
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import psutil

import pynisher_exec
from benchmarks.rows import Row, environment, hold, percentile, print_rows, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZES = (0, 500, 2048)
CALLS = 150
LIMITS: dict[str, Any] = {
    "mem_in_mb": 8192,
    "cpu_time_in_s": 10,
    "wall_time_in_s": 10,
    "grace_period_in_s": 1,
}
SHARE = 0.5
"""Promised: what a call costs at most, of what it costs with pynisher 0.6."""


def nothing() -> None:
    """Do nothing."""


def held() -> str:
    """What this process holds, and how much of it lies in huge pages, which cost a fork less."""
    with open("/proc/self/smaps_rollup") as file:
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith("kB\n")}
    return f"{sizes['Rss'] >> 10} MiB resident, {sizes['AnonHugePages'] >> 10} in huge pages"


def call(function: Any) -> Callable[[], None]:
    """A call whose answer is checked: what failed is no measure."""

    def checked() -> None:
        function()
        assert function.exit_status == 0, function.exit_status

    return checked


def in_threads(function: Any, count: int) -> tuple[float, list[float]]:
    """Milliseconds for each call of several threads at once: by the clock, and as each saw it."""
    seen: list[float] = []

    def work() -> None:
        seen.extend([timed(call(function)) for _ in range(CALLS // count)])

    threads = [threading.Thread(target=work) for _ in range(count)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - began) * 1000 / len(seen), seen


def shown(times: list[float]) -> str:
    """Median and 95 % of times in milliseconds."""
    return f"median {statistics.median(times):.2f}, 95 % {percentile(times, 95):.2f} ms"


def compare(theirs: Any, ours: Any, size: int) -> list[Row]:
    """One thread turn by turn, then four threads of ours."""
    for function in (ours, theirs):
        for _ in range(10):
            call(function)()
    new, old = [], []
    for _ in range(CALLS):
        new.append(timed(call(ours)))
        old.append(timed(call(theirs)))
    ratio = statistics.median(new) / statistics.median(old)
    single = Row(
        f"a call, the caller holding {size} MiB",
        f"{shown(new)}; 0.6: {shown(old)}; ratio {ratio:.2f}",
        f"ratio <= {SHARE}",
        ratio <= SHARE,
    )
    each, seen = in_threads(ours, 4)
    ratio = each / statistics.median(old)
    what = f"four threads at once, the caller holding {size} MiB"
    measured = f"{each:.2f} ms for each call, {shown(seen)}; ratio to one thread of 0.6 {ratio:.2f}"
    return [single, Row(what, measured, f"ratio <= {SHARE}", ratio <= SHARE)]


def measured() -> Iterator[Row]:
    """A call of each, the caller holding more and more."""
    ours = pynisher_exec.enforce_limits(**LIMITS)(nothing)
    theirs = import_module("pynisher").enforce_limits(**LIMITS)(nothing)
    kept: list[bytes] = []
    before = 0
    for size in SIZES:
        free = psutil.virtual_memory().available >> 20
        if free < size - before + 512:
            print(f"warning: {free} MiB are available for {size - before} more to be held")
        before = size
        hold(kept, size)
        print(held())
        yield from compare(theirs, ours, size)


def main() -> int:
    """Measure all and print; 1 when a promise was missed."""
    if not version("pynisher").startswith("0.6."):
        print(f"this needs pynisher 0.6, and {version('pynisher')} is installed")
        return 1
    print(*environment("pynisher"), sep="\n", flush=True)
    print(f"limits {LIMITS}, {CALLS} calls of each, interleaved", flush=True)
    return int(print_rows(measured()) > 0)
