"""Frames on a stream socket: a header with the lengths, then the segments as they are.

    "PXF1" | count, 4 bytes | length of each segment, 8 bytes each | segment | segment | ...

One frame is a call on its way to a task, or an outcome on its way back. The reader never
allocates on a mere claim: memory grows with the bytes that have arrived, and a frame that claims
more than its bound is refused at its header.

A segment whose length has its highest bit set stayed where it was made: in its place is its address
in the sender, who lets it lie there until it is told otherwise. Of a call it is 0: the task answers
with addresses of its own, to which the caller copies it.
"""

from __future__ import annotations

import struct
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from pynisher_exec.kernel import memory_copy

if TYPE_CHECKING:
    import mmap
    import socket
    from collections.abc import Sequence

    Buffer = bytes | bytearray | memoryview
    Segment = bytearray | mmap.mmap

__all__ = ["ADDRESS", "LEAST_LEFT", "TAKEN", "FrameError", "FrameReader", "FrameWriter", "Left"]

TAKEN = b"T"
"""What a reader says once it has copied what stayed, and the sender after it; the reader says
anything else to have it sent: a frame of those segments."""

ADDRESS = struct.Struct("!Q")
"""How an address travels."""

LEAST_LEFT = 1 << 20
"""Bytes from which on a segment may stay: each that is copied takes whole pages."""

_MAGIC = b"PXF1"
_HEAD = struct.Struct("!4sI")
_STAYED = 1 << 63
_MAX_SEGMENTS = 1 << 16
_CHUNK = 1 << 24
"""Bytes by which the room for a large segment grows as it arrives."""

_LOOK = 1 << 16
"""Bytes taken by one look at the stream."""

_IOV_MAX = 512
"""Segments given to one sendmsg(2); the kernel takes at most 1024 (UIO_MAXIOV)."""


class FrameError(ValueError):
    """The bytes are no frame, or a frame beyond the bound; or the stream ended in the middle."""


class Left(NamedTuple):
    """A segment that stayed in its sender: so many bytes at this address there."""

    length: int
    address: int


class FrameWriter:
    """Sends one frame, on a blocking socket at once, on a non-blocking one in several turns."""

    def __init__(self, segments: Sequence[Buffer | Left]) -> None:
        views = [
            memoryview(ADDRESS.pack(each.address) if isinstance(each, Left) else each).cast("B")
            for each in segments
        ]
        lengths = [
            each.length | _STAYED if isinstance(each, Left) else len(view)
            for each, view in zip(segments, views)  # noqa: B905  (one is made of the other)
        ]
        head = _HEAD.pack(_MAGIC, len(views)) + struct.pack(f"!{len(views)}Q", *lengths)
        self._views = deque([memoryview(head), *(view for view in views if len(view))])

    def write(
        self, stream: socket.socket, ancillary: Sequence[tuple[int, int, object]] = ()
    ) -> bool:
        """Send what the socket takes; True when all is sent. OSError when the reader has gone.

        `ancillary` travels with the first byte of the frame, so pass it with the first call only.
        """
        while self._views:
            try:
                sent = stream.sendmsg(list(islice(self._views, _IOV_MAX)), ancillary)  # type: ignore[arg-type]
            except BlockingIOError:
                return False
            ancillary = ()
            self._drop(sent)
        return True

    def _drop(self, sent: int) -> None:
        while sent:
            first = self._views[0]
            if sent < len(first):
                self._views[0] = first[sent:]
                return
            sent -= len(first)
            self._views.popleft()


