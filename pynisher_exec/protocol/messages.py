"""Control messages: one per datagram of a SOCK_SEQPACKET pair, with descriptors.

Between processes of ours by marshal, which is quick and of one interpreter only, as they are. What
a task says to its supervisor is JSON: parsing what a task sends must not be able to break anything.
A message that does not parse is handed on as `Message("garbage")`.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import marshal
import os
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Message", "hear", "pair", "patient", "receive", "say", "send", "stream_pair"]

MAX_BYTES = 1 << 16
MAX_DESCRIPTORS = 4
_ANCILLARY = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
# Plain ints: the arithmetic of enums is Python code, and this runs in every task.
_CLOEXEC, _NOSIGNAL = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_NOSIGNAL)
_CUT = int(socket.MSG_TRUNC)
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Message(NamedTuple):
    """One control message: its kind, its fields, and the descriptors that came with it.

    The receiver owns the descriptors.
    """

    kind: str
    fields: dict[str, Any] = {}  # noqa: RUF012  (never written to)
    descriptors: tuple[int, ...] = ()

    def close(self) -> None:
        """Close the descriptors of a message that is not wanted."""
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a control line; datagrams keep their bounds, and the end of it can be seen."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return patient(near), patient(far)


def stream_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a stream."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return patient(near), patient(far)


def patient(line: socket.socket) -> socket.socket:
    """Have a new socket wait for as long as it takes, whatever `socket.setdefaulttimeout` says."""
    if line.gettimeout() is not None:
        line.settimeout(None)
    return line


def send(line: socket.socket, kind: str, descriptors: Sequence[int] = (), **fields: Any) -> None:
    """Send one message between two of ours. OSError as from `say`."""
    _send(line, marshal.dumps((kind, fields)), descriptors)


def say(line: socket.socket, kind: str, descriptors: Sequence[int] = (), **fields: Any) -> None:
    """Send one message from a task.

    OSError when the other end is gone or, non-blocking, the line is full; EMSGSIZE for one that
    the other end would not receive whole.
    """
    fields["kind"] = kind
    _send(line, _encode(fields).encode(), descriptors)


def _send(line: socket.socket, data: bytes, descriptors: Sequence[int]) -> None:
    if len(data) > MAX_BYTES:
        raise OSError(errno.EMSGSIZE, f"a message of {len(data)} bytes is too long")
    if descriptors:
        rights = array.array("i", descriptors)
        line.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], _NOSIGNAL)
    else:
        line.send(data, _NOSIGNAL)


def receive(line: socket.socket) -> Message | None:
    """Take one message of ours; None at the line's end. BlockingIOError when there is none yet."""
    return _receive(line, marshal.loads)


def hear(line: socket.socket) -> Message | None:
    """Take one message that a task has said, as `receive` does."""
    return _receive(line, _decode)


def _decode(data: bytes) -> tuple[str, dict[str, Any]]:
    fields = json.loads(data.decode())
    return str(fields.pop("kind")), fields


def _receive(line: socket.socket, decode: Callable[[bytes], tuple[str, Any]]) -> Message | None:
    """Receive and decode.

    A reset (the other end died with messages of ours unread) is reported by the kernel once, before
    what it had sent: so look again.
    """
    try:
        received = line.recvmsg(MAX_BYTES, _ANCILLARY, _CLOEXEC)
    except ConnectionResetError:
        received = line.recvmsg(MAX_BYTES, _ANCILLARY, _CLOEXEC)
    data, ancillary, flags, _ = received
    descriptors = _descriptors_in(ancillary) if ancillary else ()
    if not data and not descriptors:
        return None
    if flags & _CUT:  # it was longer than any of ours
        return Message("garbage", {}, descriptors)
    try:
        kind, fields = decode(data)
    except (ValueError, EOFError, RecursionError, AttributeError, KeyError, TypeError):
        kind, fields = "garbage", {}
    return Message(kind, fields, descriptors)


def _descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(content) - len(content) % descriptors.itemsize
            descriptors.frombytes(content[:whole])
    return tuple(descriptors)
