"""A filter on the calls that make processes: each is asked for, or refused. Threads pass.

A task installs it on itself; every process below inherits it and none can take it off
(seccomp(2)). With user notification (seccomp_unotify(2)) a forking process waits until whoever
holds the listener has answered.

Answering CONTINUE is safe here though the manual warns of it: the filter judges the call's number
and the flags in a register, which nobody else can change, never memory behind a pointer.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct
from functools import cache
from typing import Final, NamedTuple

from pynisher_exec.kernel import libc

__all__ = ["Request", "deny_forks", "grant", "install_gate", "receive", "refuse"]

_SET_MODE_FILTER, _GET_NOTIF_SIZES = 1, 3
_FLAG_NEW_LISTENER, _FLAG_WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
_RET_ALLOW, _RET_ERRNO, _RET_USER_NOTIF = 0x7FFF0000, 0x00050000, 0x7FC00000
_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_CLONE_THREAD = 0x00010000

# linux/seccomp.h: _IOWR('!', 0, struct seccomp_notif), 80 bytes; _IOWR('!', 1, ..._resp), 24 bytes
_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_CONTINUE = 1

# The classic BPF instructions that are used, linux/bpf_common.h
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_FLAGS = 0, 4, 16  # struct seccomp_data, low half of args[0]


class Request(NamedTuple):
    """A fork that waits for its answer, and the thread that asks (in this pid namespace)."""

    id: int
    tid: int


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _filter(on_fork: int) -> bytes:
    """The program: answer `on_fork` to what makes a process, let everything else pass.

    Another architecture's calls (32 bits, x32) have other numbers, so all of them are refused.
    clone3 takes its flags by pointer, which a filter cannot follow: ENOSYS makes the C library
    fall back to clone.
    """
    arch = _AUDIT_ARCH.get(libc.machine())
    if arch is None:
        raise OSError(errno.ENOSYS, f"no filter is known for {libc.machine()}")
    refused = _RET_ERRNO | errno.ENOSYS
    lines = [
        _instruction(_LOAD, _OFFSET_ARCH),
        _instruction(_JUMP_EQUAL, arch, 1, 0),
        _instruction(_RETURN, refused),
        _instruction(_LOAD, _OFFSET_NUMBER),
    ]
    if libc.machine() == "x86_64":
        lines += [_instruction(_JUMP_SET, _X32, 0, 1), _instruction(_RETURN, refused)]
        for name in ("fork", "vfork"):
            lines += [
                _instruction(_JUMP_EQUAL, libc.number(name), 0, 1),
                _instruction(_RETURN, on_fork),
            ]
    lines += [
        _instruction(_JUMP_EQUAL, libc.number("clone3"), 0, 1),
        _instruction(_RETURN, refused),
        _instruction(_JUMP_EQUAL, libc.number("clone"), 1, 0),
        _instruction(_RETURN, _RET_ALLOW),
        _instruction(_LOAD, _OFFSET_FLAGS),
        _instruction(_JUMP_SET, _CLONE_THREAD, 0, 1),
        _instruction(_RETURN, _RET_ALLOW),
        _instruction(_RETURN, on_fork),
    ]
    return b"".join(lines)


def _install(on_fork: int, flags: int) -> int:
    code = _filter(on_fork)
    program = _Program(len(code) // 8, code)
    address = ctypes.addressof(program)
    return libc.syscall(libc.number("seccomp"), _SET_MODE_FILTER, flags, address)


def install_gate() -> int:
    """Have each fork of this process and of all below asked for; give the listener's descriptor.

    Needs no_new_privs or CAP_SYS_ADMIN, else OSError (EACCES). EBUSY: this process already lives
    behind such a gate. The descriptor is close-on-exec.
    """
    try:
        # Since Linux 5.19: a request that has been received is withdrawn by a fatal signal only,
        # so a program that handles many signals does not ask again and again.
        return _install(_RET_USER_NOTIF, _FLAG_NEW_LISTENER | _FLAG_WAIT_KILLABLE_RECV)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _install(_RET_USER_NOTIF, _FLAG_NEW_LISTENER)


def deny_forks() -> None:
    """Have each fork of this process and of all below fail with EAGAIN; nests in a gate."""
    _install(_RET_ERRNO | errno.EAGAIN, 0)


@cache
def _size() -> int:
    """Bytes that this kernel writes for a request: later ones may have appended fields."""
    sizes = ctypes.create_string_buffer(6)
    libc.syscall(libc.number("seccomp"), _GET_NOTIF_SIZES, 0, ctypes.addressof(sizes))
    first: int = struct.unpack("=3H", sizes.raw)[0]
    return max(first, _NOTIFICATION.size)


def receive(listener: int) -> Request | None:
    """Take one request, wait for one; None when it was withdrawn (its process died)."""
    room = bytearray(_size())  # the kernel wants it zeroed
    try:
        fcntl.ioctl(listener, _RECEIVE, room)
    except FileNotFoundError:
        return None
    identity, tid = _NOTIFICATION.unpack_from(room)[:2]
    return Request(identity, tid)


def _answer(listener: int, identity: int, error: int, flags: int) -> bool:
    try:
        fcntl.ioctl(listener, _ANSWER, bytearray(_RESPONSE.pack(identity, 0, -error, flags)))
    except FileNotFoundError:
        return False
    return True


def grant(listener: int, identity: int) -> bool:
    """Let the fork go on; False when the asker has gone."""
    return _answer(listener, identity, 0, _CONTINUE)


def refuse(listener: int, identity: int, error: int = errno.EAGAIN) -> bool:
    """Have the fork fail with an errno; False when the asker has gone."""
    return _answer(listener, identity, error, 0)
