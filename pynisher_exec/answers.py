"""What a call of `enforce_limits` came to, by pynisher 0.6's names, and who may read it when."""

from __future__ import annotations

import re
import resource
import signal
import threading
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Protocol, TypeVar, overload

from pynisher_exec import errors
from pynisher_exec.report import Report, Status

__all__ = ["Answers", "Attribute", "answer_of", "exit_status_of"]

A = TypeVar("A")

_LINE_ENDS: Final = re.compile(r"\r\n?")

_RAISED: Final = (
    errors.CpuTimeoutException,
    errors.TimeoutException,
    errors.SignalException,
)
"""What 0.6 takes as the ending of that name, whoever raised it inside the function."""


@dataclass
class Answer:
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


def answer_of(report: Report, wall_clock_time: float) -> Answer:
    """Translate a report; the time in seconds is the whole call's."""
    exit_status = exit_status_of(report)
    return Answer(
        result=report.result,
        exit_status=exit_status,
        exitcode=_exit_code(report, exit_status),
        os_errno=report.os_errno,
        wall_clock_time=wall_clock_time,
        stdout=_text(report.stdout),
        stderr=_text(report.stderr),
        resources_function=report.rusage or resource.struct_rusage((0.0,) * 16),
        resources_pynisher=resource.getrusage(resource.RUSAGE_SELF),
        report=report,
    )


def _text(captured: str | None) -> str | None:
    """Lines end with a line feed, as in a file that is read as text."""
    return None if captured is None else _LINE_ENDS.sub("\n", captured)


def exit_status_of(report: Report) -> type[errors.TaskError] | int:
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


class Answers:
    """The last answer of each thread, and the last of all."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._last = Answer()

    def begin(self) -> None:
        """A call begins: this thread's attributes are those of no call."""
        self._own.answer = Answer()

    def note(self, answer: Answer) -> None:
        """A call of this thread has ended."""
        self._own.answer = self._last = answer

    def change(self, name: str, value: Any) -> None:
        """The user sets an attribute: in this thread it stands until its next call."""
        self._own.answer = replace(self.latest, **{name: value})

    @property
    def latest(self) -> Answer:
        """What this thread shall read."""
        answer: Answer = getattr(self._own, "answer", self._last)
        return answer


class HasAnswers(Protocol):
    """What has attributes of this kind."""

    answers: Answers


class Attribute(Generic[A]):
    """An attribute of a call, which the thread that reads it has made."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Attribute[A]: ...
    @overload
    def __get__(self, instance: HasAnswers, owner: type) -> A: ...
    def __get__(self, instance: HasAnswers | None, owner: type) -> Any:
        return self if instance is None else getattr(instance.answers.latest, self._name)

    def __set__(self, instance: HasAnswers, value: A) -> None:
        instance.answers.change(self._name, value)
