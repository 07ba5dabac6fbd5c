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
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

from pynisher_exec import errors
from pynisher_exec.answers import Answers, Attribute, answer_of, exit_status_of
from pynisher_exec.caller.arguments import take_context
from pynisher_exec.caller.future import AwaitedFuture
from pynisher_exec.caller.item import Item, name_of
from pynisher_exec.decorator import call_hidden
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

_HEARD: Final = {
    Status.CPU_TIME: signal.SIGXCPU,
    Status.WALL_TIME: signal.SIGALRM,
    Status.SIGNAL: signal.SIGQUIT,
}
"""Endings that may have come out of the function as a soft exception, and the signal for it."""


def _number(name: str, value: Any, *, zero: bool = False) -> Any:
    """A number as Python's own, whatever kind is given (numpy's wrap around, or are of few bits).

    ValueError or TypeError names the argument, the value and what would do.
    """
    if value is None:
        return None
    accepted = _NUMBER.replace("above zero", "of zero or more") if zero else _NUMBER
    msg = f"{name}={value!r} is not a valid limit: {accepted} is accepted"
    if is_bool(value) or isinstance(value, (str, bytes, type)):
        raise TypeError(msg)
    try:
        number = int(value) if hasattr(value, "__index__") else float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise TypeError(msg) from None
    if not 0 <= number <= _MOST or (number == 0 and not zero):  # nor NaN
        raise ValueError(msg)
    return number


def _whole(name: str, value: Any) -> int | None:
    """Check a count; 2.0 is one as well."""
    number = _number(name, value, zero=True)
    if number is not None and number != int(number):
        msg = f"{name}={value!r} is not a valid limit: a whole number, or None, is accepted"
        raise ValueError(msg)
    return None if number is None else int(number)


