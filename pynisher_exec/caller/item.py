"""One submit on its way: the call, its limits, and how it is put on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import socket
import subprocess
import sys
import time
from array import array
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

from pynisher_exec.caller.future import is_interrupt
from pynisher_exec.caller.shared import references
from pynisher_exec.errors import UnpicklableError
from pynisher_exec.protocol import payload
from pynisher_exec.protocol.frames import FrameWriter, Left
from pynisher_exec.task import surroundings
from pynisher_exec.task.run import Call, Header, Inherited

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Mapping, Sequence

    from pynisher_exec.caller.future import LimitedFuture
    from pynisher_exec.caller.shared import Memory
    from pynisher_exec.limits import Limits
    from pynisher_exec.task.surroundings import Surroundings

    Segments = list[bytes | memoryview]

__all__ = [
    "CAPTURE_BOUND",
    "CallWriter",
    "Item",
    "Key",
    "key_of",
    "name_of",
    "refuse_unfit",
    "text_of",
]

CAPTURE_BOUND = 1 << 20
"""Bytes kept of each captured stream unless told otherwise."""

LEAST_KEPT = 1 << 22
"""Bytes from which on a part of a call is copied into the task: it takes a thread and a turn."""

_PREFIXES = (b"LD_", b"PYTHON", b"MKL_", b"OMP_")
_SUFFIX = b"_NUM_THREADS"

Key = tuple[object, ...]
"""What a template must agree with: interpreter flags, `sys.path`, variables read at the start."""


@dataclass(eq=False, slots=True)
class Item:
    """A task that waits or runs.

    `streams`: descriptors that become the task's standard input, output and error as they are.
    Without, and not captured: the caller's own output and error. `classic` and `private_tmp`: see
    `task.run.Header`. `ready`: the call, pickled ahead by the thread that made it. `context`: that
    thread's, for a fork of this process. `owner`: whose shared objects it may refer to; `shared`:
    those that it does.
    """

    future: LimitedFuture[Any]
    call: Call
    limits: Limits
    capture: int = 0
    initializer: tuple[Callable[..., object], tuple[Any, ...]] | None = None
    classic: bool = False
    streams: tuple[int, ...] = ()
    private_tmp: str = ""
    surroundings: Surroundings = field(default_factory=surroundings.snapshot)
    submitted: float = field(default_factory=time.monotonic)
    tries: int = 0
    cancelled: str = ""
    ready: Segments | None = None
    context: contextvars.Context | None = None
    owner: object = None
    shared: Sequence[Memory] = ()

    def segments(self, *, bare: bool) -> list[bytes | memoryview]:
        """The frame for the task, `bare` where the call went with its process.

        Raises UnpicklableError, which names the call and the reason.
        """
        packed = [] if bare else self.packed()
        header = Header(
            limits=self.limits.as_message,
            momentary=tuple(surroundings.momentary()),
            classic=self.classic,
            private_tmp=self.private_tmp,
            shared=len(self.shared),
        )
        return [header.encode(), self.surroundings.pickled, *packed]

    def pack(self) -> None:
        """Pickle now, in this thread. UnpicklableError as from `segments`."""
        self.ready = self.packed()

    def inherited(self) -> Inherited:
        """What a fork of this process is to run; with the context variables of the submit."""
        function, args, kwargs = self.call
        assert self.context is not None  # noqa: S101  (each item of such a pool has one)
        call = Call(self.context.run, (function, *args), kwargs)
        return Inherited(self.initializer, call, reseed=not self.classic)

    def packed(self, reducers: Mapping[type, Any] | None = None) -> Segments:
        """Pickle initializer and call, with more ways to reduce if given."""
        if self.ready is not None:
            return self.ready
        function, args, kwargs = self.call
        values = payload.beside([*args, *kwargs.values()])
        kwargs = dict(zip(kwargs, values[len(args) :], strict=True))
        call = self.initializer, (function, tuple(values[: len(args)]), kwargs)
        try:
            with references(self.owner) as self.shared:
                return payload.dump_call(call, reducers, files=not self.classic)
        except BaseException as error:  # a foreign `__reduce__` may raise SystemExit
            if is_interrupt(error):
                raise
            raise self._unpicklable(error) from error

    def _unpicklable(self, error: BaseException) -> UnpicklableError:
        """One clear sentence; tells which of the two it was."""
        what = f"call of {name_of(self.call.function)}"
        if self.initializer is not None:
            with contextlib.suppress(BaseException):  # it is the call that cannot
                with references(self.owner):
                    payload.dump_call(tuple(self.call))
                what = "initializer"
        reason = f"{type(error).__name__}: {text_of(error)}"[:500]
        return UnpicklableError(f"the {what} cannot be pickled: {reason}")


def text_of(error: BaseException) -> str:
    """What an exception says; its type's name where that fails."""
    try:
        return str(error)
    except BaseException:  # noqa: BLE001  (a foreign __str__ may raise anything)
        return type(error).__name__


