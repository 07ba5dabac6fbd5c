"""Control groups, where one can be made here: used where perf is refused, and none is left.

What needs version 2 with its controllers, or a user to whom a group is delegated, is tried in an
emulated system of its own, by `tests/guest/boot.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

from benchmarks.processes import descendants
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.scripts import Script, run_all
from pynisher_exec.kernel import cgroup

__all__ = ["CHECKS"]

PATIENCE = 10
IN_MODIFY = 2


# Called by the scripts ---------------------------------------------------------------------------


def of(pid: int) -> set[str]:
    """Groups of the supervisors below a process."""
    below = {str(each) for each in descendants(pid)}
    found = Path(cgroup.find()).glob("pynisher_exec-*.*.*")
    return {str(path) for path in found if path.name.split(".")[1] in below}


def are_gone(names: set[str]) -> bool:
    """Whether there were any, and soon none of them is there."""
    deadline = time.monotonic() + PATIENCE
    while any(map(os.path.exists, names)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(names) and not any(map(os.path.exists, names))


def watch_for_kills(names: set[str]) -> int:
    """Have inotify(7) note what is written in them: only root may watch cgroup.kill itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch: int = libc.inotify_init1(os.O_NONBLOCK)
    for name in names:
        if libc.inotify_add_watch(watch, name.encode(), IN_MODIFY) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")
    return watch


def wrote(watch: int) -> bool:
    """Whether somebody has written to cgroup.kill."""
    events = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            events += os.read(watch, 4096)
    return b"cgroup.kill" in events


def kill_with_all_below(pid: int) -> None:
    """Stop a process and its descendants, so that none can clean up, then kill them all."""
    pids = [pid]
    for each in pids:  # grows while it is walked
        with contextlib.suppress(OSError):
            os.kill(each, signal.SIGSTOP)
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            pids += map(int, children.read_text().split())
    for each in pids:
        with contextlib.suppress(ProcessLookupError):  # it had ended before it could be stopped
            os.kill(each, signal.SIGKILL)
    os.waitpid(pid, 0)


def fork_many(count: int) -> None:
    """Have that many sleeping children."""
    for _ in range(count):
        if os.fork() == 0:
            time.sleep(600)
    time.sleep(600)


# The scripts -------------------------------------------------------------------------------------

HEAD = """
from benchmarks.reliability import groups, jails
from benchmarks.reliability.attacks import burn_disowned
"""

VICTIM = """
ready, tell = os.pipe()
victim = os.fork()
if victim == 0:
    jails.refuse_calls("perf_event_open")
    executor = LimitedProcessExecutor(2)
    answers(executor)
    executor.submit(time.sleep, 600)
    os.write(tell, b"x")
    signal.pause()
os.read(ready, 1)
made = groups.of(victim)
"""

SCRIPTS = (
    Script(
        "CPU time counted by a group",
        HEAD
        + """
jails.refuse_calls("perf_event_open")
with LimitedProcessExecutor(2, wall_time=30) as executor:
    future = executor.limit(cpu_time=0.3).submit(burn_disowned, 1)
    future.exception(60)
    made = groups.of(os.getpid())
    report = future.report
    good = answers(executor) and (report.status, report.limits["cpu_time"].mechanism)
print(good == ("cpu_time", "cgroup cpu.stat") and groups.are_gone(made))
""",
    ),
    Script(
        "150 processes in a group, ended at once",
        HEAD
        + """
jails.refuse_calls("perf_event_open")
with LimitedProcessExecutor(1, wall_time=3) as executor:  # to fork them takes an emulator one
    answers(executor)
    made = groups.of(os.getpid())
    watch = groups.watch_for_kills(made)
    future = executor.submit(groups.fork_many, 150)
    future.exception(60)
    good = answers(executor) and str(future.report.status) == "wall_time" and groups.wrote(watch)
print(good and groups.are_gone(made))
""",
    ),
    Script(
        "the caller is killed",
        HEAD
        + VICTIM
        + """
os.kill(victim, signal.SIGKILL)
os.waitpid(victim, 0)
print(groups.are_gone(made))
""",
    ),
    Script(
        "the caller and all its helpers are killed at once, then another starts",
        HEAD
        + VICTIM
        + """
groups.kill_with_all_below(victim)
with LimitedProcessExecutor(1) as executor:
    good = answers(executor)
print(good and groups.are_gone(made))
""",
    ),
)


def _refusal() -> str:
    """What the kernel says to it."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in mounts if " - cgroup2 " in line]
    if not points:
        return "none is mounted"
    own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
    trial = Path(f"{points[0]}{own}", f"trial-{os.getpid()}")
    try:
        trial.mkdir()
    except OSError as error:
        return str(error)
    trial.rmdir()
    return "one can be, by mkdir"


def groups(count: int) -> Found:
    """Row 18."""
    if not cgroup.find():
        return Found(0, [], "", f"no cgroup of version 2 can be made here: {_refusal()}")
    return run_all(SCRIPTS, count)


CHECKS = (
    Check(
        18,
        "control groups are used where they make a limit harder, and none is left",
        "perf refused; a large tree; the caller killed, and killed with all its helpers",
        groups,
        40,
        len(SCRIPTS),
    ),
)
