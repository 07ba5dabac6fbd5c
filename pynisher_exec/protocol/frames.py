"""Frames on a stream socket: a header with the lengths, then the segments as they are.

    "PXF1" | count, 4 bytes | length of each segment, 8 bytes each | segment | segment | ...

One frame is a call on its way to a task, or an outcome on its way back. The reader never
allocates on a mere claim: memory grows with the bytes that have arrived, and a frame that claims
more than its bound is refused at its header.
"""

from __future__ import annotations

import struct
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    Buffer = bytes | bytearray | memoryview

__all__ = ["FrameError", "FrameReader", "FrameWriter"]

_MAGIC = b"PXF1"
_HEAD = struct.Struct("!4sI")
_MAX_SEGMENTS = 1 << 16
_CHUNK = 1 << 24
"""Bytes by which the room for a large segment grows as it arrives."""

_IOV_MAX = 512
"""Segments given to one sendmsg(2); the kernel takes at most 1024 (UIO_MAXIOV)."""


class FrameError(ValueError):
    """The bytes are no frame, or a frame beyond the bound; or the stream ended in the middle."""


class FrameWriter:
    """Sends one frame, on a blocking socket at once, on a non-blocking one in several turns."""

    def __init__(self, segments: Sequence[Buffer]) -> None:
        views = [memoryview(segment).cast("B") for segment in segments]
        lengths = struct.pack(f"!{len(views)}Q", *(len(view) for view in views))
        head = _HEAD.pack(_MAGIC, len(views)) + lengths
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
    """Takes one frame of at most `max_bytes` from a socket, in as many turns as it needs."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lengths: list[int] | None = None
        self._count: int | None = None
        self._expected = _HEAD.size
        self._room = bytearray(_HEAD.size)
        self._filled = 0
        self._segments: list[bytearray] = []

    @property
    def started(self) -> bool:
        """Whether any byte of the frame has arrived."""
        return self._filled > 0 or self._count is not None

    def read(self, stream: socket.socket) -> list[bytearray] | None:
        """Take what has arrived: the segments once all are there, None when more must come.

        Raises FrameError for what is no frame, and for a stream that ends before its frame does.
        """
        while True:
            try:
                while self._filled < self._expected:
                    self._grow()
                    count = stream.recv_into(memoryview(self._room)[self._filled :])
                    if not count:
                        msg = "the stream ended in the middle of a frame"
                        raise FrameError(msg)
                    self._filled += count
            except BlockingIOError:
                return None
            if self._advance():
                return self._segments

    def _grow(self) -> None:
        """Make room for what is expected, in steps, so that a mere claim allocates nothing."""
        if self._filled == len(self._room):
            step = min(_CHUNK, self._expected - self._filled)
            self._room.extend(bytes(step))

    def _advance(self) -> bool:
        """One part is complete: take it and set up the next; True when it was the last."""
        part = self._room
        if self._count is None:
            magic, self._count = _HEAD.unpack(part)
            if magic != _MAGIC or self._count > _MAX_SEGMENTS:
                msg = "the bytes are no frame"
                raise FrameError(msg)
            self._expect(8 * self._count)
        elif self._lengths is None:
            self._lengths = list(struct.unpack(f"!{self._count}Q", part))
            if sum(self._lengths) > self._max_bytes:
                msg = f"a frame claims {sum(self._lengths)} bytes, more than {self._max_bytes}"
                raise FrameError(msg)
            self._next_segment()
        else:
            self._segments.append(part)
            self._next_segment()
        return self._lengths is not None and len(self._segments) == self._count

    def _next_segment(self) -> None:
        done = len(self._segments)
        if self._lengths is not None and done < len(self._lengths):
            self._expect(self._lengths[done])

    def _expect(self, length: int) -> None:
        self._expected = length
        self._room = bytearray(min(length, _CHUNK))
        self._filled = 0