class EnforcedFunction(Wrapper, Generic[P, T]):
    """A function under limits, called as the function is; made by `enforce_limits`.

    A call returns the function's value, or None when it failed, and raises nothing of what happens
    inside. The attributes then tell what happened, as in pynisher 0.6; `report` is the executor's
    account. Before any call they are None.

    Many threads may call one such object at once: each reads the attributes of its own last call,
    and one that has made none those of the call that ended last.
    """

    result = Attribute[Any]()
    exit_status = Attribute[type[errors.TaskError] | int | None]()
    exitcode = Attribute[int | None]()
    os_errno = Attribute[int | None]()
    wall_clock_time = Attribute[float | None]()
    stdout = Attribute[str | None]()
    stderr = Attribute[str | None]()
    resources_function = Attribute[resource.struct_rusage | None]()
    resources_pynisher = Attribute[resource.struct_rusage | None]()
    report = Attribute[Report | None]()

    def __init__(self, enforcer: enforce_limits, func: Callable[P, T]) -> None:
        super().__init__(func)
        self._enforcer = enforcer
        self.answers = Answers()

    def by_value(self) -> tuple[Any, ...]:
        """See `Wrapper`."""
        return EnforcedFunction, (self._enforcer, self.func)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call the function in a process of its own under the limits, and wait for its end."""
        self.answers.begin()
        began = time.monotonic()
        report = self._enforcer.run(Call(self.func, args, kwargs))
        answer = answer_of(report, time.monotonic() - began)
        self.answers.note(answer)
        value: T | None = answer.result
        return value

    def __repr__(self) -> str:
        return f"{self._enforcer!r}({self.func!r})"


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
        self.mem_in_mb = mem_in_mb
        self.cpu_time_in_s = cpu_time_in_s
        self.wall_time_in_s = wall_time_in_s
        self.num_processes = num_processes
        self.grace_period_in_s = 0 if grace_period_in_s is None else grace_period_in_s
        self.capture_output = bool(capture_output)
        self.context = take_context(context) or multiprocessing.get_context()
        self._default = self.context if context is None else None
        # By its name, not by multiprocessing's own `get_logger`: what that one notes makes loky's
        # processes fail (loky 3.7 takes the logger's first handler, whether or not there is one).
        self._own_logger = logger is None
        self.logger = logging.getLogger("multiprocessing") if logger is None else logger
        if not callable(getattr(self.logger, "debug", None)):
            msg = f"logger={logger!r} is no logger: something with debug and warning is accepted"
            raise TypeError(msg)
        self._last: tuple[tuple[Any, ...], Limits] | None = None
        self._limits()
        self._tell_limits()

    def __call__(self, func: Callable[P, T]) -> EnforcedFunction[P, T]:
        """Give the function under these limits; TypeError for what is no function."""
        return EnforcedFunction(self, func)

    def __reduce__(self) -> tuple[Any, ...]:
        logger = None if self._own_logger else self.logger
        context = self._chosen_context()
        method = None if context is None else context.get_start_method()
        return type(self), (*self._numbers(), logger, self.capture_output, method)

    def __repr__(self) -> str:
        limits = {name: getattr(self, name) for name in _LINES if getattr(self, name) is not None}
        return f"enforce_limits({', '.join(f'{name}={value}' for name, value in limits.items())})"

    def _numbers(self) -> tuple[Any, ...]:
        return (
            self.mem_in_mb,
            self.cpu_time_in_s,
            self.wall_time_in_s,
            self.num_processes,
            self.grace_period_in_s,
        )

    def _limits(self) -> Limits:
        """What the attributes are now: users change them between calls."""
        numbers, last = self._numbers(), self._last
        if last is None or last[0] != numbers:
            last = self._last = numbers, _translated(*numbers)
        return last[1]

    def _chosen_context(self) -> BaseContext | None:
        """What the attribute is now; None where none was chosen."""
        return None if self.context is self._default else take_context(self.context)

    def run(self, call: Call) -> Report:
        """Have a call done and give its report; by a fork where it cannot travel as a pickle."""
        self._tell_call(call)
        limits = self._limits()
        context = self._chosen_context()
        report = self._report(call, limits, context)
        if context is None and _did_not_travel(report):
            warn = getattr(self.logger, "warning", self.logger.debug)
            warn(f"{report.message}; it is started by a fork instead")
            report = self._report(call, limits, multiprocessing.get_context("fork"))
        self._tell_end(report)
        return report

    def _report(self, call: Call, limits: Limits, context: BaseContext | None) -> Report:
        capture = _ALL_OUTPUT if self.capture_output else 0
        return call_hidden(Item(AwaitedFuture(), call, limits, capture, classic=True), context)

    # -- debug lines, at 0.6's moments; log readers match on how some of them begin ----------------

    def _debug(self, line: str) -> None:
        # multiprocessing's hands nothing on to the root's handlers, once 0.6 has asked for it.
        if not self._own_logger or self.logger.handlers:
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
        status = exit_status_of(report)
        if report.status is Status.OK:
            self._debug(f"function returned properly: {_shown(report.result)}")
        elif status is errors.AnythingException:
            self._debug(f"Your function call closed the pipe prematurely: {report.message}")
        name = status if isinstance(status, int) else status.__name__
        self._debug(f"return value: ({_shown(report.result)}, {name})")


def _translated(
    mem_in_mb: Any, cpu_time_in_s: Any, wall_time_in_s: Any, num_processes: Any, grace: Any
) -> Limits:
    """To bytes and the executor's names. `memory` counts from zero, beside RLIMIT_AS."""
    mebibytes = _number("mem_in_mb", mem_in_mb)
    memory = None if mebibytes is None else max(1, int(mebibytes * _MEBIBYTE))
    cpu_time = _number("cpu_time_in_s", cpu_time_in_s)
    wall_time = _number("wall_time_in_s", wall_time_in_s)
    grace_period = _number("grace_period_in_s", grace, zero=True)
    timed = cpu_time is not None or wall_time is not None
    return Limits(
        memory=memory,
        address_space=memory,
        cpu_time=cpu_time,
        wall_time=wall_time,
        processes=_whole("num_processes", num_processes),
        grace_period=grace_period if timed and grace_period else None,
        startup_time=_STARTUP_TIME,
    )


_LINES: Final = {
    "mem_in_mb": "Restricting your function to {} mb memory",
    "cpu_time_in_s": "Restricting your function to {} seconds cpu time",
    "wall_time_in_s": "Restricting your function to {} seconds wall time",
    "num_processes": "Restricting your function to {} processes",
    "grace_period_in_s": "Allowing a grace period of {} seconds",
}


def _did_not_travel(report: Report) -> bool:
    """Whether the function was never begun: its call cannot be pickled or loaded.

    Or the current directory has been deleted, which only a fork is in.
    """
    error = report.exception
    cause = None if error is None else error.__cause__
    if report.pid is None:
        return isinstance(error, errors.UnpicklableError) or isinstance(cause, FileNotFoundError)
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
