"""Control groups of version 2, for two things that no controller is needed for (cgroups(7)).

cpu.stat counts the CPU time of all that was ever in a group, and cgroup.kill ends all that is in
it. A supervisor enters a group of its own, below the one that it was in, so that no bound that
somebody has set is left; what it forks is in it from birth. To move each task would cost 20 ms on
a busy machine, and to fork into another group needs a system call that Python's fork does not make.

memory.max is left alone for that reason: a group that tasks and supervisor share would charge each
task with its loading, with its captured output and with what earlier tasks have left. So is
pids.max, which counts threads, as `processes` does not.
"""

from __future__ import annotations

import contextlib
import os

from pynisher_exec.kernel import proc

__all__ = ["Group", "find", "sweep"]

_PREFIX = "pynisher_exec-"


class Group:
    """The group of this process, a supervisor, and of all that it forks from `enter` on.

    Its name has pid namespace, pid and start time of the process: `sweep` removes it after that,
    which needs no move back, also when it was killed with all around it.
    """

    def __init__(self, place: str) -> None:
        self._outside = place
        self._directory = f"{place}/{_PREFIX}{_owner()}"
        self._entered = False

    def enter(self) -> None:
        """Make it and move this process into it, if that is allowed."""
        with contextlib.suppress(OSError):
            os.mkdir(self._directory)
            _write(self._directory, "cgroup.procs", os.getpid())
            self._entered = True

    def cpu_time(self) -> float | None:
        """CPU seconds of all that was ever in it; None where it does not tell."""
        if self._entered:
            with contextlib.suppress(OSError), open(f"{self._directory}/cpu.stat", "rb") as file:
                return int(file.readline().split()[1]) / 1e6  # usage_usec comes first
        return None

    def kill_others(self) -> None:
        """End all in it but this process, in one step (cgroup.kill, since Linux 5.14)."""
        if not self._entered:
            return
        with contextlib.suppress(OSError):
            _write(self._outside, "cgroup.procs", os.getpid())
            self._entered = False  # until it is back: what it forks elsewhere is not counted here
            with contextlib.suppress(OSError):
                _write(self._directory, "cgroup.kill", 1)
            _write(self._directory, "cgroup.procs", os.getpid())
            self._entered = True


def _write(directory: str, name: str, value: int) -> None:
    with open(f"{directory}/{name}", "wb", buffering=0) as file:
        file.write(b"%d" % value)


def find() -> str:
    """The group of this process, as a directory, if it may make others below it; else empty."""
    directory = _own()
    trial = f"{directory}/{_PREFIX}{_owner()}"
    try:
        if not directory:
            return ""
        os.mkdir(trial)
        os.rmdir(trial)
    except OSError:
        return ""
    return directory


def _own() -> str:
    """The directory of this process's group; empty where none is to be seen."""
    own = ""
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as file:
        own = next((line.rstrip("\n")[3:] for line in file if line.startswith("0::")), "")
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            if " - cgroup2 " in line and own:
                root, target = line.split()[3:5]  # what lies below `root` is seen at `target`
                return _below(own, root.rstrip("/"), target)
    return ""


def _below(own: str, root: str, target: str) -> str:
    if "/.." in own or not f"{own}/".startswith(f"{root}/"):
        return ""  # outside of what is mounted
    return (target + own[len(root) :]).rstrip("/")


# What was left -----------------------------------------------------------------------------------


def _owner() -> str:
    """How this process signs a group: told from all that ever had, or will have, its pid."""
    current = proc.stat(os.getpid())
    return f"{_namespace()}.{os.getpid()}.{0 if current is None else current.started}"


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def sweep(place: str) -> None:
    """Remove the groups of supervisors that are no more; what is still in them is ended first."""
    if not place:
        return
    with contextlib.suppress(OSError):
        for name in os.listdir(place):
            if name.startswith(_PREFIX) and _is_nobodys(name):
                _clear(f"{place}/{name}")


def _is_nobodys(name: str) -> bool:
    """Whether it was a supervisor's of this pid namespace, whose pids alone can be looked up."""
    parts = name[len(_PREFIX) :].split(".")
    if len(parts) != 3 or not all(map(str.isdecimal, parts)):  # noqa: PLR2004  (see `_owner`)
        return False
    namespace, pid, started = map(int, parts)
    return namespace == _namespace() and _has_ended(pid, started)


def _has_ended(pid: int, started: int) -> bool:
    """Whether a process is no more. One that cannot be looked at (hidepid) counts as living."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    current = proc.stat(pid)
    return current is not None and (not current.alive or current.started != started)


def _clear(directory: str) -> None:
    with contextlib.suppress(OSError):
        _write(directory, "cgroup.kill", 1)
    for below, _, _ in os.walk(directory, topdown=False):  # executors inside of tasks have theirs
        with contextlib.suppress(OSError):  # what has been told to die may not have died yet
            os.rmdir(below)
