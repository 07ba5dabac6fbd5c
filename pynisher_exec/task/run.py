"""The life of a task process, from the fork by its supervisor to `os._exit`.

    wait for the call -> LOADING -> load it -> baseline, limits -> RUNNING -> the function
    -> OUTCOME -> pickle and try what came -> RETURNED -> send it to the caller -> flush -> exit

The words in capitals go to the supervisor, on a line of the task's own; the outcome goes straight
to the caller. Only the process that was started as the task may say or send anything: a fork of
the function that returns as well just exits. Nothing here is allowed to raise out of `main`.

This is the path of every task, so it is kept short: in a fresh fork each object that is touched
costs a page to be copied, and that is most of what a small task costs.
"""

from __future__ import annotations

import array
import errno
import io
import marshal
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pynisher_exec.errors import CpuTimeoutException, SignalException, TimeoutException
from pynisher_exec.kernel import clock, landlock, prctl, signals
from pynisher_exec.kernel.descriptors import above_standard
from pynisher_exec.limits import Limits
from pynisher_exec.protocol import messages, payload
from pynisher_exec.task import (
    generators,
    imports,
    incoming,
    offspring,
    outcome,
    private_tmp,
    rlimits,
    shared,
    surroundings,
)
from pynisher_exec.task.soft import SoftSignals

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynisher_exec.task.process import Process

    Initializer = tuple[Callable[..., object], tuple[Any, ...]] | None

__all__ = [
    "Call",
    "Endpoints",
    "Header",
    "Inherited",
    "Packed",
    "Task",
    "prepare",
]

_HEARD_OF = (MemoryError, CpuTimeoutException, TimeoutException, SignalException)
"""Exceptions that pynisher 0.6 takes for an ending of that name, whoever raised them."""

_HARMLESS = ("value", "exception", "os_error")
"""Endings after which a process may serve another call: no limit was met, nothing exits."""

_ALL_SIGNALS = frozenset(range(1, signal.NSIG)) - {32, 33}  # those two are the C library's own
_RIGHTS = socket.CMSG_SPACE(253 * array.array("i").itemsize)  # SCM_MAX_FD, unix(7)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_FIRST_READ = 1 << 16
_LONGEST_LOOK = 1.0
"""Seconds that a supervisor may look at a task which has returned; it takes some milliseconds."""


@dataclass(frozen=True)
class Endpoints:
    """The descriptors of a task: its line to the supervisor, its stream to the caller, its output.

    `inherited` is the call itself where it came with the process. If the task `shows`, it stays at
    its end until the supervisor has seen to which pages it has written.
    """

    line: socket.socket
    stream: socket.socket
    stdout: int
    stderr: int
    inherited: Inherited | Packed | None = None
    shows: bool = False


class Call(NamedTuple):
    """A function and what it is called with."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Inherited(NamedTuple):
    """What a task that was forked from the caller has by memory: its call, and the initializer.

    `reseed`: whether global random generators shall be fresh ones there, too.
    """

    initializer: Initializer
    call: Call
    reseed: bool


class Packed(NamedTuple):
    """The segments of initializer (or None) and call, pickled in one: they may share globals."""

    segments: list[Any]


class Header(NamedTuple):
    """The first segment of what a task is sent.

    `classic`: the ways of pynisher 0.6, in which SIGQUIT raises inside the function and a traceback
    goes to stderr. `private_tmp`: the path of a temporary directory of its own, or empty.
    `shared`: how many descriptors of shared objects come first among those that go with the frame.
    """

    limits: dict[str, Any]
    momentary: tuple[Any, ...]
    classic: bool
    private_tmp: str = ""
    shared: int = 0

    def encode(self) -> bytes:
        """Make the segment. marshal: plain values only, between two runs of one interpreter."""
        return marshal.dumps(tuple(self))


def prepare(*, scope: int | None, inherited: Inherited | Packed | None) -> None:
    """What can be done ahead of need: a session of its own, signals as usual.

    `scope` is Landlock's ruleset, None before Linux 6.12: a task may then signal anybody.

    `die_with_parent` is safe here: the supervisor that forks has one thread (the signal comes when
    the forking *thread* ends, PR_SET_PDEATHSIG(2const)).
    """
    prctl.die_with_parent()
    prctl.set_name("limit-task")
    os.setsid()
    if scope is not None:
        landlock.restrict_self(scope)
        os.close(scope)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if isinstance(inherited, Inherited):
        surroundings.end_imports()
    if not isinstance(inherited, Inherited) or inherited.reseed:
        generators.reseed()


def _is_of_main(function: Any) -> bool:
    """Whether a function travels by value with each call, as those of `__main__` do."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__module__", None) in payload.MAINS


def _invoke(call: Call) -> Any:
    """The one frame below which a soft signal may raise: see `SoftSignals`."""
    return call.function(*call.args, **call.kwargs)


