"""Landlock's signal scope: a process that restricts itself cannot signal those outside its tree."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct

from pynisher_exec.kernel import libc

__all__ = ["abi", "scope_signals"]

_CREATE_RULESET_VERSION = 1
_SCOPE_SIGNAL = 1 << 1
SIGNALS_SINCE = 6
"""The ABI (Linux 6.12) from which signals can be scoped."""


def abi() -> int:
    """Version of the interface that this kernel offers; 0: none (landlock(7))."""
    with contextlib.suppress(OSError):
        number = libc.number("landlock_create_ruleset")
        return libc.syscall(number, ctypes.c_void_p(None), 0, _CREATE_RULESET_VERSION)
    return 0


def scope_signals() -> None:
    """Confine the signals of this process and of all below to themselves; it cannot be undone.

    Needs no_new_privs or CAP_SYS_ADMIN. OSError (ENOSYS) before Linux 6.12.
    """
    if abi() < SIGNALS_SINCE:
        raise OSError(errno.ENOSYS, "Landlock cannot scope signals here")
    # struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped
    attribute = ctypes.create_string_buffer(struct.pack("=3Q", 0, 0, _SCOPE_SIGNAL), 24)
    ruleset = libc.syscall(libc.number("landlock_create_ruleset"), attribute, 24, 0)
    try:
        libc.syscall(libc.number("landlock_restrict_self"), ruleset, 0)
    finally:
        os.close(ruleset)
