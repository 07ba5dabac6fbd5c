"""`enforce_limits`: pynisher 0.6's decorator, as a synchronous shim over the executor's machinery.

Here arguments are translated (MiB, seconds), the call is submitted to the hidden executor, and
what its report says is put into pynisher's attributes. No limit is held here. Where an answer
differs from 0.6's, 0.6 was wrong; the README has the list.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import resource
import signal
import threading
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

from pynisher_exec import errors
from pynisher_exec.caller.executor import take_context
from pynisher_exec.caller.future import LimitedFuture
from pynisher_exec.caller.item import Item, name_of
from pynisher_exec.decorator import submit_hidden
from pynisher_exec.limits import Limits, is_bool
from pynisher_exec.report import Report, Status
from pynisher_exec.task.run import Call
from pynisher_exec.wrapper import Wrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import BaseContext

__all__ = ["EnforcedFunction", "enforce_limits"]

P = ParamSpec("P")
T = TypeVar("T")

_MEBIBYTE = 1 << 20
_MOST = float(1 << 31)
"""MiB, seconds, processes: more than anything has."""

_ALL_OUTPUT = 1 << 30
"""Bytes kept of each captured stream: 0.6 kept everything."""
_STARTUP_TIME = 60.0
_NUMBER = "an int or a float above zero, or None,"

_RAISED: Final = (
    errors.CpuTimeoutException,
    errors.TimeoutException,
    errors.SignalException,
)
"""What 0.6 takes as the ending of that name, whoever raised it inside the function."""

_HEARD: Final = {
    Status.CPU_TIME: signal.SIGXCPU,
    Status.WALL_TIME: signal.SIGALRM,
    Status.SIGNAL: signal.SIGQUIT,
}
"""Endings that may have come out of the function as a soft exception, and the signal for it."""


def _number(name: str, value: Any, *, zero: bool = False) -> Any:
    """Check a number; ValueError or TypeError names the argument, the value and what would do."""
    if value is None:
        return None
    accepted = _NUMBER.replace("above zero", "of zero or more") if zero else _NUMBER
    msg = f"{name}={value!r} is not a valid limit: {accepted} is accepted"
    if is_bool(value) or isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(msg)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 <= number <= _MOST or (number == 0 and not zero):  # nor NaN
        raise ValueError(msg)
    return value


def _whole(name: str, value: Any) -> int | None:
    """Check a count; 2.0 is one as well."""
    number = _number(name, value, zero=True)
    if number is not None and number != int(number):
        msg = f"{name}={value!r} is not a valid limit: a whole number, or None, is accepted"
        raise ValueError(msg)
    return None if number is None else int(number)


@dataclass
class _Answer:
    """The attributes of one call, as pynisher 0.6 names them, and the executor's report."""

    result: Any = None
    exit_status: type[errors.TaskError] | int | None = None
    exitcode: int | None = None
    os_errno: int | None = None
    wall_clock_time: float | None = None
    stdout: str | None = None
    stderr: str | None = None
    resources_function: resource.struct_rusage | None = None
    resources_pynisher: resource.struct_rusage | None = None
    report: Report | None = None


def _answer(report: Report, wall_clock_time: float) -> _Answer:
    exit_status = _exit_status(report)
    return _Answer(
        result=report.result,
        exit_status=exit_status,
        exitcode=_exit_code(report, exit_status),
        os_errno=report.os_errno,
        wall_clock_time=wall_clock_time,
        stdout=report.stdout,
        stderr=report.stderr,
        resources_function=report.rusage or resource.struct_rusage((0.0,) * 16),
        resources_pynisher=resource.getrusage(resource.RUSAGE_SELF),
        report=report,
    )


def _exit_status(report: Report) -> type[errors.TaskError] | int:
    """0 or one of the seven; some of the function's own exceptions are endings in 0.6."""
    if report.status is Status.EXCEPTION:
        for kind in _RAISED:
            if isinstance(report.exception, kind):
                return kind
        if isinstance(report.exception, MemoryError):  # without a memory limit, too
            return errors.MemorylimitException
    return report.exit_status


def _exit_code(report: Report, exit_status: type[errors.TaskError] | int) -> int | None:
    """The same ending by 0.6's numbers.

    Its process caught most endings, and so ended with 0 where a task ends with 1. At a wall limit
    it was terminated; here that stands for the kill as well, and for a function that came to its
    end a moment too late.
    """
    if exit_status == 0:  # whatever became of the process after the value had arrived
        return 0
    caught = exit_status not in (errors.AnythingException, errors.PynisherError)
    if report.status is Status.WALL_TIME:
        soft = "grace_period" in report.limits and report.exit_code in (0, 1)
        return 0 if soft else -signal.SIGTERM
    return 0 if caught and report.exit_code == 1 else report.exit_code


