"""Processes held by a descriptor: a pidfd names one process for ever, where a pid is reused."""

from __future__ import annotations

import os
import select
import signal

__all__ = ["exited", "open_pidfd", "send_signal"]


def open_pidfd(pid: int) -> int:
    """Open a process, zombie or not (pidfd_open(2)); ProcessLookupError when it has been reaped."""
    return os.pidfd_open(pid)


def send_signal(descriptor: int, signum: int) -> None:
    """Signal exactly this process; ProcessLookupError once it has ended."""
    signal.pidfd_send_signal(descriptor, signum)


def exited(descriptor: int) -> bool:
    """Whether the process has ended, with all its threads; a pidfd is readable from then on."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
