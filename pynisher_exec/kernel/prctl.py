"""What a process asks of the kernel for itself: prctl(2)."""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = [
    "become_subreaper",
    "die_with_parent",
    "is_dumpable",
    "set_name",
    "set_no_new_privs",
]

_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | ctypes.Array[ctypes.c_char] = 0) -> int:
    value = ctypes.c_ulong(argument) if isinstance(argument, int) else argument
    zero = ctypes.c_ulong(0)  # the kernel wants unused arguments to be zero
    result: int = _libc.prctl(ctypes.c_int(option), value, zero, zero, zero)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def become_subreaper() -> None:
    """Have orphaned descendants come to this process, not to pid 1 (PR_SET_CHILD_SUBREAPER)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """Be sent a signal when the thread that forked this process ends (PR_SET_PDEATHSIG)."""
    _prctl(_PR_SET_PDEATHSIG, signum)


def set_no_new_privs() -> None:
    """Let no exec gain privileges, from here on and below; it cannot be undone."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def is_dumpable() -> bool:
    """Whether others of the same user may trace and inspect this process (PR_GET_DUMPABLE)."""
    return _prctl(_PR_GET_DUMPABLE) == 1


def set_name(name: str) -> None:
    """Set what `ps` shows as the command's name; the kernel keeps 15 bytes (PR_SET_NAME)."""
    _prctl(_PR_SET_NAME, ctypes.create_string_buffer(name.encode()[:15]))
