"""The core's promises in numbers: how much over, how dear. Prints a table.

Memory is measured by the tasks themselves, which write what they have touched into a shared map
before they touch more, so no sampling of ours takes part in the judgement.
"""

from __future__ import annotations

import mmap
import os
import resource
import statistics
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import cpu_time_of, descendants
from benchmarks.rows import (
    MEBIBYTE,
    Row,
    environment,
    fork_and_wait,
    percentile,
    print_rows,
    timed,
)
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 60


# CPU time ------------------------------------------------------------


def burn() -> None:
    """Use CPU for ever."""
    while True:
        pass


def burn_in(forks: int) -> None:
    """Use CPU in several processes."""
    for _ in range(forks):
        if os.fork() == 0:
            burn()
    burn()


def burn_in_daemon() -> None:
    """Use CPU in a process that has left the family."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            burn()
        os._exit(0)
    os.wait()
    time.sleep(60)


def cpu_time(executor: LimitedProcessExecutor) -> list[Row]:
    """CPU seconds used at the end beyond a limit of one second, in milliseconds."""
    limit, rows = 1.0, []
    view = executor.limit(cpu_time=limit)
    cases: list[tuple[str, Callable[..., None], tuple[int, ...]]] = [
        ("one process", burn, ()),
        ("four processes", burn_in, (3,)),
        ("a daemon", burn_in_daemon, ()),
    ]
    for name, function, args in cases:
        over = []
        for _ in range(7):
            future = view.submit(function, *args)
            future.exception(PATIENCE)
            assert future.report is not None
            assert future.report.status == "cpu_time"
            over.append((future.report.cpu_time - limit) * 1000)
        rows.append(
            Row(
                f"CPU limit of 1 s passed by, {name}",
                f"median {statistics.median(over):.1f}, worst {max(over):.1f} ms",
                "<= 40 ms (20 ms + 2 %), none early",
                max(over) <= 40 and min(over) >= 0,
            )
        )
    return rows


# Memory ------------------------------------------------------------


def touch(path: str, index: int, count: int, *, shared: bool) -> None:
    """Touch memory as fast as C can, noting before each piece what will then be held."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 4096) as notes:
        piece, kept = MEBIBYTE, []
        for held in range(0, count, piece):
            struct.pack_into("Q", notes, 8 * index, held)
            if shared:  # out of RLIMIT_DATA's reach
                kept.append(mmap.mmap(-1, piece))
                kept[-1].write(b"x" * piece)
            else:
                kept.append(bytearray(b"x" * piece))  # type: ignore[arg-type]
    time.sleep(60)


def touch_in_four(path: str, count: int) -> None:
    """Do so in four processes at once."""
    for index in range(1, 4):
        if os.fork() == 0:
            touch(path, index, count, shared=True)
    touch(path, 0, count, shared=True)


def memory(executor: LimitedProcessExecutor) -> list[Row]:
    """What was held at most under a limit of 300 MiB."""
    limit = 300 * MEBIBYTE
    view = executor.limit(memory=limit, wall_time=40)
    path = Path(f"/tmp/pynisher_exec-bench-{os.getpid()}")  # noqa: S108  (removed below)
    rows = []
    cases: list[tuple[str, Callable[..., None], tuple[Any, ...], dict[str, bool], float]] = [
        ("one process, heap", touch, (0, 1500 * MEBIBYTE), {"shared": False}, 0.05),
        ("one process, shared map", touch, (0, 1500 * MEBIBYTE), {"shared": True}, 0.05),
        ("four processes, shared maps", touch_in_four, (700 * MEBIBYTE,), {}, 0.15),
    ]
    for name, function, args, kwargs, share in cases:
        worst = 0
        for _ in range(7):
            path.write_bytes(bytes(4096))
            future = view.submit(function, str(path), *args, **kwargs)
            future.exception(PATIENCE)
            assert future.report is not None
            assert future.report.status == "memory", future.report
            worst = max(worst, sum(struct.unpack_from("4Q", path.read_bytes())))
        most = limit * (1 + share) + 64 * MEBIBYTE
        rows.append(
            Row(
                f"held under memory=300 MiB, {name}",
                f"worst {worst / MEBIBYTE:.0f} MiB",
                f"<= {most / MEBIBYTE:.0f} MiB",
                worst <= most,
            )
        )
    path.unlink()
    future = executor.limit(memory="500MB", wall_time=40).submit(share_among_four)
    error = future.exception(PATIENCE)
    assert future.report is not None
    peak = future.report.peak_memory / 1e6
    what = "four forked readers of one 300 MB array under memory=500 MB"
    rows.append(Row(what, f"{future.report.status}, peak {peak:.0f} MB", "ok", error is None))
    return rows


