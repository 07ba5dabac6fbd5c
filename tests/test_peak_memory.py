"""`peak_memory` is counted as the limit counts: the tree's, pages that are shared once."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import test_limits_held
from conftest import wait_until

from pynisher_exec import LimitedProcessExecutor, Report
from pynisher_exec.kernel import proc
from pynisher_exec.supervisor import fair, state, tree
from pynisher_exec.supervisor import memory as gauges

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 40
MB = 1_000_000
SEEN = 0.79
"""The part that is told at least: below the limit a tree is weighed again once it has grown by 25 %
since (or when the next dear reading is due)."""


HOLD = f"held = bytearray(b'x') * {80 * MB}; print('up', flush=True); input()"


def hold_in_subprocesses(argument: bytes, count: int) -> int:
    """Have interpreters of their own hold 80 MB each, all at once, for several samples."""
    command = [sys.executable, "-S", "-c", HOLD]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    started = [subprocess.Popen(command, **pipes) for _ in range(count)]  # type: ignore[call-overload]
    for process in started:
        assert process.stdout.readline() == b"up\n"
    time.sleep(0.6)
    for process in started:
        process.communicate(b"\n")
    return len(argument)


def report_of(argument: bytes, count: int, memory: str) -> Report:
    """Run that under a limit."""
    with LimitedProcessExecutor(1, memory=memory, wall_time=30) as executor:
        return executor.submit(hold_in_subprocesses, argument, count).wait_for_report()


def test_subprocess_counts_in_full() -> None:
    """Also one that began by exec, and far below the limit: its memory is nobody else's."""
    report = report_of(b"", 1, "1GB")
    assert report.status == "ok"
    assert SEEN * 80 * MB <= report.peak_memory < 130 * MB


def test_argument_is_not_taken_off_from_each_subprocess() -> None:
    """The baseline is the task's own: three times 80 MB are 240 beside an argument of 120."""
    report = report_of(bytes(120 * MB), 3, "1GB")
    assert report.status == "ok"
    assert SEEN * 240 * MB <= report.peak_memory < 340 * MB


def test_argument_buys_no_subprocess_room() -> None:
    """What is above the limit is ended, though each alone is below it."""
    report = report_of(bytes(120 * MB), 3, "150MB")
    assert report.status == "memory"


def test_pages_that_forks_share_are_told_once() -> None:
    """Four readers of one array of 100 MB have a peak of about that."""
    with LimitedProcessExecutor(1, memory="1GB", wall_time=30) as executor:
        report = executor.submit(test_limits_held.share, 100 * MB, 4).wait_for_report()
    assert report.status == "ok"
    assert SEEN * 100 * MB < report.peak_memory < 150 * MB


