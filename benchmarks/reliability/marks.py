"""Processes found by a mark in their environment, whoever their parent has become."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Mark"]

VARIABLE = "PYNISHER_EXEC_RELIABILITY"


class Mark:
    """A value that no other process has. A program has it whose exec was given `environment`."""

    def __init__(self, value: str | None = None) -> None:
        self.value = value or secrets.token_hex(12)

    @classmethod
    def own(cls) -> Mark:
        """The one that this process was started with."""
        return cls(os.environ[VARIABLE])

    @property
    def environment(self) -> dict[str, str]:
        """What is around this process, with the mark."""
        return {**os.environ, VARIABLE: self.value}

    @contextlib.contextmanager
    def on_what_is_started(self) -> Iterator[None]:
        """Put it on all programs that this process starts meanwhile, and on their forks."""
        os.environ[VARIABLE] = self.value
        try:
            yield
        finally:
            del os.environ[VARIABLE]

    def scan(self, others: Iterable[str] = ()) -> list[int]:
        """Pids of those that have it, or one of others; a zombie has no environment any more."""
        wanted = {f"{VARIABLE}={value}".encode() for value in (self.value, *others)}
        return [pid for pid in _pids() if not wanted.isdisjoint(_environment(pid))]

    def wait_until_gone(self, patience: float) -> float:
        """Seconds for which any was seen; `patience` at most. A look takes its time, too."""
        began = seen = time.monotonic()
        while self.scan() and seen - began <= patience:
            seen = time.monotonic()
            time.sleep(0.002)
        return seen - began


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has gone, or is another user's
        return []
