"""Control groups: one for a slot that gains by it, where this process may make some (cgroups(7)).

A supervisor enters its group itself, once, and what it forks is in it from birth: to move each task
would cost 20 ms on a busy machine (the kernel waits for all processors), to fork into another group
needs a system call that Python's fork does not make.

Version 2 has memory.max, pids.max, cpu.stat and cgroup.kill; of version 1 only its pids hierarchy
is used: its memory limit counts no further than one's own, and is set at another place.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from pynisher_exec.kernel import proc

__all__ = ["Group", "Place", "find", "sweep"]

_PREFIX = "pynisher_exec-"
_BOUNDS = ("memory.max", "memory.high", "memory.swap.max", "pids.max", "cpu.max")


class Place(NamedTuple):
    """Directories in which groups can be made; empty where none can.

    `unified`: of version 2, with the `controllers` that a group made there has. `pids`: where
    version 1 has that controller. `own`: this process's group of version 2.
    """

    unified: str = ""
    controllers: frozenset[str] = frozenset()
    pids: str = ""
    own: str = ""


class Group:
    """The group of this process, a supervisor, and of all that it forks from `enter` on.

    Its name has pid namespace, pid and start time of the process: `sweep` removes it after that,
    which needs no move back, also when it was killed with all around it.
    """

    def __init__(self, place: Place) -> None:
        name = f"{_PREFIX}{_owner()}"
        self._place = place
        self._unified = place.unified and f"{place.unified}/{name}"
        self._pids = place.pids and f"{place.pids}/{name}"
        self._has_unified = self._has_pids = False
        self._run_out = 0
        self._room: int | None = None

    @property
    def has_memory(self) -> bool:
        """Whether it can bound memory."""
        return "memory" in self._place.controllers

    @property
    def holds_processes(self) -> bool:
        """Whether it has been entered and can bound the number of processes."""
        return self._has_pids or (self._has_unified and "pids" in self._place.controllers)

    @property
    def holds_memory(self) -> bool:
        """Whether it has been entered and can bound memory."""
        return self._has_unified and self.has_memory

    def enter(self) -> None:
        """Make it and move this process into it, as far as that is allowed."""
        with contextlib.suppress(OSError):
            if self._unified and not self._has_unified:
                _make(self._unified)
                _write(self._unified, "cgroup.procs", os.getpid())
                self._has_unified = True
                with contextlib.suppress(OSError):  # no such controller, or no swap
                    _write(self._unified, "memory.swap.max", 0)
        with contextlib.suppress(OSError):
            if self._pids and not self.holds_processes:
                _make(self._pids)
                _write(self._pids, "cgroup.procs", os.getpid())
                self._has_pids = True

    def bound_memory(self, room: int | None) -> None:
        """Let what is in it hold `room` bytes more than now; None: as much as it likes.

        What earlier tasks have left in memory (files in tmpfs) is charged to it still.
        """
        if self.holds_memory and not (room is None and self._room is None):
            self._room = room
            with contextlib.suppress(OSError):
                bound = None if room is None else room + _number(f"{self._unified}/memory.current")
                _write(self._unified, "memory.max", bound)

    def bound_processes(self, most: int | None) -> None:
        """Let there be so many processes and threads in it; None: any number."""
        if self.holds_processes:
            with contextlib.suppress(OSError):
                _write(self._pids if self._has_pids else self._unified, "pids.max", most)

    def cpu_time(self) -> float | None:
        """CPU seconds of all that was ever in it; None where it does not tell."""
        if self._has_unified:
            with contextlib.suppress(OSError), open(f"{self._unified}/cpu.stat", "rb") as file:
                return int(file.readline().split()[1]) / 1e6  # usage_usec comes first
        return None

    def has_run_out(self) -> bool:
        """Whether the kernel has ended a process at the bound on memory since the last call."""
        if self._room is None:
            return False
        before = self._run_out
        with contextlib.suppress(OSError), open(f"{self._unified}/memory.events", "rb") as file:
            counts = dict(line.split() for line in file)
            self._run_out = int(counts.get(b"oom_kill", 0))
        return self._run_out > before

    def kill_others(self) -> None:
        """End all in it but this process, in one step (cgroup.kill, since Linux 5.14)."""
        if not self._has_unified:
            return
        with contextlib.suppress(OSError):
            _write(self._place.own, "cgroup.procs", os.getpid())
            try:
                _write(self._unified, "cgroup.kill", 1)
            finally:
                _write(self._unified, "cgroup.procs", os.getpid())


def _make(directory: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory)


def _write(directory: str, name: str, value: int | None) -> None:
    with open(f"{directory}/{name}", "wb", buffering=0) as file:
        file.write(b"max" if value is None else b"%d" % value)


def _number(path: str) -> int:
    with open(path, "rb") as file:
        return int(file.read())


# Where -------------------------------------------------------------------------------------------


def find() -> Place:
    """Find where this process may make groups, by making one.

    Beside its own group first: only there can groups have memory.max while this process stays where
    it is (the rule of no internal processes). Below its own the rest works, and no bound that
    somebody has set is left.
    """
    unified, pids = _own_directories()
    found = [
        (controllers, each)
        for each in ([_beside(unified), unified] if unified else [])
        if each and (controllers := _controllers_of_a_group_in(each)) is not None
    ]
    controllers, best = max(found, key=lambda each: len(each[0]), default=(frozenset(), ""))
    usable = pids if pids and _controllers_of_a_group_in(pids) is not None else ""
    return Place(best, controllers, usable, unified)


def _beside(own: str) -> str:
    """Where groups beside a process's own would be made; empty where that would free it.

    A slot's group is not left by an executor inside of its task, nor one that has a bound.
    """
    if own in {mount.target for mount in _mounts()} or os.path.basename(own).startswith(_PREFIX):
        return ""
    for name in _BOUNDS:
        with contextlib.suppress(OSError), open(f"{own}/{name}", encoding="ascii") as file:
            if not file.read().startswith("max"):
                return ""
    return os.path.dirname(own)


def _own_directories() -> tuple[str, str]:
    """Directories of the groups that this process is in: version 2's, and version 1's for pids."""
    own: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            own.update(dict.fromkeys(controllers.split(","), path))
    unified = pids = ""
    for mount in _mounts():
        if mount.kind == "cgroup2" and "" in own:
            unified = _below(own[""], mount)
        elif mount.kind == "cgroup" and "pids" in mount.options and "pids" in own:
            pids = _below(own["pids"], mount)
    return unified, pids


class _Mount(NamedTuple):
    """A mounted hierarchy: what lies below `root` in it is seen at `target`."""

    kind: str
    root: str
    target: str
    options: list[str]


def _mounts() -> list[_Mount]:
    """See proc_pid_mountinfo(5)."""
    found = []
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            if " - cgroup" in line:
                fields, _, rest = line.partition(" - ")
                kind, _, options = rest.split()[:3]
                root, target = fields.split()[3:5]
                found.append(_Mount(kind, root, target, options.split(",")))
    return found


def _below(path: str, mount: _Mount) -> str:
    """Where a group's path is seen; empty if it lies outside of what the mount shows."""
    root = mount.root.rstrip("/")
    if "/.." in path or not f"{path}/".startswith(f"{root}/"):
        return ""
    return (mount.target + path[len(root) :]).rstrip("/")


