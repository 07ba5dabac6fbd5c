"""Descriptors as numbers, and what tells one file from another."""

from __future__ import annotations

import fcntl
import os

__all__ = ["above_standard", "file_of"]

_FIRST_FREE = 3
"""Behind the three standard streams."""


def above_standard(descriptor: int) -> int:
    """Move a descriptor off the standard streams' numbers, which may have been closed.

    What lies on 1 and 2 of a caller is handed to tasks as their output; on those of a task, other
    descriptors are put. OSError when no other number is free; the descriptor is closed then, too.
    """
    if descriptor >= _FIRST_FREE:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
    finally:
        os.close(descriptor)


def file_of(descriptor: int) -> tuple[int, int]:
    """What a descriptor is open on, as the kernel tells it from all else (not eventfds)."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino
