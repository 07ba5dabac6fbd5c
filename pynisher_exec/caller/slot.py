"""One slot as the caller sees it: the line to its supervisor and the task that it runs.

    starting -> idle -> busy -> (ended) -> starting -> ...       closed, or lost: the line has ended

Everything here belongs to the monitor thread. What a slot learns it hands to its `Keeper`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Protocol

from pynisher_exec.caller.account import Ending
from pynisher_exec.caller.item import CallWriter, Item, Key
from pynisher_exec.caller.reactor import READ, WRITE, Reactor, private
from pynisher_exec.protocol import messages
from pynisher_exec.protocol.frames import FrameError, FrameReader

if TYPE_CHECKING:
    from pynisher_exec.caller.launch import Host

__all__ = ["Keeper", "Slot"]

TRANSFER_TIME = 10.0
"""Seconds without progress for which a returned task is waited for, then it is ended."""

EXIT_TIME = 5.0
"""Seconds that a task may take to end once its outcome has arrived (multiprocessing's exit
handlers, the flush of its standard streams), then it is ended; its outcome stands."""

_MAX_OUTCOME = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
"""Bytes: a frame that claims more than this machine's memory is refused at its header."""


class Keeper(Protocol):
    """Who owns the slots."""

    def finished(self, slot: Slot, item: Item, ending: Ending) -> None:
        """The task's tree has gone."""

    def requeue(self, item: Item, slot: Slot | None = None) -> None:
        """The call never began: its child had died while it waited."""

    def lost(self, slot: Slot) -> None:
        """The supervisor has gone."""


