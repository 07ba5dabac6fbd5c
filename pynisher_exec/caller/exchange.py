"""What passes between caller and task: the call out, the outcome in, on the task's own stream."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from pynisher_exec.caller.item import CallWriter
from pynisher_exec.caller.reactor import READ, WRITE, Reactor
from pynisher_exec.protocol.frames import FrameError, FrameReader

if TYPE_CHECKING:
    import socket

    from pynisher_exec.caller.item import Item, Segments

__all__ = ["Exchange"]

TRANSFER_TIME = 10.0
"""Seconds without progress for which a returned task is waited for, then it is ended."""

SLOWEST = 1 << 16
"""Bytes a second: a byte that arrives buys no more time than that, so none can trickle for ever."""

EXIT_TIME = 5.0
"""Seconds that a task may take to end once its outcome has arrived (multiprocessing's exit
handlers, the flush of its standard streams), then it is ended; its outcome stands."""

AT_ONCE = 1 << 25
"""Bytes taken in one turn, so that a large outcome does not keep other tasks waiting."""

_MAX_OUTCOME = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
"""Bytes: a frame that claims more than this machine's memory is refused at its header."""


class Exchange:
    """One task's stream, from the call to the outcome; made for each task, and gone with it."""

    def __init__(
        self, stream: socket.socket, reactor: Reactor, item: Item, segments: Segments
    ) -> None:
        self.outcome: list[bytearray] | None = None
        self.trouble = ""
        self.deadline: float | None = None
        self._stream = stream
        self._reactor = reactor
        self._writer: CallWriter | None = CallWriter(item, segments)
        self._reader: FrameReader | None = None

    def write(self) -> None:
        """Send what the task takes of its call; where that fails here, the deadline has passed."""
        if self._writer is None:
            return
        try:
            done = self._writer.write(self._stream)
        except ConnectionError:  # the task has ended, and why is about to be told
            done = True
        except OSError as error:  # no descriptor is free here
            self.trouble, self.deadline = str(error), time.monotonic()
            done = True
        if done:
            self._writer = None
            self._reactor.ignore(self._stream.fileno())
        else:
            self._reactor.listen(self._stream.fileno(), self.write, WRITE)

    def begin_to_read(self) -> None:
        """The task has returned: take its outcome as it arrives."""
        self.deadline = time.monotonic() + TRANSFER_TIME
        self._writer = None
        self._reactor.listen(self._stream.fileno(), self._take, READ)
        self._take()

    def read_rest(self) -> None:
        """The task has gone: what it sent is in the socket, and no more will come."""
        self.deadline = None
        while self.outcome is None and not self.trouble:
            if not self._take_some():
                self.trouble = "the stream ended in the middle of a frame"

    def _take(self) -> None:
        self._take_some()

    def _take_some(self) -> int:
        """Read a turn's worth; give the bytes that came."""
        if self.outcome is not None or self.trouble:
            return 0
        if self._reader is None:
            self._reader = FrameReader(_MAX_OUTCOME)
        before = self._reader.received
        try:
            self.outcome = self._reader.read(self._stream, at_once=AT_ONCE)
        except (FrameError, OSError, MemoryError) as error:
            self.trouble = str(error) or type(error).__name__
        came = self._reader.received - before
        self._mind_time(came)
        if self.outcome is not None or self.trouble:
            self._reader = None
            self._reactor.ignore(self._stream.fileno())
        return came

    def _mind_time(self, came: int) -> None:
        if self.deadline is None:
            return
        now = time.monotonic()
        if self.outcome is not None or self.trouble:
            self.deadline = now + EXIT_TIME
        else:
            self.deadline = min(now + TRANSFER_TIME, self.deadline + came / SLOWEST)

    def close(self) -> None:
        """Let go of the stream."""
        if self._stream.fileno() >= 0:
            self._reactor.ignore(self._stream.fileno())
        self._stream.close()
