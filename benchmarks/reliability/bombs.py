"""Fork bombs. Each runs in a caller of its own, which a pids cgroup bounds from outside."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import state_of, zombies
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.marks import Mark
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CHECKS"]

PATIENCE = 60
WALL_TIME = 1
MOST_LATE = 5
"""Seconds by which a wall limit may be passed where hundreds of processes want two processors."""

OURS = 10
"""Processes beside those of the task: caller, template, two supervisors, and the other's tasks."""

MOST = 400
"""Processes and threads that a bomb's whole caller may have."""


def plain() -> None:
    """Every process forks for ever."""
    while True:
        with contextlib.suppress(OSError):
            os.fork()


def double() -> None:
    """Each fork forks, and the one between ends: nobody has a parent for long."""
    while True:
        with contextlib.suppress(OSError):
            if os.fork() == 0:
                with contextlib.suppress(OSError):
                    os.fork()


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


def square(number: int) -> int:
    """Be another task."""
    return number * number


def explode(name: str, processes: int | None) -> dict[str, Any]:
    """Run a bomb beside other tasks, in this process, and tell what came of it."""
    began = time.monotonic()
    with LimitedProcessExecutor(2, preload=[__name__]) as executor:
        bomb = executor.limit(processes=processes, wall_time=WALL_TIME).submit(BOMBS[name])
        others = [executor.submit(square, number) for number in range(20)]
        right = all(other.result(PATIENCE) == n * n for n, other in enumerate(others))
        bomb.exception(PATIENCE)
    report = bomb.report
    return {
        "right": right,
        "status": "none" if report is None else report.status,
        "zombies": len(zombies()),
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
    """The most processes alive at once that a group was seen to have, looked at from outside."""

    def __init__(self, group: Path) -> None:
        self.count = 0
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
        while not self._stop.wait(0.002):
            alive = [pid for pid in self._path.read_text().split() if state_of(int(pid)) != "Z"]
            self.count = max(self.count, len(alive))


def _one(name: str, processes: int | None) -> tuple[list[str], float]:
    """Run one bomb in a caller of its own; give what went wrong and the seconds beyond a second."""
    mark = Mark()
    with _bounded_group() as group, _Most(group) as most:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.reliability.bombs", name, str(processes or "")],
            capture_output=True,
            check=False,
            env={**mark.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None,
            text=True,
            timeout=PATIENCE / 2,
        )
        left = mark.scan()
    if done.returncode:
        return [f"{name}: {done.stderr[-300:]}"], 0.0
    found = json.loads(done.stdout)
    wrong = [] if found["right"] else [f"{name}: another task's value was wrong"]
    expected = ("wall_time", "processes") if processes else ("wall_time",)
    if found["status"] not in expected:
        wrong.append(f"{name}: status {found['status']}")
    if processes and most.count > processes + OURS:
        wrong.append(f"{name}: {most.count} processes at once")
    if not processes and most.count < 2 * OURS:
        wrong.append(f"{name}: no bomb, only {most.count} processes at once")
    wrong += [f"{name}: {found['late']:.1f} s late"] if found["late"] > MOST_LATE else []
    wrong += [f"{name}: {found['zombies']} zombies"] if found["zombies"] else []
    wrong += [f"{name}: {len(left)} survivors"] if left else []
    return wrong, found["seconds"]


def bombs(count: int) -> Found:
    """Row 2: of each kind as often, half of them with a limit of subprocesses."""
    failures: list[str] = []
    slowest = dict.fromkeys(BOMBS, 0.0)
    try:
        with _bounded_group():
            pass
    except OSError as error:
        return Found(0, [], "", f"no pids cgroup can be made here: {error!r}")
    for number in range(count):
        name = list(BOMBS)[number % len(BOMBS)]
        bounded = number // len(BOMBS) % 2
        try:
            wrong, seconds = _one(name, 20 if bounded else None)
        except OSError as error:  # the group is in use still: something has survived
            wrong, seconds = [f"{name}: {error}"], PATIENCE
        except subprocess.TimeoutExpired:
            wrong, seconds = [f"{name}: hangs"], PATIENCE / 2
        failures += wrong
        slowest[name] = max(slowest[name], seconds)
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
    print(json.dumps(explode(sys.argv[1], int(sys.argv[2]) if sys.argv[2] else None)))