def name_of(function: object) -> str:
    """A function's name as a message should say it; of a partial that of what it calls."""
    while isinstance(function, functools.partial):
        function = function.func
    name = None
    with contextlib.suppress(Exception):  # a proxy may stand for nothing here
        name = getattr(function, "__qualname__", None)
    return str(name or type(function).__qualname__)


_UNFIT = (
    inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)


def _is_plain(function: object) -> bool:
    """Whether this surely is a plain function: most are, and this runs at every submit."""
    if type(function) is BuiltinFunctionType:
        return True
    return (
        type(function) is FunctionType
        and not function.__code__.co_flags & _UNFIT
        and not function.__dict__  # no `__wrapped__`, no mark of asyncio's
    )


def refuse_unfit(function: object) -> None:
    """TypeError for what is no plain call, saying what to do instead."""
    if _is_plain(function):
        return
    if not callable(function):
        msg = f"{function!r} is not callable"
        raise TypeError(msg)
    target: Any = function
    with contextlib.suppress(ValueError):  # a proxy that has every attribute unwraps for ever
        target = inspect.unwrap(function)
    while isinstance(target, functools.partial):
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
    """Sends an item's frame to the task, in as many turns as the socket needs.

    `kept` is what of it stays here, until the task tells where it shall be copied to.
    """

    def __init__(self, item: Item, segments: Segments) -> None:
        self.kept = [part for part in segments if len(part) >= LEAST_KEPT]
        parts = [Left(len(part), 0) if len(part) >= LEAST_KEPT else part for part in segments]
        self._frame = FrameWriter(parts)
        self._streams = () if item.capture else item.streams or (1, 2)
        self._shared = item.shared

    def write(self, stream: socket.socket) -> bool:
        """Send what fits; True when all is sent. OSError when the task has gone.

        The task's standard streams, unless captured, go with the first byte, behind what is shared.
        """
        if not (self._streams or self._shared):
            return self._frame.write(stream)
        streams, self._streams = self._streams, ()
        shared, self._shared = [memory.descriptor for memory in self._shared], ()
        if all(map(_is_open, streams)):
            return self._frame.write(stream, _rights([*shared, *streams]))
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            given = [each if _is_open(each) else null for each in streams]
            return self._frame.write(stream, _rights([*shared, *given]))
        finally:
            os.close(null)


def _rights(descriptors: Sequence[int]) -> list[tuple[int, int, array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]


def _is_open(descriptor: int) -> bool:
    """Whether this process has the descriptor: a daemon may have closed its standard streams."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


_latest: tuple[Surroundings, Key] | None = None


def key_of(around: Surroundings) -> Key:
    """The key of a snapshot; computed once for each, since snapshots are shared."""
    global _latest  # noqa: PLW0603  (a cache of one, replaced whole)
    known = _latest
    if known is not None and known[0] is around:
        return known[1]
    variables = frozenset(
        (name, value)
        for name, value in around.environment.items()
        if name.startswith(_PREFIXES) or name.endswith(_SUFFIX)
    )
    flags = tuple(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]  # noqa: SLF001
    relative = not all(map(os.path.isabs, map(str, around.path)))  # to the directory, then
    place = around.directory if relative else None
    key: Key = (flags, sys.executable, variables, tuple(around.path), place)
    _latest = around, key
    return key