@contextmanager
def two_that_hold() -> Iterator[tuple[list[int], int]]:
    """One is this process; and a limit that both pass together, and none alone."""
    command = [sys.executable, "-S", "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        pids = [os.getpid(), other.pid]
        yield pids, max(map(proc.private_memory, pids)) + 10 * MB
        other.kill()


def test_a_reading_that_waits_for_a_lock_holds_up_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known to be over the limit until it is done, and done once more, being late.

    What stands in here is the kernel's lock of a memory map, which hundreds of forks at once held
    for ten seconds and more: row 2 of the reliability table has those.
    """
    may_go_on = threading.Event()
    waits = threading.Event()
    kernel = proc.fair_memory

    def read_late(pid: int) -> proc.FairMemory | None:
        waits.set()
        may_go_on.wait(PATIENCE)
        return kernel(pid)

    monkeypatch.setattr(proc, "fair_memory", read_late)
    with two_that_hold() as (pids, limit):
        gauge = gauges.MemoryGauge(0, pids[0])
        began = time.monotonic()
        assert gauge.read(pids, limit) == limit
        assert gauge.is_unsure  # a tree that stands still now is looked at again all the same
        assert waits.wait(PATIENCE)
        time.sleep(gauges.LONG)  # it is the time that makes it late
        assert gauge.read(pids, limit) == limit
        assert time.monotonic() - began < PATIENCE / 2
        may_go_on.set()
        deadline = time.monotonic() + PATIENCE
        while gauge.read(pids, limit) == limit:
            assert time.monotonic() < deadline
        gauge.close()


def read_in_forks(seconds: float) -> None:
    """Have 80 MiB of shared memory read by forks, page by page, again and again."""
    shared = mmap.mmap(-1, 80 << 20)
    for at in range(0, len(shared), mmap.PAGESIZE):
        shared[at] = 1
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(3):
            if os.fork() == 0:
                sum(shared[at] for at in range(0, len(shared), mmap.PAGESIZE))
                os._exit(0)
        for _ in range(3):
            os.wait()


def test_memory_that_comes_to_be_shared_during_a_reading_counts_once() -> None:
    """Read in one process in full, and in others a part of it again, it is no more than it was."""
    with LimitedProcessExecutor(2, memory="92MiB", wall_time=60, preload=[]) as executor:
        futures = [executor.submit(read_in_forks, 1) for _ in range(6)]
        found = [future.exception(PATIENCE) for future in futures]
    assert found == [None] * 6


def test_thread_that_outlives_its_gauge_rings_no_bell_but_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that serves other tasks may hold it up; it reads no other one after that."""
    may_go_on = threading.Event()
    read: list[int] = []

    def read_late(pid: int) -> None:
        read.append(pid)
        may_go_on.wait(PATIENCE)

    monkeypatch.setattr(proc, "fair_memory", read_late)
    monkeypatch.setattr(fair, "_END_TIME", 0.01)
    threads = len(os.listdir("/proc/self/task"))
    gauge = gauges.MemoryGauge(0, os.getpid())
    with two_that_hold() as (pids, limit):
        gauge.read(pids, limit)
        wait_until(lambda: read)
    gauge.close()
    others = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(64)]  # on every number that is free
    may_go_on.set()
    wait_until(lambda: len(os.listdir("/proc/self/task")) == threads)
    for other in others:
        with pytest.raises(BlockingIOError):
            os.eventfd_read(other)
        os.close(other)
    assert len(read) == 1


@contextmanager
def forks_that_sleep(count: int) -> Iterator[list[int]]:
    """Forks of this process that hold its pages, ended in the end."""
    pids = []
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            pids.append(pid)
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_tree_that_shares_much_is_read_again_when_it_may_have_grown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The dear reading costs milliseconds; what had no CPU time since cannot hold more."""
    begun: list[list[int]] = []

    class Counted(fair.FairReading):
        def __init__(self, pids: list[int], *others: Any) -> None:
            begun.append(pids)
            super().__init__(pids, *others)

    monkeypatch.setattr(gauges, "FairReading", Counted)
    held = bytearray(b"x") * (100 * MB)  # noqa: F841  (whatever else this process holds)
    with forks_that_sleep(3) as pids:
        gauge = gauges.MemoryGauge(0, pids[0])
        # Three times as much is mapped, and a share of it counts: three quarters of this process.
        limit = 2 * proc.anonymous_memory(os.getpid())
        deadline = time.monotonic() + PATIENCE
        while gauge.read(pids, limit, 1.0) == limit:
            assert time.monotonic() < deadline
        assert len(begun) == 1
        time.sleep(2 * state.DEAREST_LOOK)  # another would be due
        assert 0 < gauge.read(pids, limit, 1.0) < limit
        assert len(begun) == 1
        gauge.read(pids, limit, 1.0 + limit / gauges.FASTEST)
        assert len(begun) == 2
        gauge.close()


TURNS = f"""
import sys
for line in sys.stdin:
    held = bytearray(b'x') * {80 * MB} if line == 'take\\n' else None
    print(flush=True)