def share_among_four() -> None:
    """Read one array in four forks."""
    held = bytearray(300_000_000)
    for _ in range(4):
        if os.fork() == 0:
            for _ in range(10):
                held.count(0)
            os._exit(0)
    for _ in range(4):
        os.wait()


# Processes ------------------------------------------------------------


def fork_many(count: int) -> int:
    """Start sleepers; return how many came up."""
    up = 0
    for _ in range(count):
        try:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            up += 1
        except BlockingIOError:
            pass
    return up


def processes(executor: LimitedProcessExecutor) -> list[Row]:
    """Subprocesses alive at once under a limit of five."""
    view = executor.limit(processes=5, wall_time=40)
    most = max(view.submit(fork_many, 50).result(PATIENCE) for _ in range(10))
    what = f"subprocesses of 50 tried, processes=5, uid {os.getuid()}"
    return [Row(what, f"{most} in 10 runs", "5", most == 5)]


# Cost ------------------------------------------------------------


def nothing() -> None:
    """Do nothing."""


def latency(executor: LimitedProcessExecutor) -> list[Row]:
    """A no-op under three limits against a raw fork, interleaved."""
    view = executor.limit(memory="1GiB", cpu_time=10, wall_time=10)
    ours, raw = [], []
    for _ in range(300):
        ours.append(timed(lambda: view.submit(nothing).result(PATIENCE)))
        raw.append(timed(fork_and_wait))
    ratio = statistics.median(ours) / statistics.median(raw)
    measured = (
        f"{statistics.median(ours):.2f} ms (95 % {percentile(ours, 95):.2f}) against "
        f"{statistics.median(raw):.2f} ms (95 % {percentile(raw, 95):.2f}): {ratio:.2f}"
    )
    return [Row("no-op submit to result against fork + wait", measured, "<= 3", ratio <= 3)]


def idle(executor: LimitedProcessExecutor) -> list[Row]:
    """CPU used by caller and helpers while nothing is to be done; 100 sleeping tasks."""
    executor.submit(nothing).result(PATIENCE)
    time.sleep(3)  # slots that have worked are followed by fresh ones
    helpers = descendants(os.getpid())
    before = resource.getrusage(resource.RUSAGE_SELF), [cpu_time_of(pid) for pid in helpers]
    time.sleep(3)
    after = resource.getrusage(resource.RUSAGE_SELF), [cpu_time_of(pid) for pid in helpers]
    used = after[0].ru_utime + after[0].ru_stime - before[0].ru_utime - before[0].ru_stime
    theirs = sum(after[1]) - sum(before[1])
    measured = f"caller {used * 1000:.2f} ms, {len(helpers)} helpers {theirs * 1000:.2f} ms in 3 s"
    return [
        Row("idle executor", measured, "none (< 1 ms)", used + theirs < 0.001),
        sleepers(),
    ]


def sleepers() -> Row:
    """A hundred tasks that sleep under three limits."""
    with LimitedProcessExecutor(100, memory="1GiB", cpu_time=10, wall_time=60) as crowd:
        futures = [crowd.submit(time.sleep, 8) for _ in range(100)]
        while not all(future.running() for future in futures):
            time.sleep(0.05)
        time.sleep(1)
        before = resource.getrusage(resource.RUSAGE_SELF)
        time.sleep(4)
        after = resource.getrusage(resource.RUSAGE_SELF)
        crowd.kill_workers()
    share = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 4 * 100
    return Row("100 sleeping tasks: caller", f"{share:.3f} % of a core", "< 0.5 %", share < 0.5)


MEASURES = (cpu_time, memory, processes, latency, idle)


def measured() -> Iterator[Row]:
    """Measure one after the other."""
    for measure in MEASURES:
        with LimitedProcessExecutor(2) as executor:
            yield from measure(executor)


def main() -> int:
    """Measure all and print; 1 when a promise was missed."""
    print(*environment(), sep="\n", flush=True)
    return int(print_rows(measured()) > 0)
