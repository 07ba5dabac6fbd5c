"""What /proc says of processes; not by the library, which is what is judged."""

from __future__ import annotations

import contextlib
import os
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "ENV_START",
    "cpu_time_of",
    "descendants",
    "name_of",
    "parent_of",
    "pids",
    "pids_with",
    "pss",
    "stat_of",
    "state_of",
    "zombies",
]

ENV_START, ENV_END = 47, 48
"""Where `stat_of` has them (proc_pid_stat(5)); in an exec they are 0, then equal."""

LONGEST_EXEC = 0.25
"""Seconds; as long is waited for a process that has an empty environment for good."""


def descendants(pid: int) -> list[int]:
    """Every process below one, zombies included."""
    found = _children(pid)
    for each in found:  # grows while it is walked
        found += [child for child in _children(each) if child not in found]
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except OSError:  # it, or one of its threads, has gone meanwhile
        pass
    return found


def pids() -> list[int]:
    """All processes there are."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def pids_with(variable: str, values: Collection[str]) -> list[int]:
    """Processes whose program was started with one of these values in its environment.

    Not zombies, which have none any more.
    """
    wanted = {f"{variable}={value}".encode() for value in values}
    found = []
    for pid in pids():
        with contextlib.suppress(OSError):  # it has gone, or is another user's
            if not wanted.isdisjoint(_environment_of(pid)):
                found.append(pid)
    return found


def _environment_of(pid: int) -> list[bytes]:
    """What its program was started with, waited for where that is being started (execve(2)).

    Such a process shows none, or a part, for a moment, and would be taken for one without it. Where
    the main thread has ended and others live, one of those shows it.
    """
    deadline = time.monotonic() + LONGEST_EXEC
    for thread in chain([pid], map(int, os.listdir(f"/proc/{pid}/task"))):
        path = f"/proc/{pid}/task/{thread}"
        with contextlib.suppress(ProcessLookupError):  # the kernel's own, or it has ended
            while time.monotonic() < deadline:
                data = Path(f"{path}/environ").read_bytes()
                fields = _stat_in(path)
                if 0 < len(data) == int(fields[ENV_END]) - int(fields[ENV_START]):
                    return data.split(b"\0")
                time.sleep(0.001)
    return []


def zombies() -> list[int]:
    """Processes below this one that have ended and not been reaped."""
    return [pid for pid in descendants(os.getpid()) if state_of(pid) == "Z"]


def stat_of(pid: int) -> list[str]:
    """Fields of /proc/PID/stat, from the third on, the state; OSError when the process has gone."""
    return _stat_in(f"/proc/{pid}")


def _stat_in(path: str) -> list[str]:
    return Path(f"{path}/stat").read_text(errors="replace").rpartition(")")[2].split()


def state_of(pid: int) -> str:
    """The letter of /proc/PID/stat (Z: a zombie); empty when the process has gone."""
    try:
        return stat_of(pid)[0]
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    """The pid of its parent; OSError when the process has gone."""
    return int(stat_of(pid)[1])


def cpu_time_of(pid: int) -> float:
    """CPU seconds of a process so far (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def name_of(pid: int) -> str:
    """The name of a process as `ps` shows it; empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def pss(pid: int, kind: str = "Pss") -> int:
    """Bytes of a process, pages divided by those who map them (proc_pid_smaps(5)); 0: it has gone.

    `kind`: one of `Pss`, `Pss_Anon`, `Pss_File`, `Pss_Shmem`.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{kind}:")), 0)