"""


def test_memory_that_is_used_by_turns_counts_once() -> None:
    """One process is read and lets go of it, the next one takes as much and is read."""
    command = [sys.executable, "-S", "-c", TURNS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    first, second = (subprocess.Popen(command, text=True, **pipes) for _ in range(2))  # type: ignore[call-overload]

    def tell(process: subprocess.Popen[str], what: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        print(what, file=process.stdin, flush=True)
        process.stdout.readline()

    reading = fair.FairReading([first.pid, second.pid], 0)
    tell(first, "take")
    reading.advance()
    tell(first, "drop")
    tell(second, "take")
    reading.advance()
    remaining = reading.remaining()
    assert sum(reading.held.values()) > 160 * MB
    assert 80 * MB < sum(remaining.values()) < 120 * MB
    assert 80 * MB < reading.alone(remaining) < 120 * MB
    for process in (first, second):
        process.communicate()
    assert sum(reading.remaining().values()) == 0


def test_peak_that_a_reading_may_have_missed_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though the tree sleeps since: others came while it was read; after another it is settled."""
    readings: list[fair.FairReading] = []

    class Noted(fair.FairReading):
        def __init__(self, *given: Any) -> None:
            readings.append(self)
            super().__init__(*given)

    monkeypatch.setattr(gauges, "FairReading", Noted)
    with forks_that_sleep(2) as pids, forks_that_sleep(1) as newcomers:
        everybody = list(tree.walk())  # tests before may have left a resource tracker
        gauge = gauges.MemoryGauge(0, pids[0])

        def read_on(pids: list[int], count: int) -> bool:
            wait_until(lambda: gauge.read(pids, None) and len(readings) >= count)
            wait_until(lambda: readings[count - 1].ended)
            gauge.read(pids, None)
            return gauge.is_unsure

        with closing(gauge):
            assert read_on([pid for pid in everybody if pid not in newcomers], 1)
            assert not read_on(everybody, 2)
    assert len(readings) == 2


def copy_in_a_fork(data: Any) -> None:
    """Have a fork copy it, and sleep then: the copy is all that is held."""
    if os.fork() == 0:
        copies = data.copy()
        time.sleep(3)  # it is while nothing moves that it has to be found
        os._exit(len(copies) == 0)
    os.wait()


def test_copies_of_what_is_shared_are_told() -> None:
    """What is mapped, and not charged, hides how much what is charged has grown by."""
    with LimitedProcessExecutor(1, memory="1GiB", wall_time=30, preload=["numpy"]) as executor:
        handle = executor.share(np.ones(160 * MB // 8))
        report = executor.submit(copy_in_a_fork, handle).wait_for_report()
    assert report.status == "ok"
    assert SEEN * 160 * MB < report.peak_memory < 200 * MB


def hold_shared(count: int, children: int) -> None:
    """Have one process hold that many bytes that no rlimit counts, beside sleeping children."""
    for _ in range(children):
        if os.fork() == 0:
            time.sleep(PATIENCE)
            os._exit(0)
    held = mmap.mmap(-1, count)
    held.write(bytes(count))
    time.sleep(PATIENCE)


def test_a_tree_whose_reading_takes_long_is_held_all_the_same() -> None:
    """A process with hundreds of maps of a file: each reading of it takes longer than a look."""
    with LimitedProcessExecutor(1, memory="300MB", wall_time=30) as executor:
        report = executor.submit(map_often_then_hold, 400 * MB).wait_for_report()
    assert report.status == "memory", report


def map_often_then_hold(count: int) -> None:
    """Map a file of 200 MB sixty times, then hold memory in shared maps, in two processes."""
    with tempfile.TemporaryFile() as file:
        file.write(bytes(200 * MB))
        file.flush()
        maps = [mmap.mmap(file.fileno(), 200 * MB, prot=mmap.PROT_READ) for _ in range(60)]
    for each in maps:
        each.find(b"x")
    hold_shared(count, 1)
