"""Landlock's signal scope: a process that restricts itself cannot signal those outside its tree."""

from __future__ import annotations

import ctypes
import errno
import struct

from pynisher_exec.kernel import libc

__all__ = ["abi", "restrict_self", "signal_scope"]

_CREATE_RULESET_VERSION = 1
_SCOPE_SIGNAL = 1 << 1
SIGNALS_SINCE = 6
"""The ABI (Linux 6.12) from which signals can be scoped."""


def abi() -> int:
    """Version of the interface that this kernel offers; 0: none (landlock(7))."""
    try:
        return libc.syscall(libc.number("landlock_create_ruleset"), 0, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def signal_scope() -> int:
    """Make a ruleset that scopes signals, as a descriptor; OSError (ENOSYS) before Linux 6.12.

    It can be made ahead, and many processes may restrict themselves by it.
    """
    if abi() < SIGNALS_SINCE:
        raise OSError(errno.ENOSYS, "Landlock cannot scope signals here")
    # struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped
    attribute = ctypes.create_string_buffer(struct.pack("=3Q", 0, 0, _SCOPE_SIGNAL), 24)
    return libc.syscall(libc.number("landlock_create_ruleset"), ctypes.addressof(attribute), 24)


def restrict_self(ruleset: int) -> None:
    """Confine this process, and all below it, by a ruleset; it cannot be undone.

    Needs no_new_privs or CAP_SYS_ADMIN, else OSError (EPERM).
    """
    libc.syscall(libc.number("landlock_restrict_self"), ruleset)