class Task:
    """One call: what it is made of as it is learnt, step by step.

    `stays`: nothing that happened keeps the process from serving another.
    """

    def __init__(self, ends: Endpoints, process: Process) -> None:
        self.stays = False
        self._process = process
        self._ends = ends
        self._pid = os.getpid()
        self._recursion_limit = sys.getrecursionlimit()
        self._line, self._stream = ends.line.fileno(), ends.stream.fileno()
        forked = isinstance(ends.inherited, Inherited)
        self._main_names: frozenset[str] | None = None if forked else frozenset()
        self._baseline: rlimits.Baseline | None = None
        self._ended_at = 0.0
        self._given: list[int] = []
        self._lacks = False

    def serve(self) -> int:
        """Go through the whole life, and say the exit code to end with."""
        if self._process.served > 1:  # since the end of the call before
            signals.unblock_all()
        segments = self._receive()
        if segments is None:
            return 0  # the caller went, or retired this slot, before there was a call
        self._tell("loading")
        header = Header(*marshal.loads(segments[0]))  # noqa: S302  (from the caller)
        self._redirect(self._given[header.shared :])
        shared.accept(self._given[: header.shared])
        self._limits = Limits.received(header.limits)
        before = imports.count()
        try:
            call = self._load(header, segments)
            imported = imports.installed_since(before)
            segments.clear()  # what has been loaded holds what it needs of them
            self._baseline = rlimits.measure(*shared.size())
        except BaseException as error:  # noqa: BLE001  (imports and __setstate__ may raise anything)
            self._exit_if_forked()
            facts = {"traceback": outcome.text_of(error), "message": outcome.line_of(error)}
            return self._deliver("startup", error, facts)
        return self._run(call, self._baseline, imported, classic=header.classic)

    def _receive(self) -> list[Any] | None:
        """Wait for the call. Descriptors may come with its first byte."""
        stream = self._ends.stream
        first, ancillary, flags, _ = stream.recvmsg(_FIRST_READ, _RIGHTS, _CLOEXEC)
        if not first:
            return None
        given = array.array("i")
        for _, _, content in ancillary:
            given.frombytes(content)
        self._given = list(map(above_standard, given))
        self._lacks = bool(flags & socket.MSG_CTRUNC)
        return incoming.receive(stream, first)

    def _redirect(self, given: list[int]) -> None:
        """Output goes to the caller's own descriptors, or else to the pipes of the supervisor.

        Two given: standard output and error. Three: standard input before them; else it is empty,
        as it has been since the supervisor began.
        """
        pipes = [self._ends.stdout, self._ends.stderr]
        targets = given or pipes
        for number, source in enumerate(targets, 3 - len(targets)):
            os.dup2(source, number)
        if not given:
            self._keep_lines()
        for descriptor in {*given, *pipes} - self._process.files.keys():
            if descriptor > 2:  # noqa: PLR2004  (the three standard streams)
                os.close(descriptor)

    def _keep_lines(self) -> None:
        """Output is captured: what a task printed before it was killed shall be in it, by lines."""
        if self._main_names is None:  # a fork of the caller, who may have replaced its streams
            sys.stdout, sys.stderr = (open(end, "w", 1, closefd=False) for end in (1, 2))  # noqa: SIM115
            return
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True)

    def _load(self, header: Header, segments: list[Any]) -> Call:
        """Take on the caller's surroundings, load the call, run the initializer.

        In a reused process that has been run; not so where it travels by value with each call,
        whose globals it shares.
        """
        if self._lacks:
            raise OSError(errno.EMFILE, "the task lacks descriptors for what came with its call")
        surroundings.put_on_momentary(surroundings.Momentary(*header.momentary))
        inherited = self._ends.inherited
        surroundings.put_on(segments[1], forked=isinstance(inherited, Inherited))
        if header.private_tmp:
            private_tmp.use(header.private_tmp)
        if isinstance(inherited, Inherited):
            initializer, call = inherited.initializer, inherited.call
        else:
            packed = segments[2:] if inherited is None else inherited.segments
            initializer, call = self._unpickle(packed)
            shared.release()
        if initializer is not None and (self._process.served == 1 or _is_of_main(initializer[0])):
            function, args = initializer
            function(*args)
            self._exit_if_forked()
        return call

    def _unpickle(self, segments: list[Any]) -> tuple[Initializer, Call]:
        (initializer, call), names = payload.load_call(segments)
        self._exit_if_forked()
        if names:
            surroundings.adopt_main_names(names)
        self._main_names = frozenset(shared.names.union(names))
        return initializer, Call(*call)

    def _run(self, call: Call, baseline: rlimits.Baseline, imported: str, *, classic: bool) -> int:
        """Take the limits, run the function, deliver what came of it."""
        soft = SoftSignals(self._limits, on_quit=classic, below=_invoke.__code__)
        soft.install(baseline.at)
        if rlimits.leaves_no_room(self._limits, baseline):
            return self._refuse(baseline)
        memory = baseline.memory
        once = self._process.most == 1
        mechanisms, listener = rlimits.impose(self._limits, baseline, for_good=once)
        self._process.note_baseline(memory.held, self._limits.memory)
        self._tell(
            "running",
            listener,
            at=baseline.at,
            cpu_time=baseline.cpu_time,
            held=memory.held,
            resident=memory.resident,
            mechanisms=mechanisms,
            imported=imported,
        )
        try:
            value = _invoke(call)
        except BaseException as error:  # noqa: BLE001  (whatever the function raises is its outcome)
            self._settle()
            return self._deliver_error(error, soft, baseline, classic=classic)
        self._settle()
        if payload.takes_time(value):
            self._tell("outcome", at=self._ended_at, what=outcome.type_name(value))
        return self._deliver("value", value, {})

    def _refuse(self, baseline: rlimits.Baseline) -> int:
        """Not even the interpreter fits: say so before any clock or watch could."""
        msg = f"the interpreter alone takes {baseline.memory.address_space} bytes of address space"
        return self._deliver("memory", MemoryError(msg), {})

    def _settle(self) -> None:
        """The function has ended: no signal reaches this thread, a fork of it has no say."""
        if sys.getrecursionlimit() < self._recursion_limit:
            sys.setrecursionlimit(self._recursion_limit)
        self._ended_at = clock.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
        self._exit_if_forked()
        rlimits.lift_memory(self._limits)

    def _deliver_error(
        self, error: BaseException, soft: SoftSignals, baseline: rlimits.Baseline, *, classic: bool
    ) -> int:
        """Classify what escaped from the function, and deliver it."""
        trace = sys.exc_info()[2]  # its own attribute may be of a subclass's making
        for _ in range(2):  # our own frames say nothing to the user
            trace = trace.tb_next if trace is not None else None
        BaseException.with_traceback(error, trace)
        kind, facts = outcome.describe(error, self._limits, soft, baseline)
        if classic and kind == "exception" and not isinstance(error, _HEARD_OF):
            with suppress(Exception):  # stderr closed, or replaced by the function
                traceback.print_exception(type(error), error, trace)
        traceback.clear_frames(trace)  # what the function held goes now, and not into its outcome
        if kind in outcome.SENT:  # else a limit that strikes now is the cause, not an object
            self._tell("outcome", at=self._ended_at, what=outcome.type_name(error))
        return self._deliver(kind, error, facts)

    def _deliver(self, kind: str, value: object, facts: dict[str, Any]) -> int:
        """Pickle and try, say RETURNED, send, flush; give the exit code."""
        try:
            bounded = self._limits.memory is not None
            packed = outcome.pack(kind, value, self._main_names, facts, is_bounded=bounded)
        except BaseException as problem:  # noqa: BLE001  (foreign code, asked for its own failure)
            packed = outcome.untold(problem)
        self._exit_if_forked()
        peak = 0 if self._baseline is None else rlimits.peak(self._baseline)
        size = packed.size
        self._tell("returned", at=self._ended_at, peak=peak, size=size, **packed.facts)
        last, owns, sent = self._process.is_at_its_last, self._process.owns, False
        if last and owns(self._line) and not self._ends.shows:  # the supervisor hears its end
            os.close(self._ends.line.detach())
        if owns(self._stream):
            with suppress(ConnectionError):  # the caller has gone: nobody to tell
                packed.deliver(self._ends.stream)
                sent = True
        settled = self._finish(again=not last) and kind in _HARMLESS
        if self._ends.shows and owns(self._line):
            self._show()
        self.stays = sent and not last and settled and all(map(owns, self._process.files))
        failed = packed.facts["outcome"] != "value"
        return int(packed.facts.get("exit_code", failed))

    def _tell(self, kind: str, descriptor: int | None = None, **fields: Any) -> None:
        """Say something to the supervisor, and hand over `descriptor`."""
        if self._process.owns(self._line):
            given = () if descriptor is None else (descriptor,)
            with suppress(ConnectionError):  # it has gone: so shall we, in a moment
                messages.say(self._ends.line, kind, given, **fields)
        if descriptor is not None:
            os.close(descriptor)

    def _show(self) -> None:
        """Tell the supervisor by the end of the line that nothing more comes, and let it look."""
        line = self._ends.line
        with suppress(BaseException):  # all is delivered, whatever a thread raises in this one
            line.settimeout(_LONGEST_LOOK)
            line.shutdown(socket.SHUT_WR)
            line.recv(1)

    def _exit_if_forked(self) -> None:
        """A fork by the user's code that comes out of it too: only the first process counts."""
        if os.getpid() != self._pid:
            os._exit(0)

    def _finish(self, *, again: bool) -> bool:
        """Flush, and end what the function has started; whether another call may come here."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # closed, or replaced by the function
                stream.flush()
        return offspring.end(again=again)
