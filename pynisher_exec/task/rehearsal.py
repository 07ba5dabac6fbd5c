"""Going through the motions of a task ahead of need.

In a fresh fork every page that is written to has to be copied first, reference counts make reading
into writing, and code that has never run is slow: two thirds of the time that a small task takes.
A waiting child has that time to spare, so it does once what each task does, with nothing behind it.
"""

from __future__ import annotations

import marshal
import os
import select
from types import FunctionType
from typing import TYPE_CHECKING, Final

from pynisher_exec.kernel import clock
from pynisher_exec.limits import Limits
from pynisher_exec.protocol import messages, payload
from pynisher_exec.protocol.frames import FrameReader, FrameWriter
from pynisher_exec.task import outcome, rlimits, run, surroundings
from pynisher_exec.task.soft import SoftSignals

if TYPE_CHECKING:
    import socket

__all__ = ["rehearse", "rehearse_unless_called"]

PATIENCE = 2
"""Milliseconds that a fresh child waits for its call before it rehearses."""

_BY_VALUE = FunctionType((lambda: None).__code__, {"__name__": "__main__"})
"""A function as those of a caller's `__main__` come: cloudpickle has most to do with them."""

_CALL: Final = tuple(payload.dump_call((None, (_BY_VALUE, (), {}))))
_LIMITS: Final = Limits(memory=1 << 30, cpu_time=1, wall_time=1).as_message


def rehearse_unless_called(stream: socket.socket) -> None:
    """Rehearse once, in a task that has waited a while; not where its call comes soon.

    Where calls come one upon the other, the processor has better things to do.
    """
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    if not poll.poll(PATIENCE):
        rehearse()


def rehearse() -> None:
    """Receive, load, measure, pickle, say and send; set nothing of this process."""
    line, supervisor = messages.pair()
    stream, caller = messages.stream_pair()
    own = surroundings.noted()
    with line, supervisor, stream, caller:
        head = run.Header(limits=_LIMITS, momentary=tuple(own), classic=False)
        FrameWriter([head.encode(), *_CALL]).write(caller)
        begun = stream.recvmsg(1)[0]
        segments = FrameReader(1 << 16, begun).read(stream) or []
        header, call = segments[0], segments[1:]
        limits = Limits.received(run.Header(*marshal.loads(header)).limits)  # noqa: S302  (ours)
        surroundings.put_on_momentary(own)
        (_, (function, args, kwargs)), _ = payload.load_call(call)
        SoftSignals(limits, on_quit=False, below=rehearse.__code__)
        baseline = rlimits.measure()
        messages.say(line, "running", at=baseline.at, held=baseline.memory.held, mechanisms={})
        packed = outcome.pack("value", function(*args, **kwargs), frozenset(), {}, is_bounded=True)
        os.fstat(line.fileno())
        peak = rlimits.peak(baseline)
        messages.say(line, "returned", at=clock.monotonic(), peak=peak, **packed.facts)
        FrameWriter(packed.segments).write(stream)
