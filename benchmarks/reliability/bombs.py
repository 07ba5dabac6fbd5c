"""Fork bombs. Each runs in a caller of its own, which a pids cgroup bounds from outside."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import state_of, zombies
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.marks import VARIABLE, Looks, Mark, marked, nobody_left
from pynisher_exec import LimitedProcessExecutor, supports

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CHECKS"]

PATIENCE = 60
WALL_TIME = 1
MOST_LATE = 5
"""Seconds by which a wall limit may be passed where hundreds of processes want two processors."""

LEAST = 20
"""Processes that a bomb without a limit has at least, else it has not gone off."""

MOST = 400
"""Processes and threads that a bomb's whole caller may have."""


def plain() -> None:
    """Every process forks for ever."""
    while True:
        with contextlib.suppress(OSError):
            os.fork()


def double() -> None:
    """Each fork forks, and the one between ends: what is new has lost its parent."""
    while True:
        with contextlib.suppress(OSError):
            between = os.fork()
            if between:
                os.waitpid(between, 0)
            else:
                _fork_away()


def _fork_away() -> None:
    """End, and go on as a fork, if there can be one."""
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)


def by_vfork() -> None:
    """By posix_spawn, which vforks; each program is this one again."""
    code = "from benchmarks.reliability.bombs import by_vfork; by_vfork()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    while True:
        with contextlib.suppress(OSError):
            os.posix_spawn(sys.executable, [sys.executable, "-c", code], environment)


def orphans() -> None:
    """Each fork goes into a session of its own, forks and ends: nobody's parent is alive."""
    while True:
        with contextlib.suppress(OSError):
            if os.fork() == 0:
                _run_away()


def _run_away() -> None:
    while True:
        with contextlib.suppress(OSError):
            if os.fork():
                os._exit(0)
            os.setsid()


def threads() -> None:
    """Each process has threads that fork."""

    def fork() -> None:
        while True:
            with contextlib.suppress(OSError):
                os.fork()

    while True:
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=fork, daemon=True).start()
        time.sleep(0.01)


BOMBS = {each.__name__: each for each in (plain, double, by_vfork, orphans, threads)}


FEW = {"orphans", "by_vfork"}
"""Those that seldom reach their limit: they end at once, or have to start an interpreter first."""


def square(number: int) -> int:
    """Be another task."""
    return number * number


SQUARES = [number * number for number in range(10)]


def explode(name: str, mark: str, processes: int | None) -> dict[str, Any]:
    """Run a bomb beside other tasks, in this process, and tell what came of it."""
    began = time.monotonic()
    looks = Looks()
    with LimitedProcessExecutor(2, preload=[__name__]) as executor:
        limited = executor.limit(processes=processes, wall_time=WALL_TIME)
        bomb = limited.submit(marked, mark, BOMBS[name])
        looks.at(bomb, partial(nobody_left, Mark(mark)))
        others = []
        right = True
        while not bomb.done() and time.monotonic() - began < PATIENCE / 3:
            others += [executor.submit(square, number) for number in range(10)]
            right &= [other.result(PATIENCE) for other in others[-10:]] == SQUARES
        wait([bomb], PATIENCE)
        hanging = zombies()  # no task runs any more, and supervisors are still there
    report = bomb.report
    # A task that has just ended may be a zombie until its own supervisor looks.
    found = looks.zombies - {other.report.pid for other in others if other.report}
    return {
        "wrong": looks.failures(1) + ([] if right else ["another task's value was wrong"]),
        "status": "none" if report is None else report.status,
        "peak": 0 if report is None else report.peak_processes,
        "zombies": len({*found, *hanging, *zombies()}),
        "seconds": time.monotonic() - began - WALL_TIME,
        "late": 0 if report is None else report.wall_time - WALL_TIME,
    }