def _controllers_of_a_group_in(directory: str) -> frozenset[str] | None:
    """What a group made there has (nothing in version 1); None where none can be made."""
    trial = f"{directory}/{_PREFIX}{_owner()}"
    try:
        os.mkdir(trial)
    except OSError:
        return None
    try:
        with open(f"{trial}/cgroup.controllers", encoding="ascii") as file:
            return frozenset(file.read().split())
    except OSError:
        return frozenset()
    finally:
        os.rmdir(trial)


# What was left -----------------------------------------------------------------------------------


def _owner() -> str:
    """How this process signs a group: told from all that ever had, or will have, its pid."""
    return f"{_namespace()}.{os.getpid()}.{_started(os.getpid())}"


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _started(pid: int) -> int:
    """When a process was started; 0 where it has ended."""
    current = proc.stat(pid)
    return current.started if current is not None and current.alive else 0


def sweep(place: Place) -> None:
    """Remove the groups of supervisors that are no more; what is still in them is ended first."""
    for directory in {place.unified, place.pids} - {""}:
        with contextlib.suppress(OSError):
            for name in os.listdir(directory):
                if name.startswith(_PREFIX) and _is_nobodys(name):
                    _clear(f"{directory}/{name}")


def _is_nobodys(name: str) -> bool:
    """Whether it was a supervisor's of this pid namespace, whose pids alone can be looked up."""
    parts = name[len(_PREFIX) :].split(".")
    if len(parts) != 3 or not all(map(str.isdecimal, parts)):  # noqa: PLR2004  (see `_owner`)
        return False
    namespace, pid, started = map(int, parts)
    return namespace == _namespace() and _started(pid) != started


def _clear(directory: str) -> None:
    with contextlib.suppress(OSError):
        _write(directory, "cgroup.kill", 1)
    for below, _, _ in os.walk(directory, topdown=False):  # executors inside of tasks have theirs
        with contextlib.suppress(OSError):  # what has been told to die may not have died yet
            os.rmdir(below)
