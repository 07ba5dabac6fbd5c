"""What the supervisor told and what arrived from the task, as the future's answer."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import fields as fields_of
from resource import struct_rusage
from typing import TYPE_CHECKING, Any, NamedTuple

from pynisher_exec import errors
from pynisher_exec.caller.future import is_interrupt
from pynisher_exec.caller.item import name_of, text_of
from pynisher_exec.caller.sentences import message_of, one_line, sentence
from pynisher_exec.protocol import payload
from pynisher_exec.protocol.lineage import Lineage, cause_of, family, set_cause, trace_of
from pynisher_exec.report import Enforced, Report, Status
from pynisher_exec.task import outcome
from pynisher_exec.verdict import Evidence, Verdict, judge

if TYPE_CHECKING:
    import mmap
    from types import FrameType

    from pynisher_exec.caller.item import Item

__all__ = ["Answer", "Ending", "conclude", "never_started"]

_log = logging.getLogger("pynisher_exec")
_log.addHandler(logging.NullHandler())

_EVIDENCE = {field.name for field in fields_of(Evidence)} - {"limits", "survivors"}
_LIMITS = (Status.MEMORY, Status.CPU_TIME, Status.WALL_TIME, Status.PROCESSES)


class Ending(NamedTuple):
    """Everything that is known of a task's end.

    What the supervisor told (empty where it was lost), the outcome's segments or why there are
    none, and the captured output.
    """

    told: dict[str, Any]
    outcome: list[bytearray | mmap.mmap | memoryview] | None = None
    trouble: str = ""
    output: tuple[str, str] | None = None

    @property
    def came_up(self) -> bool:
        """Whether loading the call came to an end, be it by an exception: no crash, no hang.

        Nor is a call that could not be sent any fault of the process that waited for it.
        """
        if self.told.get("killed") == "transfer":
            return True
        return self.told.get("stage") != "loading" or self.told.get("returned") is not None


class Answer(NamedTuple):
    """What a future is resolved with."""

    report: Report
    error: BaseException | None
    cancelled: bool


def conclude(item: Item, ending: Ending) -> None:
    """Resolve a future by what is known of its task's end, then log the limit that was hit.

    In this order: a handler's lock may be held by whoever waits for the future.
    """
    try:
        answer = _account(item, ending)
    except BaseException as problem:  # no memory, or foreign code: this costs one future, not all
        if is_interrupt(problem):
            raise
        message = f"the outcome could not be taken: {text_of(problem)}"
        answer = never_started(message, problem, Status.TRANSFER)
    item.future.conclude(answer.report, answer.error, cancelled=answer.cancelled)
    with contextlib.suppress(Exception):  # a handler may raise, and this thread goes on
        if ending.told.get("left"):
            _log.warning("private_tmp cannot be removed: %s", ending.told["left"])
        if answer.report.limit_reached is not None:
            _log_limit(item, answer.report)


def _account(item: Item, ending: Ending) -> Answer:
    """Judge, load the outcome, and make report and exception."""
    told = ending.told
    if item.cancelled:
        told = {**told, "killed": "cancelled"}
    evidence = _evidence(item, told)
    verdict = judge(evidence, delivered=ending.outcome is not None)
    if told.get("lost") and verdict.status is not Status.UNKILLABLE and not item.cancelled:
        verdict = Verdict(Status.SUPERVISOR_LOST)
    made = _Made(evidence, verdict, ending)
    try:
        made.open()
    except BaseException as problem:  # loading may raise anything, SystemExit too
        if is_interrupt(problem):
            raise
        made.refuse(problem)
    report = made.report()
    if made.error is not None:
        _hand_over(report, made.error)
    return Answer(report, made.error, verdict.status is Status.CANCELLED)


def _hand_over(report: Report, error: BaseException) -> None:
    """Give an error the report of its task, unless it is another task's, inside this one."""
    if issubclass(type(error), errors.TaskError):
        with contextlib.suppress(Exception):  # a subclass may have attributes of its own making
            if error.report is None:  # type: ignore[attr-defined]
                error.report = report  # type: ignore[attr-defined]


