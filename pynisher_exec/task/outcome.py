"""What came of the function: classified, pickled, tried, and ready to be sent.

An outcome is a frame: first a JSON object (`outcome`, one of `verdict.RETURNED_STATUS`'s words,
with errno, exit code, traceback and message as they apply), then the pickled value or exception
and its buffers, if there is one to send.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from pynisher_exec.errors import RemoteTraceback, TaskError
from pynisher_exec.kernel import memory_copy
from pynisher_exec.protocol import payload
from pynisher_exec.protocol.frames import LEAST_LEFT, TAKEN, FrameWriter, Left
from pynisher_exec.protocol.lineage import Lineage
from pynisher_exec.task import rlimits

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from pynisher_exec.limits import Limits
    from pynisher_exec.task.soft import SoftSignals

__all__ = [
    "SENT",
    "Outcome",
    "describe",
    "line_of",
    "pack",
    "text_of",
    "type_name",
    "untold",
]

_MAX_TEXT = 1 << 15
_MAX_ERRNO = (1 << 31) - 1
_MAX_LINEAGE = 1 << 20
"""Bytes that an exception may be the larger for what it was raised from."""

_FORKING = frozenset(
    ("fork", "forkpty", "fork_exec", "_fork_exec", "posix_spawn", "posix_spawnp", "system")
)
"""How Python code calls for a process: `os`, and `_posixsubprocess` below subprocess and pools."""

SENT = ("value", "exception", "os_error", "startup")
"""Kinds of outcome whose object is pickled and tried; the others need none."""


class Outcome(NamedTuple):
    """The segments of the frame, and the facts that the supervisor is told."""

    segments: list[bytes | memoryview]
    facts: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes that will travel."""
        return sum(len(segment) for segment in self.segments)

    def deliver(self, stream: socket.socket) -> None:
        """Send it. Large segments stay here, for the caller to copy, unless it asks for them."""
        FrameWriter([_left(each) if _stays(each) else each for each in self.segments]).write(stream)
        large = list(filter(_stays, self.segments))
        if not large:
            return
        if stream.recv(1) == TAKEN:
            stream.send(TAKEN)  # for as long as it took to copy, this process was there
        else:
            FrameWriter(large).write(stream)


def _stays(segment: bytes | memoryview) -> bool:
    return len(segment) >= LEAST_LEFT


def _left(segment: bytes | memoryview) -> Left:
    return Left(len(segment), memory_copy.address_of(segment))


def type_name(value: object) -> str:
    """Name a value's type as a person would: `train.Model`, `list`."""
    kind = type(value)
    try:
        plain = kind.__module__ == "builtins"
        name = kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"
    except BaseException:  # noqa: BLE001  (a foreign metaclass may raise anything)
        name = "one that does not tell its name"
    return name[:200]


def text_of(error: BaseException) -> str:
    """Format an exception with its traceback, cut to a bound; never raises."""
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException as problem:  # noqa: BLE001  (a foreign __str__ may raise anything)
        text = f"{type(error).__name__} (its text raises {type(problem).__name__})\n"
    return text if len(text) <= _MAX_TEXT else text[:2000] + "\n[...]\n" + text[-_MAX_TEXT + 2100 :]


def describe(
    error: BaseException, limits: Limits, soft: SoftSignals, baseline: rlimits.Baseline
) -> tuple[str, dict[str, Any]]:
    """Say which kind of ending an exception that escaped the function is, and what is to be told.

    Its class may answer for itself, and raise: then it is an exception, and no more is known.
    """
    facts: dict[str, Any] = {"traceback": text_of(error)}
    try:
        kind = _classify(error, limits, soft, baseline)
        if kind == "memory":
            said = line_of(error)
            facts["message"] = "" if said == "MemoryError" else said
        if isinstance(error, SystemExit):
            facts["exit_code"] = _exit_code_of(error)
        if isinstance(error, OSError) and type(error.errno) is int:
            facts["os_errno"] = max(-_MAX_ERRNO, min(error.errno, _MAX_ERRNO))
            facts["forking"] = _comes_from_fork(error)
    except BaseException:  # noqa: BLE001  (foreign code)
        kind = "exception"
    return kind, facts


def _classify(
    error: BaseException, limits: Limits, soft: SoftSignals, baseline: rlimits.Baseline
) -> str:
    """Say which kind of ending an exception that escaped the function is."""
    if error is soft.raised:
        return str(soft.reason)
    if isinstance(error, SystemExit):
        return "exit"
    if isinstance(error, TaskError):  # of a task inside this one: its limit, not ours
        return "exception"
    if limits.memory is not None and _refused_memory(error, limits, baseline):
        return "memory"
    return "os_error" if isinstance(error, OSError) else "exception"


def _refused_memory(error: BaseException, limits: Limits, baseline: rlimits.Baseline) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return (
        isinstance(error, RuntimeError)
        and "start new thread" in str(error)
        and rlimits.memory_is_short(limits, baseline)
    )


