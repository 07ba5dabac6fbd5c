"""What control groups with the memory controller add: a bound that the kernel keeps.

Few hosts have that for the taking; `tests/guest/boot.py` runs this where it is to be had.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import crashes
import pytest
from capabilities import requires

from pynisher_exec import LimitedProcessExecutor, MemorylimitException, supports

# Behind all else: what is tested is the package that is installed.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.reliability import groups

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 200
MIB = 1 << 20


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
        made = groups.of(os.getpid())
        assert executor.submit(crashes.value).result(PATIENCE) == 42
    assert groups.are_gone(made)


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
        made = groups.of(os.getpid())
    assert groups.are_gone(made)