def never_started(message: str, cause: BaseException | None, status: Status) -> Answer:
    """The answer for a call that could not be sent to any task, or whose end could not be told."""
    error: BaseException
    message = one_line(message)
    text = None if cause is None else _let_go(cause)
    if status in (Status.STARTUP, Status.REFUSED, Status.TRANSFER, Status.SUPERVISOR_LOST):
        error = errors.PynisherError(message)
        error.__cause__ = cause
    else:
        error = cause if cause is not None else errors.AnythingException(message)
    report = Report(status, exception=error, message=message, traceback=text)
    _hand_over(report, error)
    return Answer(report, error, cancelled=False)


def _let_go(error: BaseException) -> str | None:
    """Turn where an error comes from into text, as it is told of a task's; None where it has none.

    The frames that it came through, and those behind them, have the call: it would be kept alive,
    and what it shares, for as long as the error is. What came through others, and is only part of
    its history, is left as it is: it may be what the user's own code is handling.
    """
    if isinstance(error, errors.RemoteTraceback):  # it is that text, of another process
        return error.text
    cause = cause_of(error)
    source = error if cause is None else cause
    trace = trace_of(source)
    text = None if trace is None else outcome.text_of(source)
    BaseException.with_traceback(error, None)
    if trace is None or text is None:
        return None
    for each in family(source):
        if _came_through(trace.tb_frame, each):
            BaseException.with_traceback(each, None)
    remote = errors.RemoteTraceback(text)
    remote.cause = cause_of(source)
    set_cause(source, remote)
    return text


def _came_through(frame: FrameType, error: BaseException) -> bool:
    """Whether an exception was raised below a frame, or in it."""
    trace = trace_of(error)
    found = None if trace is None else trace.tb_frame
    while found is not None and found is not frame:
        found = found.f_back
    return found is not None


def _evidence(item: Item, told: dict[str, Any]) -> Evidence:
    mechanisms = told.get("mechanisms", {})
    limits = {
        name: Enforced(value, mechanisms.get(name, "not reached"))
        for name, value in item.limits.as_message.items()
        if name not in ("address_space", "from_zero")
    }
    known = {name: value for name, value in told.items() if name in _EVIDENCE}
    return Evidence(
        **{"stage": "waiting", **known},
        survivors=tuple(told.get("survivors", ())),
        limits=limits,
    )