def _comes_from_fork(error: BaseException) -> bool:
    """Whether an error left a function that makes processes, as its code names such a call.

    A refused fork is told by EAGAIN, but so is a socket that has nothing to read. Without a frame
    of Python code the function itself was the call, `os.fork` say. What a task of this one's has
    raised says so itself.
    """
    if isinstance(error.__cause__, RemoteTraceback):
        return error.__cause__.forking
    trace = error.__traceback__
    if trace is None:
        return True
    while trace.tb_next is not None:
        trace = trace.tb_next
    return not _FORKING.isdisjoint(trace.tb_frame.f_code.co_names)


def _exit_code_of(error: SystemExit) -> int:
    """Tell the exit code of `sys.exit(...)` as the interpreter would: text goes to stderr."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    with contextlib.suppress(Exception):  # stderr may be closed, or a foreign `__str__` raise
        print(error.code, file=sys.stderr)  # noqa: T201  (what the interpreter itself does)
    return 1


def pack(
    kind: str,
    value: object,
    main_names: frozenset[str] | None,
    facts: dict[str, Any],
    *,
    is_bounded: bool,
) -> Outcome:
    """Pickle what came, try to load it, and make the frame; what fails there is said instead.

    `is_bounded`: there is a memory limit, so want of memory is its doing.
    """
    facts = {**facts, "outcome": kind}
    if kind not in SENT:
        return Outcome([json.dumps(facts).encode()], _without_traceback(facts))
    noun = "value" if kind == "value" else "exception"
    try:
        segments = _attempt(noun, "pickled", value, lambda: payload.dump_outcome(value, main_names))
        if type(value) not in payload.ATOMS and not payload.looks_plain(segments[0]):
            _attempt(noun, "loaded again", value, lambda: payload.try_outcome(segments))
        if isinstance(value, BaseException):
            segments = _with_lineage(value, segments, main_names)
    except _Untravelled as problem:
        if kind != "startup":
            short = is_bounded and problem.is_of_memory
            facts["outcome"], facts["message"] = "memory" if short else "unpicklable", str(problem)
        facts.setdefault("traceback", problem.trace)
        segments = []
    head = json.dumps(facts).encode()
    return Outcome([head, *segments], _without_traceback(facts))


def _with_lineage(
    error: BaseException, alone: list[bytes | memoryview], main_names: frozenset[str] | None
) -> list[bytes | memoryview]:
    """Have what an exception was raised from travel with it, where that can, at a bounded cost."""

    def dump() -> list[bytes | memoryview]:
        lineage = Lineage.of(error)
        return alone if lineage is None else payload.dump_outcome(lineage, main_names)

    try:
        segments: list[bytes | memoryview] = _attempt("exception", "pickled", error, dump)
        if sum(map(len, segments)) > sum(map(len, alone)) + _MAX_LINEAGE:
            return alone
        if segments is not alone:
            # Restored as well: what comes of a cause may be no exception, and cannot be one's then.
            _attempt("exception", "loaded again", error, lambda: _restored(segments))
    except _Untravelled:  # its history is told by the traceback all the same
        return alone
    return segments


def _restored(segments: list[bytes | memoryview]) -> BaseException:
    lineage: Lineage = payload.try_outcome(segments)
    return lineage.restore()


def untold(problem: BaseException) -> Outcome:
    """What is sent where not even the failure can be said: that there was one."""
    message = f"what came of the function cannot be told: {type(problem).__name__}"
    facts = {"outcome": "unpicklable", "message": message}
    return Outcome([json.dumps(facts).encode()], facts)


def _without_traceback(facts: dict[str, Any]) -> dict[str, Any]:
    """The supervisor needs the facts only, and a datagram is bounded."""
    return {name: fact for name, fact in facts.items() if name != "traceback"}


class _Untravelled(Exception):  # noqa: N818  (never leaves this module)
    def __init__(self, message: str, trace: str, *, is_of_memory: bool) -> None:
        super().__init__(message)
        self.trace = trace
        self.is_of_memory = is_of_memory


def _attempt(noun: str, verb: str, value: object, action: Callable[[], Any]) -> Any:
    """Run the foreign code of a pickle, and turn whatever it raises into one clear sentence."""
    pid = os.getpid()
    try:
        return action()
    except BaseException as error:  # noqa: BLE001  (foreign __reduce__ and __setstate__: even SystemExit)
        if os.getpid() != pid:  # a fork made in there came out here: it has no say
            os._exit(0)
        hint = ""
        if type(value).__name__ in ("generator", "coroutine", "async_generator"):
            hint = f"; a {type(value).__name__} cannot leave its task, return what it yields"
        message = f"the {noun} of type {type_name(value)} cannot be {verb}: {line_of(error)}{hint}"
        # What only takes as much when it is loaded is an object's own doing.
        short = verb == "pickled" and issubclass(type(error), MemoryError)
        raise _Untravelled(message, text_of(error), is_of_memory=short) from None


def line_of(error: BaseException) -> str:
    """Type and text of an exception in one line, cut to a bound; never raises.

    Not the last line of its traceback, which may be of a note (PEP 678) or of a group's frame.
    """
    try:
        said = " ".join(str(error).splitlines())
    except BaseException as problem:  # noqa: BLE001  (a foreign __str__ may raise anything)
        said = f"its text raises {type(problem).__name__}"
    name = type_name(error).removeprefix("__main__.")
    text = f"{name}: {said}" if said else name
    return text if len(text) <= 300 else text[:300] + "..."  # noqa: PLR2004