class FrameReader:
    """Takes one frame of at most `max_bytes` from a socket, in as many turns as it needs.

    `begun` is what has been read of it already. From a `trusted` sender, a large segment gets all
    of its room at once, in huge pages. A small frame is taken by one system call; a
    segment that is larger than a look is received where it will stay.
    """

    def __init__(self, max_bytes: int, begun: bytes = b"", *, trusted: bool = False) -> None:
        self.received = len(begun)
        self._max_bytes = max_bytes
        self._trusted = trusted
        self._seen, self._at = begun, 0  # what has been read, and how much of it was taken
        self._lengths: list[int] | None = None
        self._left: dict[int, int] = {}  # lengths of segments that stayed, by their places
        self._segments: list[Segment] = []
        self._room: Segment | None = None
        self._filled = 0
        self._wanted = 0

    @property
    def left(self) -> dict[int, Left]:
        """Of a whole frame, the segments that stayed in the sender, by their places."""
        return {
            place: Left(length, ADDRESS.unpack(self._segments[place])[0])
            for place, length in self._left.items()
        }

    def read(self, stream: socket.socket, *, at_once: int | None = None) -> list[Segment] | None:
        """Take what has arrived: the segments once all are there, None when more must come.

        Stops also after `at_once` bytes, though there are more. Raises FrameError for what is no
        frame, and for a stream that ends before its frame does. In the place of a segment that is
        `left` are the bytes of its address.
        """
        stop = None if at_once is None else self.received + at_once
        try:
            while not self._advance():
                if stop is not None and self.received >= stop:
                    return None
                if self._room is not None:
                    self._fill(stream, self._room)
                else:
                    some = _some(stream.recv(_LOOK))
                    self.received += len(some)
                    self._seen, self._at = self._seen[self._at :] + some, 0
        except BlockingIOError:
            return None
        return self._segments

    def _advance(self) -> bool:
        """Go as far as what has been seen allows; True when the frame is whole."""
        if self._lengths is None and not self._take_head():
            return False
        lengths = self._lengths or []
        while len(self._segments) < len(lengths):
            if not self._take_segment(lengths[len(self._segments)]):
                return False
        return True

    def _take_head(self) -> bool:
        seen = self._seen  # from its first byte: nothing has been taken yet
        if len(seen) < _HEAD.size:
            return False
        magic, count = _HEAD.unpack_from(seen)
        if magic != _MAGIC or count > _MAX_SEGMENTS:
            msg = "the bytes are no frame"
            raise FrameError(msg)
        end = _HEAD.size + 8 * count
        if len(seen) < end:
            return False
        lengths = list(struct.unpack_from(f"!{count}Q", seen, _HEAD.size))
        claimed = sum(length & ~_STAYED for length in lengths)
        if claimed > self._max_bytes:
            msg = f"a frame claims {claimed} bytes, more than {self._max_bytes}"
            raise FrameError(msg)
        self._left = {n: each & ~_STAYED for n, each in enumerate(lengths) if each & _STAYED}
        if any(length < LEAST_LEFT for length in self._left.values()):
            msg = "a frame claims that small segments stayed"
            raise FrameError(msg)
        self._lengths = [ADDRESS.size if each & _STAYED else each for each in lengths]
        self._at = end
        return True

    def _take_segment(self, length: int) -> bool:
        """Move the next segment out of what has been seen, or the part of it that is there."""
        if self._room is None:
            there = len(self._seen) - self._at
            if there < length <= _LOOK:
                return False
            part = self._seen[self._at : self._at + length]
            self._at += len(part)
            self._room, self._filled, self._wanted = bytearray(part), len(part), length
            if self._trusted and length >= memory_copy.HUGE_PAGE:
                self._room = memory_copy.room(length)
                self._room[: len(part)] = part
        if self._filled < self._wanted:
            return False
        self._segments.append(self._room)
        self._room = None
        return True

    def _fill(self, stream: socket.socket, room: Segment) -> None:
        """Receive into a large segment, which grows in steps: a mere claim allocates nothing."""
        if self._filled == len(room) and isinstance(room, bytearray):
            room.extend(bytes(min(_CHUNK, self._wanted - self._filled)))
        with memoryview(room) as view:
            count = stream.recv_into(view[self._filled :])
        if not count:
            _some(b"")
        self._filled += count
        self.received += count


def _some(data: bytes) -> bytes:
    if not data:
        msg = "the stream ended in the middle of a frame"
        raise FrameError(msg)
    return data