class _Made:
    """The report and the exception in the making."""

    def __init__(self, evidence: Evidence, verdict: Verdict, ending: Ending) -> None:
        self._evidence = evidence
        self._verdict = verdict
        self._ending = ending
        self._status = verdict.status
        self._facts: dict[str, Any] = dict(evidence.returned or {})
        self._value: Any = None
        self._is_ours = True  # the error's words
        self.error: BaseException | None = None

    def open(self) -> None:
        """Take what the outcome holds, and find the exception that goes with the status."""
        sent: Any = None
        segments = self._ending.outcome
        if segments and self._status is not Status.CANCELLED:
            try:
                self._facts = {**json.loads(bytes(segments[0])), **self._facts}
                if len(segments) > 1:
                    sent = payload.load_outcome(segments[1:])
                if isinstance(sent, Lineage):
                    sent = sent.restore()
            finally:  # others up the stack have it too, and who waits may be short of memory
                segments.clear()
        if self._status is Status.OK:
            self._value = sent
        elif self._facts.get("outcome") in ("exception", "os_error") and self._status in (
            Status.EXCEPTION,
            Status.OS_ERROR,
        ):
            self._take_exception(sent)
        else:
            self.error = self._own_exception()
            if self._status is Status.STARTUP and isinstance(sent, BaseException):
                set_cause(self.error, sent)
                self._set_remote_cause(sent)

    def _take_exception(self, sent: Any) -> None:
        if not isinstance(sent, BaseException):
            msg = "what the task sent as its exception is none"
            raise TypeError(msg)
        self._set_remote_cause(sent)
        self.error, self._is_ours = sent, False

    def _set_remote_cause(self, error: BaseException) -> None:
        """Put the traceback of the task in the place of the cause, which goes behind it."""
        remote = self._remote_traceback()
        if remote is not None:
            remote.cause = cause_of(error)
            set_cause(error, remote)

    def refuse(self, problem: BaseException) -> None:
        """The outcome arrived and could not be loaded here."""
        self._status, self._value = Status.EXCEPTION, None
        reason = outcome.line_of(problem)[:500]
        self.error = errors.UnpicklableError(f"the outcome cannot be loaded: {reason}")
        self._is_ours = True
        self.error.__cause__ = problem
        self._facts["traceback"] = _let_go(self.error)

    def _traceback(self) -> str | None:
        text = self._facts.get("traceback")
        return text if isinstance(text, str) else None

    def _remote_traceback(self) -> errors.RemoteTraceback | None:
        text = self._traceback()
        forking = bool(self._facts.get("forking"))
        return None if text is None else errors.RemoteTraceback(text, forking=forking)

    def _own_exception(self) -> errors.TaskError:
        """One of the seven names, with a sentence."""
        errno = self._os_errno()
        if self._facts.get("outcome") == "unpicklable":
            said = one_line(str(self._facts.get("message")))
            error: errors.TaskError = errors.UnpicklableError(said)
        else:
            status = Report(self._status, signal=self._verdict.signal).exit_status
            assert not isinstance(status, int)  # noqa: S101  (only OK has 0)
            said = sentence(self._status, self._evidence, self._verdict, self._facts)
            error = status(one_line(said + self._details()))
        error.os_errno = errno
        error.__cause__ = self._remote_traceback()
        return error

    def _details(self) -> str:
        told = self._status in (Status.TRANSFER, Status.SUPERVISOR_LOST)
        told |= self._status is Status.STARTUP and self._evidence.killed == "transfer"
        trouble = f": {self._ending.trouble}" if self._ending.trouble and told else ""
        lines = (self._ending.output or ("", ""))[1].strip().splitlines()
        return trouble + (f"; last line of stderr: {lines[-1][:300]}" if lines else "")

    def _os_errno(self) -> int | None:
        errno = self._facts.get("os_errno")
        return errno if isinstance(errno, int) else None

    def report(self) -> Report:
        """The report, once the exception is known."""
        evidence, verdict = self._evidence, self._verdict
        out, err = self._ending.output or (None, None)
        return Report(
            status=self._status,
            result=self._value,
            exception=self.error,
            traceback=self._traceback(),
            message="" if self.error is None else message_of(self.error, is_ours=self._is_ours),
            exit_code=verdict.exit_code,
            signal=verdict.signal,
            os_errno=self._os_errno(),
            wall_time=evidence.wall_time,
            cpu_time=evidence.cpu_time,
            peak_memory=evidence.peak_memory,
            peak_processes=evidence.peak_processes,
            limit_reached=verdict.limit_reached,
            stdout=out,
            stderr=err,
            limits=evidence.limits,
            started_at=evidence.started_at,
            pid=evidence.pid,
            rusage=struct_rusage(evidence.rusage) if evidence.rusage else None,
        )


def _log_limit(item: Item, report: Report) -> None:
    limit = report.limits.get(str(report.limit_reached))
    _log.info(
        "limit=%s value=%s status=%s wall_time=%.3f cpu_time=%.3f peak_memory=%d "
        "peak_processes=%d pid=%s caller=%d function=%s",
        report.limit_reached,
        None if limit is None else limit.value,
        report.status,
        report.wall_time,
        report.cpu_time,
        report.peak_memory,
        report.peak_processes,
        report.pid,
        os.getpid(),
        name_of(item.call.function),
    )
