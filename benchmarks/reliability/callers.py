"""What a caller may be, do and suffer meanwhile: scripts, each run as a process of its own."""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.processes import state_of
from benchmarks.reliability.check import Check
from benchmarks.reliability.neighbours import SHARED
from benchmarks.reliability.nested import NESTED
from benchmarks.reliability.scripts import PATIENCE, Script, run_all
from benchmarks.reliability.signalled import SIGNALLED

__all__ = ["CHECKS"]


def burn(seconds: float) -> None:
    """Use the processor."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def seen() -> tuple[object, ...]:
    """What an interpreter's flags have made of it."""
    flags = sys.flags
    kept = flags.dev_mode, flags.optimize, flags.utf8_mode, flags.isolated, __debug__
    seeded = "PYTHONHASHSEED" in os.environ and not flags.ignore_environment
    hashed = hash("hash") if seeded else None
    return *kept, list(sys.warnoptions), faulthandler.is_enabled(), hashed


def write_and_end(how: str) -> str:
    """Write to both streams and to a file, then end in some way."""
    print("out")
    print("err", file=sys.stderr)
    Path(tempfile.mkdtemp(), "file").write_text("x")
    if how == "crash":
        os.kill(os.getpid(), 9)
    elif how == "raise":
        raise ValueError(how)
    elif how == "sleep":
        time.sleep(PATIENCE)
    return how


def tell_and_sleep(path: str) -> None:
    """Tell own pid and the moment."""
    Path(path).write_text(f"{os.getpid()} {time.monotonic()}\n")
    time.sleep(30)


class _Standstills:
    """The longest time for which this machine itself stood still: a virtual one may.

    A process that does nothing but sleep was as late, and the kernel says that it was without its
    processors (steal, proc_stat(5)): then no program here can have been in time.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = time.monotonic()
        self._steals = [(self._last, self._steal())]

    @staticmethod
    def _steal() -> int:
        with open("/proc/stat", encoding="ascii") as file:
            return int(file.readline().split()[8])

    def sleep(self) -> None:
        """Sleep for half a millisecond, and see how long it was."""
        time.sleep(0.0005)
        now = time.monotonic()
        gap, self._last = now - self._last, now
        if gap < STANDSTILL and now - self._steals[-1][0] < STANDSTILL / 2:
            return
        self._steals = [*self._steals[-4:], (now, self._steal())]  # which is told a little late
        ticks = self._steals[-1][1] - self._steals[0][1]
        if gap >= STANDSTILL and ticks >= gap * os.sysconf("SC_CLK_TCK") * STOLEN:
            self.longest = max(self.longest, gap)


STANDSTILL = 0.1
"""Seconds; no load of ours keeps a process that sleeps waiting for longer."""

STOLEN = 0.3
"""Of a processor's time, at least, while it stands still."""


def watch(path: str, limit: float) -> int:
    """Start a process that tells by how much another outlived its limit; give its pid.

    When `path-over` is there it tells that, and for how long the machine itself stood still.
    """
    watcher = os.fork()
    if watcher == 0:
        place, over = Path(path), Path(f"{path}-over")
        stood = _Standstills()
        while not (place.exists() and place.read_text().endswith("\n")):
            stood.sleep()
        pid, began = place.read_text().split()
        while state_of(int(pid)) not in ("", "Z"):
            stood.sleep()
        late = time.monotonic() - float(began) - limit
        while not over.exists():
            stood.sleep()
        place.write_text(f"{late} {stood.longest}")
        os._exit(0)
    return watcher


LATENESS = """
import tempfile
from functools import partial
from benchmarks.reliability import deeds
from benchmarks.reliability.callers import tell_and_sleep, watch

def lateness(disturb):
    path = tempfile.mktemp()
    watcher = watch(path, 0.5)
    with LimitedProcessExecutor(4) as executor:
        wall = executor.limit(wall_time=0.5).submit(tell_and_sleep, path)
        begun = [path, *(f"{path}-{name}" for name in ("cpu", "memory", "forks"))]
        cpu = executor.limit(cpu_time=0.5).submit(deeds.after, begun[1], 0, partial(burn, 30))
        memory = executor.limit(memory="100MiB").submit(
            deeds.after, begun[2], 0.3, partial(deeds.hog_in_children, 300 << 20)
        )
        forks = executor.limit(processes=3).submit(
            deeds.after, begun[3], 0.3, partial(deeds.fork_too_often, swallow=False)
        )
        futures = wall, cpu, memory, forks
        while not all(map(os.path.exists, begun)):  # a future runs before its call is sent
            time.sleep(0.001)
        disturb()
        over = time.time()
        for future in futures:
            future.exception(30)
    open(f"{path}-over", "w").close()
    os.waitpid(watcher, 0)
    seen, stood = map(float, open(path).read().split())
    for each in (*begun, f"{path}-over"):
        os.unlink(each)
    late = wall.report.wall_time - 0.5, cpu.report.cpu_time - 0.5
    # The task tells its first moment when it has a core, and four of them begin at once on two.
    good = all(0 <= each < 0.2 + stood for each in late) and -0.1 < seen < 0.2 + stood
    ends = [future.report.started_at + future.report.wall_time for future in futures]
    prompt = max(ends) < over  # each limit was held before the caller could do anything
    print(good, prompt, *(str(future.report.status) for future in futures))
    print("late", max(seen, *late) - stood, "seen, wall, CPU:", seen, *late, file=sys.stderr)
    print("the machine itself stood still for", stood, "s", file=sys.stderr)
"""

