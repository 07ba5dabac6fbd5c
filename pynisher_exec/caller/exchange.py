"""What passes between caller and task: the call out, the outcome in, on the task's own stream."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from pynisher_exec.caller.copying import Fetch, Gift
from pynisher_exec.caller.item import CallWriter
from pynisher_exec.caller.reactor import READ, WRITE, Reactor
from pynisher_exec.protocol.frames import ADDRESS, TAKEN, FrameError, FrameReader, FrameWriter

if TYPE_CHECKING:
    import mmap
    import socket
    from collections.abc import Callable, Mapping

    from pynisher_exec.caller.item import Item, Segments

    Segment = bytearray | mmap.mmap | memoryview

__all__ = ["Exchange"]

TRANSFER_TIME = 10.0
"""Seconds without progress for which a returned task is waited for, then it is ended."""

LATE = 1.0
"""Seconds after a deadline at which this thread must have been busy with something else."""

SLOWEST = 1 << 16
"""Bytes a second: a byte that arrives buys no more time than that, so none can trickle for ever."""

SLOWEST_COPY = 1 << 24
"""Bytes a second at which a task's memory is copied at least; it may lie in a file that hangs."""

EXIT_TIME = 5.0
"""Seconds that a task may take to end once its outcome has arrived (multiprocessing's exit
handlers, the flush of its standard streams), then it is ended; its outcome stands."""

AT_ONCE = 1 << 25
"""Bytes taken in one turn, so that a large outcome does not keep other tasks waiting."""

_LONGEST_FACTS = 1 << 20
"""Bytes of an outcome's first segment, which is parsed: a sentence, and a traceback cut to less."""

_MAX_OUTCOME = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
"""Bytes: a frame that claims more than this machine's memory is refused at its header."""


