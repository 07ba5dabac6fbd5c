"""Each limit as the kernel shows it, over the whole tree, and how hard this machine holds it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import crashes
import pytest
from capabilities import available, requires

from pynisher_exec import (
    CpuTimeoutException,
    LimitedProcessExecutor,
    MemorylimitException,
    SubprocessException,
    supports,
)
from pynisher_exec.kernel import capabilities, prctl

PATIENCE = 40


def read_limits() -> dict[str, list[str]]:
    """Return /proc/self/limits by name."""
    with open("/proc/self/limits", encoding="ascii") as file:
        return {line[:26].strip(): line[26:].split() for line in file}


def test_limits_stand_in_proc() -> None:
    """The kernel itself shows them on the task's process."""
    with LimitedProcessExecutor(
        1, memory="1GiB", cpu_time=10, open_files=50, file_size="1MB", core_size=0
    ) as executor:
        found = executor.submit(read_limits).result(PATIENCE)
    assert found["Max open files"][:2] == ["50", "50"]
    assert found["Max file size"][:2] == ["1000000", "1000000"]
    assert found["Max core file size"][:2] == ["0", "0"]
    assert 1 << 30 < int(found["Max data size"][0]) < (1 << 30) + (400 << 20)
    assert 12 <= int(found["Max cpu time"][0]) <= 14


def leave_the_clock(code: str, children: int) -> None:
    """Run a program in processes whose exec makes them undumpable: perf's clock drops them."""

    def change_group() -> None:
        os.setregid(65534, 0)

    command = [sys.executable, "-S", "-c", code]
    started = [
        subprocess.Popen(command, preexec_fn=change_group)  # noqa: PLW1509 - there is one thread
        for _ in range(children)
    ]
    for each in started:
        each.wait()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root: to change a group")
@pytest.mark.parametrize(
    ("limits", "code", "children"),
    [
        ({"cpu_time": 0.5}, "while True: pass", 1),
        ({"memory": "100MB"}, "held = b'x' * 80_000_000; import time; time.sleep(30)", 4),
    ],
    ids=str,
)
def test_a_process_that_leaves_the_trees_clock_is_counted(
    limits: dict[str, float | str], code: str, children: int
) -> None:
    """Its own clock counts, and moves when it grows."""
    with LimitedProcessExecutor(1, wall_time=20, **limits) as executor:  # type: ignore[arg-type]
        future = executor.submit(leave_the_clock, code, children)
        assert future.wait_for_report().status in limits


def write_file(path: str, count: int) -> None:
    """Write a file."""
    with open(path, "wb") as file:
        file.write(bytes(count))


def test_file_beyond_file_size_is_an_error_of_the_function(tmp_path: Path) -> None:
    """Python ignores SIGXFSZ, in a task as elsewhere: EFBIG comes out."""
    path = str(tmp_path / "file")
    with LimitedProcessExecutor(1, file_size="1MB") as executor:
        assert executor.submit(write_file, path, 1_000_000).result(PATIENCE) is None
        error = executor.submit(write_file, path, 1_000_001).exception(PATIENCE)
    assert isinstance(error, OSError)
    assert error.errno == errno.EFBIG


def share(count: int, readers: int) -> int:
    """Hold memory, and have forks read it all."""
    held = bytearray(count)
    for _ in range(readers):
        if os.fork() == 0:
            assert held.count(0) == count
            time.sleep(0.3)
            os._exit(0)
    for _ in range(readers):
        assert os.wait()[1] == 0
    return sum(held[:10])


def test_pages_shared_within_a_tree_count_once() -> None:
    """Four forks that read one array of 150 MB live under 250 MB."""
    with LimitedProcessExecutor(1, memory="250MB", wall_time=30) as executor:
        assert executor.submit(share, 150_000_000, 4).result(PATIENCE) == 0


def test_memory_of_the_interpreter_and_of_arguments_is_not_charged() -> None:
    """100 MB of argument under a limit of 30 MB."""
    with LimitedProcessExecutor(1, memory="30MB", wall_time=30) as executor:
        future = executor.submit(len, bytes(100_000_000))
        assert future.result(PATIENCE) == 100_000_000
        assert future.report is not None
        assert future.report.peak_memory < 30_000_000


def test_subprocess_that_starts_by_vfork_is_not_counted_twice() -> None:
    """During `subprocess.run` parent and child share one address space."""

    def start_many() -> None:
        held = bytearray(120_000_000)
        for _ in range(100):
            subprocess.run(["true"], check=True)
        del held

    with LimitedProcessExecutor(1, memory="200MB", wall_time=30) as executor:
        assert executor.submit(start_many).result(PATIENCE) is None


def test_peak_is_told_also_for_a_task_shorter_than_a_sample() -> None:
    """The high-water mark stands in for samples."""

    def touch() -> None:
        bytearray(50_000_000)

    with LimitedProcessExecutor(1) as executor:
        future = executor.submit(touch)
        future.result(PATIENCE)
    assert future.report is not None
    assert 45_000_000 < future.report.peak_memory < 60_000_000


