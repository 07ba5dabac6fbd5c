"""What a process is charged with beside what it has of shared objects, read while those change."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from conftest import wait_until

from pynisher_exec.caller.shared import Memory
from pynisher_exec.supervisor.fair import FairReading
from pynisher_exec.supervisor.memory import MemoryGauge

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SIZE = 8 * MIB
READINGS = 1500

READER = f"""
import mmap, signal, sys
signal.alarm(60)
descriptor, work = int(sys.argv[1]), sys.argv[2]
def read():
    view = mmap.mmap(descriptor, {SIZE}, mmap.MAP_PRIVATE)
    view[::mmap.PAGESIZE]
    return view
if work != "comes and goes":
    view = read()
if work == "holds its own":
    own = mmap.mmap(-1, {SIZE})
    own.write(b"x" * {SIZE})
print(flush=True)
while work == "comes and goes":
    read().close()
signal.pause()
"""
"""A small process: what takes long to read hides what changes meanwhile."""


@contextlib.contextmanager
def shared() -> Iterator[Memory]:
    """A shared object; no fixture, which would be there still when leftovers are looked for."""
    memory = Memory(bytearray(SIZE))
    yield memory
    del memory


@contextlib.contextmanager
def reader(memory: Memory, work: str) -> Iterator[int]:
    """A process that works for as long as this lasts."""
    command = [sys.executable, "-S", "-c", READER, str(memory.descriptor), work]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[memory.descriptor]) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.read(1)
            yield process.pid
            assert process.poll() is None
        finally:
            process.kill()


def charge(pid: int, memory: Memory) -> int:
    """What a process is charged with by a reading of it alone."""
    reading = FairReading([pid], 0, {memory.place})
    while reading.advance():
        pass
    return reading.total


@pytest.mark.parametrize("neighbours", [1, 2])
def test_neighbours_that_come_and_go_cost_a_reader_nothing(neighbours: int) -> None:
    """Whoever maps, reads and lets go of the object between two looks at another reader of it."""
    with shared() as memory, contextlib.ExitStack() as stack:
        pid = stack.enter_context(reader(memory, "stays"))
        alone = charge(pid, memory)
        for _ in range(neighbours):
            stack.enter_context(reader(memory, "comes and goes"))
        assert max(charge(pid, memory) for _ in range(READINGS)) < alone + MIB


def test_shared_memory_of_the_own_is_charged() -> None:
    """Whatever it has of the object beside that."""
    with shared() as memory, reader(memory, "holds its own") as pid:
        assert charge(pid, memory) >= SIZE


COPIER = f"""
import mmap, os, signal, sys
signal.alarm(60)
view = mmap.mmap(int(sys.argv[1]), {SIZE}, mmap.MAP_PRIVATE)
view[::mmap.PAGESIZE]
for _ in range(3):
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        view[::mmap.PAGESIZE]
        os.write(1, b"%d\\n" % os.getpid())
        signal.pause()
view[: {SIZE} // 2] = b"y" * ({SIZE} // 2)
own = mmap.mmap(-1, {SIZE})
own.write(b"x" * {SIZE})
os.write(1, b"0\\n")
sys.stdin.readline()
os.killpg(0, signal.SIGKILL)
"""


def test_copies_of_a_shared_object_hide_no_memory_of_the_own() -> None:
    """Though its neighbours read the object, and no map says how its copies are divided."""
    with shared() as memory:
        command = [sys.executable, "-S", "-c", COPIER, str(memory.descriptor)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(
            command, pass_fds=[memory.descriptor], start_new_session=True, **pipes
        ) as parent:  # type: ignore[call-overload]
            said = [int(parent.stdout.readline()) for _ in range(4)]
            pids = [parent.pid, *(pid for pid in said if pid)]
            reading = FairReading(pids, 0, {memory.place})
            while reading.advance():
                pass
            parent.stdin.close()
        assert reading.held[parent.pid] >= SIZE + SIZE // 2


FAMILY = """
import mmap, os, signal, sys
signal.alarm(60)
descriptor = int(sys.argv[1])
common = mmap.mmap(-1, {size})
common.write(b"x" * {size})
pids = []
for _ in range(3):
    pids.append(os.fork())
    if not pids[-1]:
        signal.alarm(60)
        common[::mmap.PAGESIZE]
        os.write(1, b"%d\\n" % os.getpid())
        signal.pause()
os.write(1, b"%d\\n" % os.getpid())
sys.stdin.readline()
view = mmap.mmap(descriptor, 0)
view[::mmap.PAGESIZE]
sys.stdin.readline()
for pid in pids:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
""".format(size=2 * SIZE)


def test_pages_that_are_there_already_need_no_cpu_time_to_be_held() -> None:
    """What had been charged is no bound for what a process holds that has mapped more since."""
    limit = 5 * SIZE
    descriptor = os.memfd_create("there already")
    os.truncate(descriptor, limit)
    os.pwrite(descriptor, b"x" * limit, 0)
    command = [sys.executable, "-S", "-c", FAMILY, str(descriptor)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, pass_fds=[descriptor], text=True, **pipes) as parent:  # type: ignore[call-overload]
        os.close(descriptor)
        pids = [int(parent.stdout.readline()) for _ in range(4)]
        gauge = MemoryGauge(0, parent.pid)
        wait_until(lambda: 0 < gauge.read(pids, limit, 1.0) < limit)
        parent.stdin.write("map\n")
        parent.stdin.flush()
        wait_until(lambda: gauge.read(pids, limit, 1.0) > limit)
        gauge.close()
        parent.stdin.write("end\n")
        parent.stdin.flush()
        assert parent.wait(20) == 0