class Exchange:
    """One task's stream, from the call to the outcome; made for each task, and gone with it.

    `pid` is the task's, `supervisor` that of its parent.
    """

    def __init__(
        self,
        stream: socket.socket,
        reactor: Reactor,
        item: Item,
        segments: Segments,
        pid: int,
        supervisor: int,
    ) -> None:
        self.outcome: list[Segment] | None = None
        self.trouble = ""
        self.deadline: float | None = None
        self._stream = stream
        self._reactor = reactor
        self._pid = pid
        self._supervisor = supervisor
        call = CallWriter(item, segments)
        self._writer: CallWriter | FrameWriter | None = call
        self._kept = call.kept
        self._places_told = b""
        self._gift: Gift | None = None
        self._reader: FrameReader | None = None
        self._frame: list[Segment] = []  # whole, but for what stayed in the task
        self._places: list[int] = []  # of what stayed, once the task has been asked to send it
        self._fetch: Fetch | None = None
        self._fetched = False

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
        if not done:
            self._listen(self.write, WRITE)
            return
        self._writer = None
        if self._kept and not self.trouble:
            self._listen(self._hear_places, READ)
        else:
            self._reactor.ignore(self._stream.fileno())

    def _hear_places(self) -> None:
        """The task has room for what was kept, and tells where: copy it there."""
        wanted = ADDRESS.size * len(self._kept)
        try:
            told = self._stream.recv(wanted - len(self._places_told))
        except BlockingIOError:
            return
        except ConnectionError:
            told = b""
        self._places_told += told
        if told and len(self._places_told) < wanted:
            return
        self._reactor.ignore(self._stream.fileno())
        if not told:  # it has ended, and why is about to be told
            return
        places = [place for (place,) in ADDRESS.iter_unpack(self._places_told)]
        try:
            self._gift = Gift(self._pid, self._supervisor, self._kept, places)
            whole = sum(map(len, self._kept))
            self.deadline = time.monotonic() + TRANSFER_TIME + whole / SLOWEST_COPY
            self._reactor.listen(self._gift.bell, self._take_given)
        except (OSError, RuntimeError):  # no descriptor is free here, or no thread to be had
            self._end_gift()
            self._send_kept()

    def _take_given(self) -> None:
        """It has been copied, or cannot be: then it is sent."""
        gift = self._end_gift()
        if gift is None or gift.failed:
            self._send_kept()
            return
        self._kept = []
        with contextlib.suppress(OSError):  # it has gone
            self._stream.send(TAKEN)

    def _send_kept(self) -> None:
        kept, self._kept = self._kept, []
        with contextlib.suppress(OSError):  # it has gone
            self._stream.send(b"S")
        self._writer = FrameWriter(kept)
        self.write()

    def _end_gift(self) -> Gift | None:
        gift, self._gift = self._gift, None
        if gift is not None:
            self.deadline = None
            self._reactor.ignore(gift.bell)
            gift.close()
        return gift

    def begin_to_read(self) -> None:
        """The task has returned: take its outcome as it arrives."""
        self._end_gift()
        self.deadline = time.monotonic() + TRANSFER_TIME
        self._writer = None
        self._listen(self._take, READ)
        self._take()

    def _listen(self, handler: Callable[[], None], events: int) -> None:
        """Be told of the stream; where the kernel has no room for that, its deadline has passed."""
        try:
            self._reactor.listen(self._stream.fileno(), handler, events)
        except OSError as error:
            self.trouble, self.deadline = str(error), time.monotonic()

    def read_rest(self) -> None:
        """The task has gone: what it sent is in the socket, and no more will come."""
        self.deadline = None
        self._end_gift()
        if self._fetch is not None:
            self._end_fetch()
            self.trouble = "the task ended while its outcome was copied"
            return
        while self.outcome is None and not self.trouble:
            if not self._take_some():
                self.trouble = "the stream ended in the middle of a frame"

    def _take(self) -> None:
        self._take_some()

    def _take_some(self) -> int:
        """Read a turn's worth; give the bytes that came."""
        if self._is_over():
            return 0
        try:
            came = self._take_word() if self._fetched else self._take_frame()
        except (ValueError, OSError, RuntimeError, MemoryError) as error:  # a FrameError, mostly
            self.trouble, came = str(error) or type(error).__name__, 0
        self._mind_time(came)
        if self._is_over():
            self._reader = None
            self._reactor.ignore(self._stream.fileno())
        return came

    def _is_over(self) -> bool:
        return self.outcome is not None or bool(self.trouble)

    def _take_frame(self) -> int:
        if self._reader is None:
            self._reader = FrameReader(_MAX_OUTCOME)
        reader, before = self._reader, self._reader.received
        segments = reader.read(self._stream, at_once=AT_ONCE)
        if segments is None:
            return reader.received - before
        self._reader = None
        if self._places:
            self._put(dict(zip(self._places, segments, strict=True)))
            self.outcome = self._frame
        elif 0 in reader.left or (segments and len(segments[0]) > _LONGEST_FACTS):
            msg = "the facts of an outcome are longer than any of ours"
            raise FrameError(msg)
        elif reader.left:
            self._frame = list(segments)
            self._fetch = Fetch(self._pid, reader.left)
            self._reactor.ignore(self._stream.fileno())
            self._reactor.listen(self._fetch.bell, self._take_fetched)
        else:
            self.outcome = list(segments)
        return reader.received - before

    def _take_fetched(self) -> None:
        """What stayed in the task has been copied, or cannot be: then it shall send it."""
        fetch = self._end_fetch()
        if fetch.failed:
            self._places = sorted(fetch.left)
        else:
            self._fetched = True
            self._put({place: memoryview(room) for place, room in fetch.rooms.items()})
        with contextlib.suppress(OSError):  # it has gone, which the next reading will tell
            self._stream.send(b"S" if fetch.failed else TAKEN)
        self.deadline = time.monotonic() + TRANSFER_TIME
        self._listen(self._take, READ)

    def _take_word(self) -> int:
        """The task says that it was there until all had been copied."""
        try:
            word = self._stream.recv(1)
        except BlockingIOError:
            return 0
        if word != TAKEN:
            msg = "the task ended while its outcome was copied"
            raise FrameError(msg)
        self.outcome = self._frame
        return len(word)

    def _put(self, stayed: Mapping[int, Segment]) -> None:
        for place, segment in stayed.items():
            self._frame[place] = segment

    def _end_fetch(self) -> Fetch:
        fetch, self._fetch = self._fetch, None
        assert fetch is not None  # noqa: S101  (only called where there is one)
        self._reactor.ignore(fetch.bell)
        fetch.close()
        return fetch

    def _mind_time(self, came: int) -> None:
        if self.deadline is None:
            return
        now = time.monotonic()
        if self._fetch is not None:
            claimed = sum(length for length, _ in self._fetch.left.values())
            self.deadline = now + TRANSFER_TIME + claimed / SLOWEST_COPY
        elif self._is_over():
            self.deadline = now + EXIT_TIME
        else:
            self.deadline = min(now + TRANSFER_TIME, self.deadline + came / SLOWEST)

    def give_time(self, now: float) -> bool:
        """Give the task its time anew where it was this thread that was late, and did not read.

        A callback took long, say, or this process was stopped, or without the interpreter lock.
        """
        assert self.deadline is not None  # noqa: S101  (it has passed)
        if self.trouble or now - self.deadline < LATE:
            return False
        self.deadline = now + TRANSFER_TIME
        return True

    def let_go(self) -> socket.socket:
        """Give the stream back: the outcome has been read, and another call may go there."""
        self._reactor.ignore(self._stream.fileno())
        return self._stream

    def close(self) -> None:
        """Close the stream."""
        self._end_gift()
        if self._fetch is not None:
            self._end_fetch()
        if self._stream.fileno() >= 0:
            self._reactor.ignore(self._stream.fileno())
        self._stream.close()
