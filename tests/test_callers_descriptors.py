"""Descriptors and memory of the caller: numbers that are used again, and shortages."""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import subprocess
import sys
from textwrap import dedent

import pytest

from pynisher_exec.caller.copying import Fetch
from pynisher_exec.caller.reactor import Reactor
from pynisher_exec.kernel.descriptors import above_standard
from pynisher_exec.kernel.memory_copy import address_of
from pynisher_exec.protocol.frames import Left

MIB = 1 << 20


def test_event_of_a_closed_descriptor_is_not_taken_for_its_successors() -> None:
    """What is handled first may close the other, and open something on the same number."""
    reactor = Reactor()
    pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(2)]
    called: list[str] = []
    successors: list[int] = []

    def replace(other: int) -> None:
        called.append("first")
        for reader, _ in pipes:
            reactor.ignore(reader)
        os.close(other)
        successors.append(fcntl.fcntl(pipes[0][1], fcntl.F_DUPFD_CLOEXEC, other))
        assert successors == [other]
        reactor.listen(other, lambda: called.append("successor"))

    try:
        for number, (reader, writer) in enumerate(pipes):
            other = pipes[1 - number][0]
            reactor.listen(reader, lambda other=other: replace(other))  # type: ignore[misc]
            os.write(writer, b"x")
        reactor.turn(0.0)
        assert called == ["first"]
    finally:
        reactor.close()
        for end in {*pipes[0], *pipes[1], *successors}:
            os.close(end)


def test_copy_that_is_ended_early_is_not_taken_for_whole() -> None:
    """What has not been copied is no part of an outcome, and zeros even less."""
    with mmap.mmap(-1, 512 * MIB) as source:
        fetch = Fetch(os.getpid(), {0: Left(len(source), address_of(memoryview(source)))})
        fetch.close()
        assert fetch.failed or len(fetch.rooms[0]) == len(source)
        assert fetch.failed


def test_descriptor_that_cannot_be_moved_is_closed() -> None:
    """It has no owner any more; and the caller hears of the shortage."""
    kept, before = os.dup(0), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(OSError, match=r"Invalid argument|Too many open files"):
            above_standard(0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        os.dup2(kept, 0)
        os.close(kept)


SHORT_OF_MEMORY = """
    import os, resource, time
    from pynisher_exec import LimitedProcessExecutor

    def write(mebibytes):
        for _ in range(mebibytes):
            os.write(1, bytes(1 << 20))
        return "written"

    with LimitedProcessExecutor(2, wall_time=20, capture_output="512MiB") as executor:
        list(executor.map(time.sleep, [0.2] * 2))
        innocent = executor.submit(time.sleep, 3)
        loud = executor.submit(write, 100)
        status = open("/proc/self/status").read()
        size = int(status.partition("VmSize:")[2].split()[0]) << 10
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + (60 << 20), before[1]))
        print(loud.result(20), loud.report.stderr, innocent.result(20))
        resource.setrlimit(resource.RLIMIT_AS, before)
        print(executor.submit(abs, -1).result(20))
"""


def test_memory_that_lacks_for_captured_output_costs_that_output_alone() -> None:
    """The value arrives, and others go on."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(SHORT_OF_MEMORY)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lost = "[output lost: no memory was free to receive it]"
    assert done.stdout == f"written {lost} None\n1\n", done.stderr


UNSENT = """
    import os, resource, time
    from pynisher_exec import LimitedProcessExecutor

    with LimitedProcessExecutor(1, kill_timeout=1) as executor:
        executor.submit(abs, -1).result()
        slots = executor._pool._monitor._slots
        while [slot.state for slot in slots] != ["idle"]:
            time.sleep(0.01)
        os.close(1)
        most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
        error = executor.submit(time.sleep, 600).exception(30)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        value = executor.submit(abs, -3).result(30)
    os.write(2, f"{type(error).__name__} {value}".encode())
"""


def test_call_that_cannot_be_sent_ends_its_task() -> None:
    """A daemon has closed its output, and no descriptor is free for what stands in for it."""
    program = [sys.executable, "-c", dedent(UNSENT)]
    found = subprocess.run(program, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert found.stderr == "PynisherError 3", found
