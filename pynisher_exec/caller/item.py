"""One submit on its way: the call, its limits, and how it is put on the wire."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import socket
import subprocess
import sys
import time
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pynisher_exec.errors import UnpicklableError
from pynisher_exec.protocol import payload
from pynisher_exec.protocol.frames import FrameWriter
from pynisher_exec.task import surroundings

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynisher_exec.caller.future import LimitedFuture
    from pynisher_exec.limits import Limits
    from pynisher_exec.task.run import Call
    from pynisher_exec.task.surroundings import Surroundings

__all__ = ["CAPTURE_BOUND", "CallWriter", "Item", "Key", "key_of", "refuse_unfit"]

CAPTURE_BOUND = 1 << 20
"""Bytes kept of each captured stream unless told otherwise."""

_PREFIXES = (b"LD_", b"PYTHON", b"MKL_", b"OMP_")
_SUFFIX = b"_NUM_THREADS"

Key = tuple[object, ...]
"""What a template must agree with: interpreter flags and the variables that are read at start."""


@dataclass(eq=False)
class Item:
    """A task that waits or runs.

    `streams`: descriptors that become the task's standard input, output and error as they are.
    Without, and not captured: the caller's own output and error.
    """

    future: LimitedFuture[Any]
    call: Call
    limits: Limits
    capture: int = 0
    initializer: tuple[Callable[..., object], tuple[Any, ...]] | None = None
    soft_quit: bool = False
    streams: tuple[int, ...] = ()
    surroundings: Surroundings = field(default_factory=surroundings.snapshot)
    submitted: float = field(default_factory=time.monotonic)
    tries: int = 0
    cancelled: str = ""

    def segments(self) -> list[bytes | memoryview]:
        """The frame for the task. Raises UnpicklableError, which names the call and the reason."""
        initializer = _pickled("initializer", self.initializer) if self.initializer else []
        header = {
            "limits": self.limits.as_message(),
            "momentary": surroundings.momentary()._asdict(),
            "soft_quit": self.soft_quit,
            "initializer": len(initializer),
        }
        call = _pickled(f"call of {name_of(self.call.function)}", tuple(self.call))
        return [json.dumps(header).encode(), self.surroundings.pickled, *initializer, *call]

    def bare_segments(self) -> list[bytes | memoryview]:
        """The same for a task that was forked from this process and has its call already."""
        header = {
            "limits": self.limits.as_message(),
            "momentary": surroundings.momentary()._asdict(),
            "soft_quit": self.soft_quit,
            "initializer": 0,
        }
        return [json.dumps(header).encode(), self.surroundings.pickled]


def name_of(function: object) -> str:
    """A function's name as a message should say it."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def _pickled(what: str, thing: object) -> list[bytes | memoryview]:
    """Pickle, and turn whatever that raises into one clear sentence."""
    try:
        return payload.dump_call(thing)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:500]
        msg = f"the {what} cannot be pickled: {reason}"
        raise UnpicklableError(msg) from error


def refuse_unfit(function: object) -> None:
    """TypeError for what is no plain call, saying what to do instead."""
    if not callable(function):
        msg = f"{function!r} is not callable"
        raise TypeError(msg)
    target = inspect.unwrap(function) if hasattr(function, "__wrapped__") else function
    while hasattr(target, "func") and not inspect.isfunction(target):  # partials
        target = target.func
    # An object is called through its class, and a coroutine function may hide there.
    called = target if inspect.isroutine(target) else type(target).__call__
    name = name_of(target)
    if inspect.iscoroutinefunction(called) or asyncio.iscoroutinefunction(called):
        msg = (
            f"{name} is a coroutine function: submit a function that calls asyncio.run({name}(...))"
        )
        raise TypeError(msg)
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        msg = f"{name} is a generator function: submit one that returns list({name}(...))"
        raise TypeError(msg)


class CallWriter:
    """Sends an item's frame to the task, in as many turns as the socket needs."""

    def __init__(self, item: Item, segments: list[bytes | memoryview]) -> None:
        self._frame = FrameWriter(segments)
        self._captured = bool(item.capture)
        self._streams = item.streams
        self._prefixed = False

    def write(self, stream: socket.socket) -> bool:
        """Send what fits; True when all is sent. OSError when the task has gone."""
        if not self._prefixed:
            self._send_prefix(stream)
            self._prefixed = True
        return self._frame.write(stream)

    def _send_prefix(self, stream: socket.socket) -> None:
        """The byte before the frame carries the task's standard streams, unless captured."""
        if self._captured:
            stream.send(b"\0")
            return
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            given = [each if _is_open(each) else null for each in self._streams or (1, 2)]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", given))]
            stream.sendmsg([b"\0"], rights)
        finally:
            os.close(null)


def _is_open(descriptor: int) -> bool:
    """Whether this process has the descriptor: a daemon may have closed its standard streams."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


_keys: dict[int, tuple[Surroundings, Key]] = {}


def key_of(around: Surroundings, *, with_path: bool) -> Key:
    """The key of a snapshot; computed once for each, since snapshots are shared."""
    known = _keys.get(with_path)
    if known is not None and known[0] is around:
        return known[1]
    variables = frozenset(
        (name, value)
        for name, value in around.environment.items()
        if name.startswith(_PREFIXES) or name.endswith(_SUFFIX)
    )
    flags = tuple(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]  # noqa: SLF001
    key: Key = (flags, sys.executable, variables, tuple(around.path) if with_path else ())
    _keys[with_path] = around, key
    return key
