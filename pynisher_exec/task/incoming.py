"""The call as it arrives in a task: what is large, the caller copies into the task's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pynisher_exec.kernel import memory_copy
from pynisher_exec.protocol.frames import ADDRESS, TAKEN, FrameReader

if TYPE_CHECKING:
    import socket

__all__ = ["receive"]

_BOUNDLESS = 1 << 62  # what the caller sends is as large as it is; the task's own memory bounds it


def receive(stream: socket.socket, begun: bytes) -> list[Any]:
    """Take a frame, of which `begun` has come; FrameError where the caller goes in the middle."""
    reader = FrameReader(_BOUNDLESS, begun, trusted=True)
    segments: list[Any] = reader.read(stream) or []
    if not reader.left:
        return segments
    rooms = {place: memory_copy.room(left.length) for place, left in reader.left.items()}
    places = map(memory_copy.address_of, rooms.values())
    stream.sendall(b"".join(map(ADDRESS.pack, places)))
    if stream.recv(1) == TAKEN:
        given: Any = rooms.values()
    else:  # it may not, and sends it; or has gone, which the reading finds
        given = FrameReader(_BOUNDLESS, trusted=True).read(stream) or []
    for place, segment in zip(rooms, given, strict=True):
        segments[place] = segment
    return segments
