"""Processes found by a mark in their environment, whoever their parent has become."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

__all__ = ["Mark", "descendants", "zombies"]

VARIABLE = "PYNISHER_EXEC_RELIABILITY"


class Mark:
    """A value that no other process has. A program has it whose exec was given `environment`."""

    def __init__(self) -> None:
        self.value = secrets.token_hex(12)
        self._wanted = f"{VARIABLE}={self.value}".encode()

    @property
    def environment(self) -> dict[str, str]:
        """What is around this process, with the mark."""
        return {**os.environ, VARIABLE: self.value}

    def scan(self) -> list[int]:
        """Pids of those that have it; a zombie has no environment any more."""
        return [pid for pid in _pids() if self._wanted in _environment(pid)]

    def wait_until_gone(self, patience: float) -> float:
        """Seconds until none is left; `patience` at most."""
        began = time.monotonic()
        while self.scan():
            if time.monotonic() - began > patience:
                break
            time.sleep(0.002)
        return time.monotonic() - began


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has gone, or is another user's
        return []


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
    except OSError:
        pass
    return found


def zombies() -> list[int]:
    """Processes below this one that have ended and not been reaped."""
    return [pid for pid in descendants(os.getpid()) if state(pid) == "Z"]


def state(pid: int) -> str:
    """The letter of /proc/PID/stat; empty when the process has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""