class EnforcedFunction(Wrapper, Generic[P, T]):
    """A function under limits, called as the function is; made by `enforce_limits`.

    A call returns the function's value, or None when it failed, and raises nothing of what happens
    inside. The attributes then tell what happened, as in pynisher 0.6; `report` is the executor's
    account. Before any call they are None.

    Many threads may call one such object at once: each reads the attributes of its own last call,
    and one that has made none those of the call that ended last.
    """

    if TYPE_CHECKING:  # `__getattr__` finds them
        result: T | None
        exit_status: type[errors.TaskError] | int | None
        exitcode: int | None
        os_errno: int | None
        wall_clock_time: float | None
        stdout: str | None
        stderr: str | None
        resources_function: resource.struct_rusage | None
        resources_pynisher: resource.struct_rusage | None
        report: Report | None

    def __init__(self, enforcer: enforce_limits, func: Callable[P, T]) -> None:
        super().__init__(func)
        self._enforcer = enforcer
        self._answers = _Answers()

    def by_value(self) -> tuple[Any, ...]:
        """See `Wrapper`."""
        return EnforcedFunction, (self._enforcer, self.func)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call the function in a process of its own under the limits, and wait for its end."""
        self._answers.begin()
        began = time.monotonic()
        report = self._enforcer.run(Call(self.func, args, kwargs))
        answer = _answer(report, time.monotonic() - began)
        self._answers.note(answer)
        value: T | None = answer.result
        return value

    def __getattr__(self, name: str) -> Any:
        """An attribute of the last call: see the class."""
        if name not in _Answer.__dataclass_fields__:
            msg = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(msg)
        return getattr(self._answers.latest, name)

    def __repr__(self) -> str:
        return f"{self._enforcer!r}({self.func!r})"


class _Answers:
    """The last answer of each thread, and the last of all."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._last = _Answer()

    def begin(self) -> None:
        """A call begins: this thread's attributes are those of no call."""
        self._own.answer = _Answer()

    def note(self, answer: _Answer) -> None:
        """A call of this thread has ended."""
        self._own.answer = self._last = answer

    @property
    def latest(self) -> _Answer:
        """What this thread shall read."""
        answer: _Answer = getattr(self._own, "answer", self._last)
        return answer