def _own_group() -> Path:
    """Where this process's group for counting processes lies: of version 1, or of version 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "pids" in controllers.split(","):
            return Path("/sys/fs/cgroup/pids", path.lstrip("/"))
        if not controllers and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            return Path("/sys/fs/cgroup", path.lstrip("/"))
    msg = "no hierarchy counts processes"
    raise OSError(msg)


@contextlib.contextmanager
def _bounded_group() -> Iterator[Path]:
    """A pids cgroup for one caller, gone afterwards; OSError where none can be made."""
    group = _own_group() / f"reliability-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    try:
        (group / "pids.max").write_text(str(MOST))
        yield group
    finally:
        deadline = time.monotonic() + PATIENCE
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
        group.rmdir()


class _Most:
    """The most processes alive at once in a group, looked at from outside.

    With a mark those alone that have it, and no zombie does: not among hundreds that want the
    processors, for that takes long.
    """

    def __init__(self, group: Path, mark: Mark | None) -> None:
        self.count = 0
        self.broken = ""
        self._mark = f"{VARIABLE}={mark.value}".encode() if mark else b""
        self._path = group / "cgroup.procs"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Most:  # noqa: PYI034  (typing.Self came with Python 3.11)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        try:
            while not self._stop.wait(0.002):
                pids = self._path.read_text().split()
                self.count = max(self.count, sum(map(self._is_its, pids)))
        except OSError as error:
            self.broken = f"nobody counted from outside: {error!r}"

    def _is_its(self, pid: str) -> bool:
        if not self._mark:
            return state_of(int(pid)) not in ("", "Z")
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # it has gone
            return False


def _one(name: str, processes: int | None) -> tuple[list[str], float]:
    """Run one bomb in a caller of its own; give what went wrong and the seconds beyond a second."""
    mark, of_bomb = Mark(), Mark()
    arguments = [name, of_bomb.value, str(processes or "")]
    with _bounded_group() as group, _Most(group, of_bomb if processes else None) as most:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.reliability.bombs", *arguments],
            capture_output=True,
            check=False,
            env={**mark.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None,
            text=True,
            timeout=PATIENCE / 2,
        )
        left = mark.scan([of_bomb.value])
    if done.returncode:
        return [f"{name}: {done.stderr[-300:]}"], 0.0
    found = json.loads(done.stdout)
    wrong = [*found["wrong"], *_wrong_figures(name, found, most, processes)]
    wrong += [f"{len(left)} survivors"] if left else []
    return [f"{name}: {each}" for each in wrong], found["seconds"]


def _wrong_figures(
    name: str, found: dict[str, Any], most: _Most, processes: int | None
) -> Iterator[str]:
    """Whether the bomb went off, and was held where it should be."""
    least = (processes or 0) // 4 if name in FEW else processes or 0
    counted = processes is not None and supports("processes") != "hard"  # and not refused
    if found["status"] != "wall_time" and not (counted and found["status"] == "processes"):
        yield f"status {found['status']}"
    if most.broken:
        yield most.broken
    if processes and not counted and max(most.count - 1, found["peak"]) > processes:
        yield f"{most.count} processes at once, {found['peak']} by the report"
    if processes and max(most.count, found["peak"]) < least:  # one looks seldom, one counts few
        yield f"no bomb, only {most.count} processes at once, {found['peak']} by the report"
    if not processes and most.count < LEAST:
        yield f"no bomb, only {most.count} processes at once"
    if found["late"] > MOST_LATE:
        yield f"{found['late']:.1f} s late"
    if found["zombies"]:
        yield f"{found['zombies']} zombies"


def bombs(count: int) -> Found:
    """Row 2: of each kind as often, half of them with a limit of subprocesses."""
    failures: list[str] = []
    slowest = dict.fromkeys(BOMBS, 0.0)
    ways: Counter[tuple[str, int]] = Counter()
    try:
        with _bounded_group():
            pass
    except OSError as error:
        return Found(0, [], "", f"no pids cgroup can be made here: {error!r}")
    for number in range(count):
        name = list(BOMBS)[number % len(BOMBS)]
        bounded = (number % len(BOMBS) + number // len(BOMBS)) % 2  # each kind in turn both ways
        try:
            wrong, seconds = _one(name, 20 if bounded else None)
        except OSError as error:  # the group is in use still: something has survived
            wrong, seconds = [f"{name}: {error}"], PATIENCE
        except subprocess.TimeoutExpired:
            wrong, seconds = [f"{name}: hangs"], PATIENCE / 2
        ways[name, bounded] += 1
        failures += wrong
        slowest[name] = max(slowest[name], seconds)
    rounds, rest = divmod(count, len(BOMBS) * 2)
    if not rest and list(ways.values()) != [rounds] * len(BOMBS) * 2:
        failures.append(f"not each kind was tried as often, both ways: {ways}")
    shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in slowest.items())
    return Found(count, failures, f"beside the second that each may take: {shown}")


CHECKS = (
    Check(
        2,
        "a fork bomb is ended whole, and no other task is harmed",
        f"five kinds, with processes=20 and without, at most {MOST} processes from outside",
        bombs,
        200,
        10,
    ),
)


if __name__ == "__main__":
    bomb, its_mark, most_processes = sys.argv[1:]
    print(json.dumps(explode(bomb, its_mark, int(most_processes) if most_processes else None)))
