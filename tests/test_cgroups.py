"""What control groups add: a bound that the kernel keeps, and nothing left of them.

On most hosts only a part of this runs; `tests/guest/boot.py` runs it where all of it can be.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import crashes
import pytest
from capabilities import requires
from conftest import wait_until

from pynisher_exec import LimitedProcessExecutor, MemorylimitException, supports
from pynisher_exec.kernel import cgroup

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 200
MIB = 1 << 20


def groups() -> list[Path]:
    """Groups of ours that are there now."""
    place = cgroup.find()
    found: list[Path] = []
    for directory in {place.unified, place.pids} - {""}:
        found += Path(directory).glob("pynisher_exec-*")
    return found


def own_group() -> str:
    """The group of version 2 that this process is in."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def fill_a_file_in_memory(size: int) -> None:
    """Hold memory that no process maps."""
    descriptor = os.memfd_create("held")
    for _ in range(size // MIB):
        os.write(descriptor, bytes(MIB))
    time.sleep(600)


def fork_and_hoard(size: int) -> None:
    """Hold memory in sixteen processes, each at once."""
    for _ in range(4):
        os.fork()
    held = bytearray(b"x") * (size // 16)
    time.sleep(600)
    del held


@requires("cgroup_controllers")
@pytest.mark.parametrize("hoard", [fill_a_file_in_memory, fork_and_hoard])
def test_memory_is_bounded_by_the_kernel(hoard: Callable[[int], None]) -> None:
    """Also what no process maps; the others and the executor go on."""
    with LimitedProcessExecutor(2, memory="100MiB") as executor:
        others = [executor.submit(abs, -n) for n in range(4)]
        future = executor.submit(hoard, 600 * MIB)
        assert isinstance(future.exception(PATIENCE), MemorylimitException)
        assert future.report is not None
        assert future.report.status == "memory"
        assert future.report.limits["memory"].mechanism.endswith("a cgroup behind")
        assert [other.result(PATIENCE) for other in others] == [0, 1, 2, 3]
        assert executor.submit(crashes.value).result(PATIENCE) == 42
    assert groups() == []


def hoard_bytes(size: int) -> int:
    """Hold private memory, and let it go."""
    return len(bytearray(b"x") * size)


def leave_a_file(size: int) -> str:
    """Leave a file in memory behind, which stays charged to the group."""
    path = Path(f"/dev/shm/cgroup-test-{os.getpid()}")  # noqa: S108  (it must be in memory)
    path.write_bytes(bytes(size))
    return str(path)


@requires("cgroup_controllers")
def test_what_one_task_leaves_is_not_charged_to_the_next() -> None:
    """Nor is a bound that was lower."""
    paths: list[str] = []
    with LimitedProcessExecutor(1) as executor:
        try:
            task = executor.limit(memory="100MiB")
            paths += (task.submit(leave_a_file, 60 * MIB).result(PATIENCE) for _ in range(3))
            assert task.submit(hoard_bytes, 90 * MIB).result(PATIENCE) == 90 * MIB
            assert executor.submit(hoard_bytes, 200 * MIB).result(PATIENCE) == 200 * MIB
            roomy = executor.limit(memory="300MiB")
            assert roomy.submit(hoard_bytes, 200 * MIB).result(PATIENCE) == 200 * MIB
        finally:
            for path in paths:
                Path(path).unlink()


@requires("cgroup_controllers")
def test_support_tells_of_it() -> None:
    """And that files in memory count."""
    found = supports("memory")
    assert found == "hard"
    assert "memory.max" in found.mechanism
    assert "files in memory counted" in found.bound


@requires("cgroup_controllers")
def test_a_task_is_in_a_group_beside_its_callers() -> None:
    """Its caller stays where it was."""
    before = own_group()
    with LimitedProcessExecutor(1) as executor:
        theirs = executor.submit(own_group).result(PATIENCE)
    assert Path(theirs).parent == Path(before).parent
    assert Path(theirs).name.startswith("pynisher_exec-")
    assert own_group() == before


def hoard_in_an_executor(size: int) -> tuple[str, str]:
    """Have a task of one's own hoard; the groups of both."""
    with LimitedProcessExecutor(1, memory="1GiB") as executor:
        inner = executor.submit(own_group).result(PATIENCE)
        executor.submit(hoard_bytes, size).result(PATIENCE)
    return own_group(), inner


@requires("cgroup_controllers")
def test_executor_in_a_task_stays_below_its_bounds() -> None:
    """Its tasks are in the outer task's group, or in one below it, and charged to it."""
    with LimitedProcessExecutor(1) as executor:
        outer, inner = executor.submit(hoard_in_an_executor, MIB).result(PATIENCE)
        assert f"{inner}/".startswith(f"{outer}/")
        limited = executor.limit(memory="60MiB")
        error = limited.submit(hoard_in_an_executor, 400 * MIB).exception(PATIENCE)
        assert isinstance(error, MemorylimitException)
    assert groups() == []


SCRIPT = """
import os, signal, sys, time
sys.path[:] = {path!r}
from benchmarks.reliability.jails import refuse_calls
from pynisher_exec import LimitedProcessExecutor
refuse_calls("perf_event_open")  # so that a group is used for the CPU time
executor = LimitedProcessExecutor(2)
futures = [executor.submit({function}) for _ in range(2)]
while not all(future.running() for future in futures):
    time.sleep(0.001)
print("runs", flush=True)
{then}
"""
BENCHMARKS = str(Path(__file__).parents[1])


def start(function: str, then: str = "signal.pause()") -> subprocess.Popen[str]:
    """Start a caller that has tasks in groups of their own."""
    code = SCRIPT.format(path=[*sys.path, BENCHMARKS], function=function, then=then)
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    assert caller.stdout.readline() == "runs\n"
    return caller


@requires("cgroup", "seccomp")
def test_no_group_outlives_a_killed_caller() -> None:
    """Its processes see it die, and clean up."""
    with start("time.sleep, 600") as caller:
        wait_until(groups)
        caller.kill()
        wait_until(lambda: not groups(), PATIENCE)


@requires("cgroup", "seccomp")
def test_groups_of_what_was_killed_with_all_its_helpers_are_swept_away() -> None:
    """By the next executor that starts."""
    with start("time.sleep, 600") as caller:
        wait_until(lambda: len(groups()) >= 2)
        kill_all_below(caller.pid)
        assert groups() != []
        with LimitedProcessExecutor(1) as executor:
            executor.submit(crashes.value).result(PATIENCE)
        assert groups() == []


def kill_all_below(pid: int) -> None:
    """Kill a process and all its descendants before any of them can do something about it."""
    pids = [pid]
    for each in pids:  # grows while it is walked
        with contextlib.suppress(OSError):
            os.kill(each, signal.SIGSTOP)
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            pids += map(int, children.read_text().split())
    for each in pids:
        os.kill(each, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{each}/exe").exists() for each in pids[1:]))


FORKER = "lambda: [os.fork() for _ in range(7)] and time.sleep(600)"


@requires("cgroup", "seccomp")
def test_large_tree_in_a_group_is_ended_in_one_step() -> None:
    """128 processes, by cgroup.kill; the supervisor goes back into its group."""
    then = """
for future in futures: future.cancel()
print(executor.submit(abs, -1).result(60), flush=True)
executor.shutdown()
"""
    with start(FORKER, then) as caller:
        assert caller.stdout is not None
        assert caller.stdout.read() == "1\n"
        assert caller.wait(PATIENCE) == 0
    assert groups() == []
