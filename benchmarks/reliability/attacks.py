"""An attack on each limit, and whether it finds what `supports` says of that limit."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynisher_exec import LimitedProcessExecutor, TimeoutException, supports

if TYPE_CHECKING:
    from pynisher_exec import LimitedFuture

__all__ = ["RLIMITS", "burn_disowned", "is_true", "start_programs_slowly"]

PATIENCE = 60
SOFTLY = ("counted", "summed process clocks")
"""The mechanisms, as reports name them, of limits that can be outrun."""

RLIMITS = ("open_files", "file_size", "core_size")
"""What each process is bound by alone."""

LATEST = 1.0
"""Seconds by which a wall limit is passed where other rows, or a suite, want the processors too."""


def fork_in_a_burst(count: int) -> int:
    """Start processes that end as soon as all have been started; how many came up."""
    waiting, ending = os.pipe()
    pids = []
    with contextlib.suppress(OSError):
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                os.close(ending)
                os.read(waiting, 1)
                os._exit(0)
            pids.append(pid)
    os.close(ending)
    for pid in pids:
        os.waitpid(pid, 0)
    return len(pids)


def burn_disowned(seconds: float) -> None:
    """Use CPU time in children that nobody reaps, one after the other."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(int(seconds / 0.05)):
        if os.fork() == 0:
            end = time.process_time() + 0.05
            while time.process_time() < end:
                pass
            os._exit(0)
        with contextlib.suppress(ChildProcessError):
            os.wait()


def hold(size: int) -> None:
    """Hold memory in five processes, in pieces that no rlimit of any refuses; one is shared."""
    shared = mmap.mmap(-1, size // 5)
    shared.write(bytes(size // 5))
    for _ in range(4):
        if os.fork() == 0:
            held = bytearray(b"x") * (size // 5)
            time.sleep(60)
            del held
    time.sleep(60)


def start_programs_slowly(size: int, seconds: float) -> None:
    """Hold memory, and start programs whose exec takes a while: a long PATH is searched."""
    held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(0, size, 1 << 20):
        held.write(bytes(1 << 20))
    path = ":".join([*(f"/nowhere/{number}" for number in range(8_000)), "/bin"])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        subprocess.run(["true"], check=True, env={"PATH": path})  # noqa: S607 - it is to be searched


def _lift(kind: int) -> None:
    """What a task would do first that does not want to be limited."""
    for most in (resource.RLIM_INFINITY, 1 << 20):  # files have a highest number, fs.nr_open
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))
            return


def open_many(count: int) -> int:
    """Open that many files, and say how many this process can have."""
    _lift(resource.RLIMIT_NOFILE)
    held = len(os.listdir("/proc/self/fd")) - 1
    with contextlib.suppress(OSError):
        for _ in range(count):
            os.open("/dev/null", os.O_RDONLY)
            held += 1
    return held


def write_much(size: int) -> int:
    """Write that much to one file, and say how large it has become."""
    _lift(resource.RLIMIT_FSIZE)
    with tempfile.TemporaryFile(buffering=0) as file:
        with contextlib.suppress(OSError):
            for _ in range(0, size, 1024):
                file.write(bytes(1024))
        return os.fstat(file.fileno()).st_size


def largest_core() -> int:
    """Bytes that a crash of this process may leave behind."""
    _lift(resource.RLIMIT_CORE)
    return resource.getrlimit(resource.RLIMIT_CORE)[0]


def swallow_and_stay() -> None:
    """Take no notice of the soft signal."""
    with contextlib.suppress(TimeoutException):
        time.sleep(60)
    time.sleep(60)


class SlowToLoad:
    """An argument that takes its time."""

    def __reduce__(self) -> Any:
        return time.sleep, (60,)


def _attack(*, no_new_privs: bool) -> tuple[dict[str, bool], dict[str, str]]:
    """Attack each limit: whether it was held, and the mechanism where there are several."""
    with (
        LimitedProcessExecutor(1, startup_time=0.5, no_new_privs=no_new_privs) as slow,
        LimitedProcessExecutor(1, wall_time=20, no_new_privs=no_new_privs) as executor,
    ):
        loading = slow.submit(id, SlowToLoad())
        bursts = [executor.limit(processes=2).submit(fork_in_a_burst, 3) for _ in range(5)]
        cpu = executor.limit(cpu_time=0.3).submit(burn_disowned, 1)
        memory = executor.limit(memory="100MB").submit(hold, 250 << 20)
        wall = executor.limit(wall_time=0.2).submit(time.sleep, 60)
        grace = executor.limit(wall_time=0.2, grace_period=0.2).submit(swallow_and_stay)
        files = executor.limit(open_files=40).submit(open_many, 50)
        size = executor.limit(file_size=4096).submit(write_much, 8192)
        core = executor.limit(core_size=0).submit(largest_core)
        ended: list[LimitedFuture[Any]] = [loading, *bursts, cpu, memory, wall, grace]
        for future in ended:
            future.exception(PATIENCE)
        held = {
            "processes": all(_status(each) == "processes" or each.result() <= 2 for each in bursts),
            "cpu_time": _status(cpu) == "cpu_time",
            "memory": _status(memory) == "memory",
            "wall_time": _ended_in_time(wall, "wall_time", 0.2),
            "grace_period": _ended_in_time(grace, "wall_time", 0.4),
            "startup_time": _status(loading) == "startup",
            "open_files": files.result(PATIENCE) <= 40,
            "file_size": size.result(PATIENCE) <= 4096,
            "core_size": core.result(PATIENCE) == 0,
        }
    used = {
        "processes": bursts[0].report.limits["processes"].mechanism,  # type: ignore[union-attr]
        "cpu_time": cpu.report.limits["cpu_time"].mechanism,  # type: ignore[union-attr]
    }
    return held, used


def _ended_in_time(future: LimitedFuture[Any], status: str, seconds: float) -> bool:
    """Whether a task was ended at a wall limit, and not long after it on a machine that is busy."""
    took = 0.0 if future.report is None else future.report.wall_time
    return _status(future) == status and seconds <= took < seconds + LATEST


def is_true(*may_be_soft: str, no_new_privs: bool = True) -> bool:
    """Whether an attack on each limit finds what is said of it: hard, unless it is named here.

    What is soft may hold all the same: it is not promised.
    """
    if Path("/proc/sys/kernel/core_pattern").read_text(encoding="ascii").startswith("|"):
        may_be_soft += ("core_size",)
    held, used = _attack(no_new_privs=no_new_privs)
    told = {name: str(supports(name, no_new_privs=no_new_privs)) for name in held}
    accepted = {name: _is_accepted_strictly(name, no_new_privs=no_new_privs) for name in told}
    print(told, held, used, accepted, file=sys.stderr)
    agreed = all(accepted[name] == (word == "hard") for name, word in told.items())
    agreed = agreed and all((used[name] in SOFTLY) == (told[name] == "soft") for name in used)
    return agreed and all(
        held[name] if word == "hard" else name in may_be_soft for name, word in told.items()
    )


def _is_accepted_strictly(name: str, *, no_new_privs: bool) -> bool:
    """Whether an executor that takes only hard limits takes this one."""
    limits: dict[str, Any] = {name: "100MB" if name == "memory" else 1}
    if name == "grace_period":
        limits["wall_time"] = 1
    try:
        LimitedProcessExecutor(1, strict=True, no_new_privs=no_new_privs, **limits).shutdown()
    except ValueError:
        return False
    return True


def _status(future: LimitedFuture[Any]) -> str:
    return "" if future.report is None else str(future.report.status)