HELD = "True True wall_time cpu_time memory processes\n"

DISTURBED = (
    Script(
        "stopped",
        LATENESS
        + """
def stop():
    pid, began = os.getpid(), time.monotonic()
    waker = os.fork()
    if waker == 0:
        time.sleep(3)
        os.kill(pid, signal.SIGCONT)
        os._exit(0)
    os.kill(pid, signal.SIGSTOP)
    assert time.monotonic() - began > 2.9  # past all limits
    os.waitpid(waker, 0)
lateness(stop)
""",
        HELD,
    ),
    Script(
        "in C with the interpreter lock",
        LATENESS + "lateness(lambda: sum(range(250_000_000)))",
        HELD,
    ),
    Script(
        "touching 4 GiB",
        LATENESS + "lateness(lambda: len(bytearray(4 << 30).replace(b'x', b'y')[:1]))",
        HELD,
    ),
)

CLEAN = tuple(
    Script(
        " ".join([*(f"{name}={value}" for name, value in environment.items()), *flags]),
        """
        from benchmarks.reliability.callers import write_and_end
        with LimitedProcessExecutor(
            2, memory="1GiB", cpu_time=20, wall_time=1, capture_output=True, private_tmp=True
        ) as executor:
            good = answers(executor)
            same = executor.submit(seen).result({patience}) == seen()
            ways = ["return", "raise", "crash", "sleep"]
            futures = [executor.submit(write_and_end, way) for way in ways]
            cancelled = executor.submit(time.sleep, 60).cancel()
            told = [str(future.wait_for_report().status) for future in futures]
            clean = {future.report.stderr for future in futures} == {"err\\n"}
            plain = executor.submit(abs, -1)
            clean = clean and plain.wait_for_report().stderr == ""
        for context in ("spawn", "forkserver"):  # loky passes none on
            with LimitedProcessExecutor(1, context=context) as executor:
                same = same and executor.submit(seen).result({patience}) == seen()
        print(good, same, cancelled, clean, *told, limited(abs)(-1))
        """.replace("{patience}", str(PATIENCE)),
        "True True True True ok exception signal wall_time 1\n",
        flags=flags,
        quiet=True,
        environment=environment,
    )
    for environment, *flags in (
        ({}, "-X", "dev", "-W", "error"),
        ({}, "-O"),
        ({}, "-OO"),
        ({}, "-I"),
        ({}, "-X", "utf8"),
        ({"PYTHONHASHSEED": "5"},),
        ({"PYTHONHASHSEED": "0", "PYTHONFAULTHANDLER": "1"}, "-X", "faulthandler"),
    )
)


def _check(number: int, promise: str, how: str, scripts: tuple[Script, ...], full: int) -> Check:
    return Check(number, promise, how, partial(run_all, scripts), full, len(scripts))


CHECKS = (
    _check(
        4,
        "limits hold while the caller is held up, at most 0.2 s late while the machine goes on",
        "caller stopped, in C with the interpreter lock, touching 4 GiB",
        DISTURBED,
        30,
    ),
    _check(
        11,
        "signals to the caller, and children of its own, do what they do without us",
        "SIGTERM, SIGINT; SIGCHLD handled twice, ignored; a waitpid(-1) loop; statuses checked",
        SIGNALLED,
        63,
    ),
    _check(
        17,
        "executors in tasks: the tightest limit holds",
        "three deep, wall, memory, CPU, processes, tighter inside and tighter outside",
        NESTED,
        20,
    ),
    _check(
        19,
        "executors do not meet by accident",
        "two asked at once; forks that end in 7 ways; an exec that lives on; beyond their thread",
        SHARED,
        40,
    ),
    _check(
        21,
        "interpreter flags reach tasks, and runs are clean",
        "-X dev -W error, -O, -OO, -I, PYTHONHASHSEED, faulthandler",
        CLEAN,
        28,
    ),
)