def count_forks(wanted: int) -> tuple[int, int]:
    """Start sleepers; return how many came up and how many were refused."""
    up = refused = 0
    while up + refused < wanted:
        with contextlib.suppress(BlockingIOError):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            up += 1
            continue
        refused += 1
    return up, refused


@requires("seccomp")
@pytest.mark.parametrize("limit", [0, 1, 5])
def test_never_one_subprocess_too_many(limit: int) -> None:
    """Exactly as many as allowed come up, all others are refused."""
    with LimitedProcessExecutor(1, processes=limit, wall_time=20) as executor:
        future = executor.submit(count_forks, limit + 10)
        assert future.result(PATIENCE) == (limit, 10)
        assert future.report is not None
        assert future.report.peak_processes == limit
        assert executor.submit(burst, 30).result(PATIENCE) <= limit


def burst(count: int) -> int:
    """Fork from many threads at once; return how many were alive together."""
    up: list[int] = []

    def fork_one() -> None:
        try:
            pid = os.fork()
        except BlockingIOError:
            return
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        up.append(pid)

    threads = [threading.Thread(target=fork_one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(up)


@requires("seccomp")
def test_ended_subprocesses_make_room() -> None:
    """A hundred one after the other are fine under a limit of one; threads do not count."""

    def run_many() -> int:
        threads = [threading.Thread(target=time.sleep, args=(0.1,)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for _ in range(100):
            subprocess.run(["true"], check=True)
        for thread in threads:
            thread.join()
        return 100

    with LimitedProcessExecutor(1, processes=1, wall_time=30) as executor:
        assert executor.submit(run_many).result(PATIENCE) == 100


def test_cpu_time_of_a_tree_is_told() -> None:
    """Own, reaped and orphaned processes together."""

    def spread() -> None:
        for _ in range(3):
            if os.fork() == 0:
                while time.process_time() < 0.2:
                    pass
                os._exit(0)
        while time.process_time() < 0.2:
            pass
        for _ in range(3):
            os.wait()

    with LimitedProcessExecutor(1) as executor:
        future = executor.submit(spread)
        future.result(PATIENCE)
    assert future.report is not None
    assert 0.55 < future.report.cpu_time < 1.5


def test_clock_never_ends_a_task_early() -> None:
    """What uses nine tenths of its limit is left alone."""

    def use(seconds: float) -> None:
        began = time.process_time()
        while time.process_time() - began < seconds:
            pass

    with LimitedProcessExecutor(2, cpu_time=0.3) as executor:
        assert list(executor.map(use, [0.27] * 6)) == [None] * 6


# Where mechanisms are refused --------------------------------------------------------------------

OUTER_FILTER = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from benchmarks.reliability.jails import refuse_calls
refuse_calls(*sys.argv[2].split(","))
exec(sys.stdin.read())
"""
ROOT = str(Path(__file__).parents[1])
"""Behind all else on the path: what is tested is the package that is installed."""


def run_refused(calls: str, code: str) -> str:
    """Run code where an outer filter, as containers have, refuses some system calls."""
    import json  # noqa: PLC0415

    done = subprocess.run(
        [sys.executable, "-c", OUTER_FILTER, json.dumps([*sys.path, ROOT]), calls],
        input=code,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@requires("seccomp")
def test_cpu_limit_without_perf_is_as_hard_as_it_says() -> None:
    """Disowned children may escape it where no cgroup counts them: then it is called soft."""
    out = run_refused(
        "perf_event_open",
        """
import crashes
from pynisher_exec import LimitedProcessExecutor, supports
found = supports("cpu_time")
print(found, "perf_event_open" in found.harder)
with LimitedProcessExecutor(2, cpu_time=0.4, wall_time=4) as executor:
    for function in (crashes.burn, crashes.burn_in_orphan, crashes.burn_disowned):
        future = executor.submit(function)
        future.exception(40)
        print(future.report.status, future.report.limits["cpu_time"].mechanism)
try:
    LimitedProcessExecutor(1, cpu_time=1, strict=True).shutdown()
except ValueError as error:
    print(error)
""",
    )
    lines = out.splitlines()
    if available("cgroup"):
        assert lines == ["hard False", *["cpu_time cgroup cpu.stat"] * 3]
        return
    clock = "summed process clocks"
    assert lines[:3] == ["soft True", f"cpu_time {clock}", f"cpu_time {clock}"]
    # What is seen of disowned children while they live counts; they may end before.
    assert lines[3] in (f"cpu_time {clock}", f"wall_time {clock}")
    assert lines[4].startswith("strict=True, but cpu_time is soft on this machine")


@requires("seccomp")
def test_orphans_that_are_reaped_meanwhile_count_once_without_perf() -> None:
    """Their time goes from the clocks of the living to the sum of the reaped."""
    out = run_refused(
        "perf_event_open",
        """
from pynisher_exec import LimitedProcessExecutor
from test_left_by_the_function import leave_orphans
with LimitedProcessExecutor(1, wall_time=60) as executor:
    future = executor.submit(leave_orphans, 10, 0.05)
    print(future.result(40), future.report.cpu_time)
""",
    )
    count, used = out.split()
    assert count == "10"
    assert 0.5 < float(used) < 1.5


@requires("seccomp")
def test_process_limit_is_soft_without_seccomp_and_says_so() -> None:
    """What stays over it is found and ended; a short burst above it is not refused."""
    out = run_refused(
        "seccomp",
        """
import crashes
from pynisher_exec import LimitedProcessExecutor, supports
print(supports("processes"))
with LimitedProcessExecutor(1, processes=2, wall_time=20) as executor:
    future = executor.submit(crashes.start_sleepers, 3)
    print(future.result(40))
    def stay():
        import time
        crashes.start_sleepers(5)
        time.sleep(30)
    future = executor.submit(stay)
    print(type(future.exception(40)).__name__, future.report.status)
    print(future.report.limits["processes"].mechanism)
""",
    )
    lines = out.splitlines()
    assert lines[:3] == ["soft", "None", "SubprocessException processes"]
    assert lines[3].startswith("counted")


@requires("seccomp", "perf")
def test_this_machine_holds_all_limits_hard() -> None:
    """And strict is then satisfied."""
    for name in ("memory", "cpu_time", "wall_time", "processes", "open_files"):
        found = supports(name)
        assert (found, found.harder) == ("hard", "")
        assert found.mechanism
        assert found.bound
    LimitedProcessExecutor(
        1, memory="1GB", cpu_time=1, wall_time=1, processes=1, strict=True
    ).shutdown()


def test_unknown_limit_is_refused() -> None:
    """With the names that are known."""
    with pytest.raises(ValueError, match="limit='speed' is unknown: memory,"):
        supports("speed")


def test_task_under_an_outer_task_is_bound_by_both() -> None:
    """What runs inside is charged to the outer task."""

    def outer(function: object) -> str:
        with LimitedProcessExecutor(1) as executor:
            executor.submit(function).exception(PATIENCE)  # type: ignore[arg-type]
        return "escaped"

    with LimitedProcessExecutor(1, cpu_time=1, memory="150MB", wall_time=30) as executor:
        error = executor.submit(outer, crashes.burn).exception(PATIENCE)
        assert isinstance(error, CpuTimeoutException)
        error = executor.submit(outer, crashes.hoard_with_children).exception(PATIENCE)
        assert isinstance(error, MemorylimitException)


@requires("seccomp")
def test_gate_inside_a_gate_is_counted_instead() -> None:
    """The kernel allows one listener in a tree: the inner limit falls back, and says so."""

    def inner() -> tuple[str, str]:
        with LimitedProcessExecutor(1, processes=0, wall_time=20) as executor:
            future = executor.submit(crashes.start_sleepers, 1)
            error = future.exception(PATIENCE)
            assert future.report is not None
            return type(error).__name__, future.report.limits["processes"].mechanism

    with LimitedProcessExecutor(1, processes=30, wall_time=30) as executor:
        name, mechanism = executor.submit(inner).result(PATIENCE)
    assert (name, mechanism) == (SubprocessException.__name__, "seccomp filter")


def test_rlimits_of_the_caller_are_taken_on() -> None:
    """A soft limit that the caller changed after the template had started."""
    with LimitedProcessExecutor(1) as executor:
        executor.submit(abs, 1).result(PATIENCE)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))
        try:
            found = executor.submit(resource.getrlimit, resource.RLIMIT_NOFILE).result(PATIENCE)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found[0] == before[0] - 1


CAP_SETUID, CAP_SYS_RESOURCE = 7, 24


def capability_sets(status: str) -> dict[str, int]:
    """Return what /proc/PID/status says of them (capabilities(7))."""
    lines = [line.split() for line in status.splitlines() if line.startswith("Cap")]
    return {name[3:-1]: int(value, 16) for name, value in lines}


def give_up_and_start(write: int) -> None:
    """In a fork: do without a capability, and start a program that root would get it back by."""
    prctl.set_no_new_privs()
    capabilities.give_up(CAP_SETUID)
    os.dup2(write, 1)
    os.execv("/bin/cat", ["cat", "/proc/self/status"])  # noqa: S606 - no shell is the point


@pytest.mark.skipif(os.getuid() != 0, reason="needs root: to have a capability")
def test_capability_that_was_given_up_is_gone() -> None:
    """Also from a program that is started then."""
    before = capability_sets(Path("/proc/self/status").read_text())
    if not before["Prm"] >> CAP_SETUID & 1:
        pytest.skip("needs the capability CAP_SETUID")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            give_up_and_start(write)
        os._exit(1)
    os.close(write)
    with open(read) as file:
        after = capability_sets(file.read())
    assert os.waitpid(pid, 0)[1] == 0
    for name in ("Prm", "Eff", "Bnd"):
        assert after[name] == before[name] & ~(1 << CAP_SETUID)


def test_task_cannot_raise_hard_rlimits() -> None:
    """Root's has given up what it takes, CAP_SYS_RESOURCE: file_size and the like would be soft."""
    with LimitedProcessExecutor(1) as executor:
        text = executor.submit(Path("/proc/self/status").read_text).result(PATIENCE)
    sets = capability_sets(text)
    assert not any(sets[name] >> CAP_SYS_RESOURCE & 1 for name in ("Prm", "Eff"))
