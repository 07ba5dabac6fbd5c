"""What a process asks of the kernel for itself: prctl(2)."""

from __future__ import annotations

import contextlib
import ctypes
import signal

from pynisher_exec.kernel import capabilities, libc

__all__ = [
    "become_subreaper",
    "die_with_parent",
    "renounce_privileges",
    "set_name",
    "set_no_new_privs",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_LONGEST_NAME = 15


def become_subreaper() -> None:
    """Have orphaned descendants come to this process, not to pid 1 (PR_SET_CHILD_SUBREAPER)."""
    libc.syscall(libc.number("prctl"), _PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """Be sent a signal, 0 for none, when the thread that forked this process ends.

    That is PR_SET_PDEATHSIG(2const).
    """
    libc.syscall(libc.number("prctl"), _PR_SET_PDEATHSIG, signum)


def set_no_new_privs() -> None:
    """Let no exec gain privileges, from here on and below; it cannot be undone."""
    libc.syscall(libc.number("prctl"), _PR_SET_NO_NEW_PRIVS, 1)


def renounce_privileges() -> None:
    """Gain none by an exec, and lift no rlimit: what `no_new_privs` means for a task."""
    set_no_new_privs()
    with contextlib.suppress(OSError):  # a sandbox refuses it: `supports` finds that
        capabilities.give_up(capabilities.SYS_RESOURCE)


def set_name(name: str) -> None:
    """Set what `ps` shows as the command's name; the kernel keeps 15 bytes (PR_SET_NAME)."""
    text = ctypes.create_string_buffer(name.encode()[:_LONGEST_NAME])
    libc.syscall(libc.number("prctl"), _PR_SET_NAME, ctypes.addressof(text))