class Slot:
    """A supervisor's line, and what runs behind it."""

    def __init__(
        self,
        number: int,
        host: Host,
        key: Key,
        reactor: Reactor,
        keeper: Keeper,
        deadline: float,
    ) -> None:
        self.number = number
        self.host = host
        self.key = key
        self.state = "starting"
        self.item: Item | None = None
        self.deadline: float | None = deadline
        self.failure = ""
        self.hopeless = False  # another try would fail the same way
        self.idle_since = 0.0
        self._reactor = reactor
        self._keeper = keeper
        self._generation = 0
        self._stream: socket.socket | None = None
        self._writer: CallWriter | None = None
        self._reader: FrameReader | None = None
        self._outcome: list[bytearray] | None = None
        self._trouble = ""

    def open(self, options: dict[str, Any]) -> None:
        """Ask the host for a supervisor. OSError when its line does not take it."""
        control, far_end = messages.pair()
        self._control = private(control)
        try:
            messages.send(
                self.host.line, "fork", (far_end.fileno(),), slot=self.number, options=options
            )
        except BaseException:
            control.close()
            raise
        finally:
            far_end.close()
        control.setblocking(False)
        self._reactor.listen(control.fileno(), self._hear)

    # -- a task begins ---------------------------------------------------------------------------

    def run(self, item: Item, segments: list[bytes | memoryview]) -> None:
        """Give the waiting child its call."""
        self.state, self.item, self.deadline = "busy", item, None
        self._outcome, self._reader, self._trouble = None, None, ""
        with contextlib.suppress(OSError):  # the line's end will be heard
            messages.send(
                self._control,
                "start",
                generation=self._generation,
                limits=item.limits.as_message,
                capture=item.capture,
            )
        self._writer = CallWriter(item, segments)
        self._write()

    def _write(self) -> None:
        if self._stream is None or self._writer is None:
            return
        try:
            done = self._writer.write(self._stream)
        except BlockingIOError:
            done = False
        except ConnectionError:  # the task has ended, and why is about to be told
            done = True
        except OSError as error:  # no descriptor is free here
            self._trouble = str(error)
            self.kill("transfer")
            done = True
        if done:
            self._writer = None
            self._reactor.ignore(self._stream.fileno())
        else:
            self._reactor.listen(self._stream.fileno(), self._write, WRITE)

    def kill(self, reason: str, *, gently: bool = False) -> None:
        """Have the supervisor end the task that runs now."""
        with contextlib.suppress(OSError):
            messages.send(
                self._control, "kill", generation=self._generation, reason=reason, gently=gently
            )

    # -- what the supervisor says ----------------------------------------------------------------

    def _hear(self) -> None:
        while self.state not in ("closed", "lost"):
            try:
                message = messages.receive(self._control)
            except BlockingIOError:
                return
            if message is None:
                self._lose()
            else:
                self._take(message)

    def _take(self, message: messages.Message) -> None:
        fields = message.fields
        if message.kind == "ready" and message.descriptors:
            self._take_ready(message)
        elif message.kind == "ready":
            self.failure = "no descriptor is free in the calling process"
            self._lose()
        elif message.kind == "returned" and fields["generation"] == self._generation:
            self.deadline = time.monotonic() + TRANSFER_TIME
            self._read()
        elif message.kind == "ended":
            self._take_ended(message)
        else:
            self.failure = str(fields.get("message", "")) or self.failure
            message.close()

    def _take_ready(self, message: messages.Message) -> None:
        self._drop_stream()
        self._stream = private(socket.socket(fileno=message.descriptors[0]))
        self._stream.setblocking(False)
        if self.state == "busy":  # the child died before START reached it: that will be told
            return
        self._generation = message.fields["generation"]
        self.state, self.deadline, self.idle_since = "idle", None, time.monotonic()

    def _take_ended(self, message: messages.Message) -> None:
        item, self.item = self.item, None
        fields = message.fields
        if item is None:
            message.close()
            return
        if fields.get("unstarted"):
            self._rewind(fields)
            self._keeper.requeue(item, self)
            return
        if self._outcome is None and not self._trouble:
            self._read_rest()
        output = _output_of(message)
        ending = Ending(fields, self._outcome, self._trouble, output)
        self._drop_stream()
        self.state, self._outcome, self.deadline = "starting", None, None
        self._keeper.finished(self, item, ending)

    def _rewind(self, fields: dict[str, Any]) -> None:
        """The child that was given the call had died; the one after it is there already."""
        self._writer = None
        self._generation = fields["next_generation"]
        self.state, self.idle_since = "idle", time.monotonic()

    # -- the outcome -----------------------------------------------------------------------------

    def _read(self) -> None:
        """Take what has arrived, as it arrives."""
        if self._stream is None or self._outcome is not None or self._trouble:
            return
        if self._reader is None:
            self._writer, self._reader = None, FrameReader(_MAX_OUTCOME)
            self._reactor.listen(self._stream.fileno(), self._read, READ)
        if self.deadline is not None:
            self.deadline = time.monotonic() + TRANSFER_TIME
        try:
            self._outcome = self._reader.read(self._stream)
        except (FrameError, OSError, MemoryError) as error:
            self._trouble = str(error) or type(error).__name__
        if self._outcome is not None or self._trouble:
            self._reactor.ignore(self._stream.fileno())
            if self.deadline is not None:
                self.deadline = time.monotonic() + EXIT_TIME

    def _read_rest(self) -> None:
        """The task has gone: what it sent is in the socket, and no more will come."""
        self.deadline = None
        self._read()
        if self._outcome is None and not self._trouble:
            self._trouble = "the stream ended in the middle of a frame"

    # -- the end ---------------------------------------------------------------------------------

    def due(self, now: float) -> bool:
        """Whether the deadline of this state has passed: the caller says what follows from it."""
        return self.deadline is not None and now >= self.deadline

    def _lose(self) -> None:
        """The supervisor has gone without a word; its host will say when the tree is gone too."""
        self.state, self.deadline = "lost", None
        self._close_lines()
        self._keeper.lost(self)

    def close(self) -> None:
        """Let the supervisor go; it ends what it has."""
        self.state, self.deadline = "closed", None
        self._close_lines()

    def _close_lines(self) -> None:
        self._drop_stream()
        if self._control.fileno() >= 0:
            self._reactor.ignore(self._control.fileno())
            self._control.close()

    def _drop_stream(self) -> None:
        if self._stream is not None:
            if self._stream.fileno() >= 0:
                self._reactor.ignore(self._stream.fileno())
            self._stream.close()
        self._stream = self._writer = None


def _output_of(message: messages.Message) -> tuple[str, str] | None:
    """The captured output, which came in a memory file; None where there was none to capture."""
    sizes = message.fields.get("output")
    if sizes is None:
        return None
    if not message.descriptors:
        return "", "[output lost: no descriptor was free to receive it]"
    with open(message.descriptors[0], "rb") as file:
        file.seek(0)
        out, err = (file.read(size).decode(errors="replace") for size in sizes)
    return out, err