class enforce_limits:  # noqa: N801  (the name is pynisher's)
    """Limits for a function, by pynisher 0.6's names: a decorator, and a factory of objects.

    mem_in_mb: MiB of address space of each process (RLIMIT_AS), interpreter and arguments included,
        and of what all its processes hold together. The executor's `memory`, which counts from what
        the process held before the function, is the better measure for new code.
    cpu_time_in_s: CPU seconds of all its processes together.
    wall_time_in_s: seconds from the start of the function.
    num_processes: subprocesses alive at once.
    grace_period_in_s: seconds between a soft signal (`CpuTimeoutException` or `TimeoutException`
        raised inside the function) and the kill; without it the function is killed at once.
    logger: anything with `debug` and `warning`; default: multiprocessing's, as in pynisher.
    capture_output: keep what is written to standard output and error.
    context: None, or how processes are started: "loky", "spawn", "forkserver", "fork", or such a
        context object. With None, a call that cannot be pickled is started by a fork.

    Numbers may be ints or floats; None means no limit. ValueError or TypeError at once for what is
    no limit, naming argument and value.
    """

    def __init__(
        self,
        mem_in_mb: float | None = None,
        cpu_time_in_s: float | None = None,
        wall_time_in_s: float | None = None,
        num_processes: float | None = None,
        grace_period_in_s: float | None = None,
        logger: Any = None,
        capture_output: bool = False,  # noqa: FBT001, FBT002  (positional in pynisher)
        context: str | BaseContext | None = None,
    ) -> None:
        given: Any = mem_in_mb
        if callable(given):
            msg = "enforce_limits takes limits, and what it returns the function: @enforce_limits()"
            raise TypeError(msg)
        self.mem_in_mb = _number("mem_in_mb", mem_in_mb)
        self.cpu_time_in_s = _number("cpu_time_in_s", cpu_time_in_s)
        self.wall_time_in_s = _number("wall_time_in_s", wall_time_in_s)
        self.num_processes = _whole("num_processes", num_processes)
        self.grace_period_in_s = _number("grace_period_in_s", grace_period_in_s, zero=True) or 0
        self.capture_output = bool(capture_output)
        self._context = take_context(context)
        self.context = self._context or multiprocessing.get_context()
        # By its name, not by multiprocessing's own `get_logger`: what that one notes makes loky's
        # processes fail (loky 3.7 takes the logger's first handler, whether or not there is one).
        self.logger = logging.getLogger("multiprocessing") if logger is None else logger
        if not callable(getattr(self.logger, "debug", None)):
            msg = f"logger={logger!r} is no logger: something with debug and warning is accepted"
            raise TypeError(msg)
        self._given = (logger, context)
        self._limits = self._translated()
        self._tell_limits()

    def __call__(self, func: Callable[P, T]) -> EnforcedFunction[P, T]:
        """Give the function under these limits; TypeError for what is no function."""
        return EnforcedFunction(self, func)

    def __reduce__(self) -> tuple[Any, ...]:
        logger, context = self._given
        numbers = (self.mem_in_mb, self.cpu_time_in_s, self.wall_time_in_s, self.num_processes)
        grace = self.grace_period_in_s
        return enforce_limits, (*numbers, grace, logger, self.capture_output, context)

    def __repr__(self) -> str:
        limits = {name: getattr(self, name) for name in _LINES if getattr(self, name) is not None}
        return f"enforce_limits({', '.join(f'{name}={value}' for name, value in limits.items())})"

    def _translated(self) -> Limits:
        """To bytes and the executor's names. `memory` counts from zero, beside RLIMIT_AS."""
        memory = None if self.mem_in_mb is None else max(1, int(self.mem_in_mb * _MEBIBYTE))
        timed = self.cpu_time_in_s is not None or self.wall_time_in_s is not None
        return Limits(
            memory=memory,
            address_space=memory,
            cpu_time=self.cpu_time_in_s,
            wall_time=self.wall_time_in_s,
            processes=self.num_processes,
            grace_period=self.grace_period_in_s if timed and self.grace_period_in_s else None,
            startup_time=_STARTUP_TIME,
        )

    def run(self, call: Call) -> Report:
        """Have a call done and give its report; by a fork where it cannot travel as a pickle."""
        self._tell_call(call)
        report = self._report(call, self._context)
        if self._context is None and _did_not_travel(report):
            self.logger.warning(f"{report.message}; it is started by a fork instead")  # noqa: G004
            report = self._report(call, multiprocessing.get_context("fork"))
        self._tell_end(report)
        return report

    def _report(self, call: Call, context: BaseContext | None) -> Report:
        future: LimitedFuture[Any] = LimitedFuture()
        capture = _ALL_OUTPUT if self.capture_output else 0
        submit_hidden(Item(future, call, self._limits, capture, classic=True), context)
        try:
            return future.wait_for_report()
        finally:
            future.cancel()  # after Ctrl-C: nobody waits for it any more

    # -- debug lines, at 0.6's moments; log readers match on how some of them begin ----------------

    def _debug(self, line: str) -> None:
        self.logger.debug(line)

    def _tell_limits(self) -> None:
        for name, line in _LINES.items():
            value = getattr(self, name)
            if value is not None:
                self._debug(line.format(value))

    def _tell_call(self, call: Call) -> None:
        self._debug(f"Function called with argument: {_shown(call.args)}, {_shown(call.kwargs)}")
        if self.capture_output:
            self._debug("its output is captured: see the attributes stdout and stderr")
        self._debug(f"call function {name_of(call.function)}")

    def _tell_end(self, report: Report) -> None:
        if report.exit_code is not None and report.exit_code >= 0 and report.status in _HEARD:
            self._debug(f"signal handler: {int(_HEARD[report.status])}")
        if report.status is Status.OK:
            self._debug(f"function returned properly: {_shown(report.result)}")
        elif _exit_status(report) is errors.AnythingException:
            self._debug(f"Your function call closed the pipe prematurely: {report.message}")
        status = _exit_status(report)
        name = status if isinstance(status, int) else status.__name__
        self._debug(f"return value: ({_shown(report.result)}, {name})")


_LINES: Final = {
    "mem_in_mb": "Restricting your function to {} mb memory",
    "cpu_time_in_s": "Restricting your function to {} seconds cpu time",
    "wall_time_in_s": "Restricting your function to {} seconds wall time",
    "num_processes": "Restricting your function to {} processes",
    "grace_period_in_s": "Allowing a grace period of {} seconds",
}


def _did_not_travel(report: Report) -> bool:
    """Whether the function was never begun, since its call cannot be pickled or loaded."""
    error = report.exception
    if report.pid is None:
        return isinstance(error, errors.UnpicklableError)
    cause = None if error is None else error.__cause__
    return report.status is Status.STARTUP and isinstance(cause, Exception)


def _shown(value: object, depth: int = 2) -> str:
    """Show a value on one line: never the whole of a large one, nor by foreign code."""
    kind = type(value)
    if kind in (type(None), bool, float):
        return repr(value)
    if isinstance(value, int) and kind is int and -_INTEGER < value < _INTEGER:
        return repr(value)
    if isinstance(value, (str, bytes)) and kind in (str, bytes):
        return repr(value[:_TEXT]) + "..." * (len(value) > _TEXT)
    if isinstance(value, (tuple, list)) and kind in (tuple, list) and depth:
        return f"({_several((_shown(each, depth - 1) for each in value), len(value))})"
    if isinstance(value, dict) and kind is dict and depth:
        pairs = (f"{_shown(k, 0)}: {_shown(v, depth - 1)}" for k, v in value.items())
        return f"{{{_several(pairs, len(value))}}}"
    return f"<{kind.__qualname__}>"


def _several(texts: Iterator[str], count: int) -> str:
    return ", ".join(islice(texts, _ITEMS)) + ", ..." * (count > _ITEMS)


_TEXT, _ITEMS, _INTEGER = 60, 6, 10**20
