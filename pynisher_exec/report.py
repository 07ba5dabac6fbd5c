"""The account of one task: why it ended, what came out, what it used and what bounded it.

Pure data. `Status` is the one word, `Report` the whole; both pickle, and `Report.to_dict()` is
ready for JSON. How evidence becomes a status is told in `pynisher_exec.verdict`.
"""

from __future__ import annotations

import json
import signal as signals
import sys
from dataclasses import dataclass, field
from enum import Enum
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from pynisher_exec import errors
from pynisher_exec.limits import size_text

if TYPE_CHECKING:
    from resource import struct_rusage

__all__ = [
    "Enforced",
    "Report",
    "Status",
    "exit_status_of",
    "is_number_of_numpy",
    "last_lines",
    "plain",
    "shortened",
    "signal_name",
]


class Status(str, Enum):
    """Why a task ended."""

    OK = "ok"
    EXCEPTION = "exception"
    OS_ERROR = "os_error"
    MEMORY = "memory"
    CPU_TIME = "cpu_time"
    WALL_TIME = "wall_time"
    PROCESSES = "processes"
    SIGNAL = "signal"
    EXIT = "exit"
    STARTUP = "startup"
    TRANSFER = "transfer"
    CANCELLED = "cancelled"
    SUPERVISOR_LOST = "supervisor_lost"
    UNKILLABLE = "unkillable"
    REFUSED = "refused"

    def __str__(self) -> str:
        return self.value


_EXIT_STATUS: dict[Status, type[errors.TaskError]] = {
    Status.EXCEPTION: errors.AnythingException,
    Status.OS_ERROR: errors.SubprocessException,
    Status.MEMORY: errors.MemorylimitException,
    Status.CPU_TIME: errors.CpuTimeoutException,
    Status.WALL_TIME: errors.TimeoutException,
    Status.PROCESSES: errors.SubprocessException,
    Status.SIGNAL: errors.AnythingException,
    Status.EXIT: errors.AnythingException,
    Status.STARTUP: errors.PynisherError,
    Status.TRANSFER: errors.PynisherError,
    Status.CANCELLED: errors.AnythingException,
    Status.SUPERVISOR_LOST: errors.PynisherError,
    Status.UNKILLABLE: errors.PynisherError,
    Status.REFUSED: errors.PynisherError,
}


def exit_status_of(status: Status, signal: int | None = None) -> type[errors.TaskError] | int:
    """Say 0, or which of pynisher 0.6's seven classes stands for this ending."""
    if status is Status.OK:
        return 0
    if status is Status.SIGNAL and signal == signals.SIGQUIT:
        return errors.SignalException
    return _EXIT_STATUS[status]


def signal_name(number: int) -> str:
    """Name a signal (`SIGSEGV`), real-time ones by their number."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Enforced(NamedTuple):
    """A limit as it stood for one task: its value and the mechanism that held it."""

    value: float
    mechanism: str


@dataclass(frozen=True)
class Report:
    """What happened to one task, why, and what it used. Sizes are bytes, durations seconds.

    `wall_time` runs from the start of the function to its return (where it did not return, to the
    kill, or to the end of the process). `cpu_time` is that of all the task's processes, ended and
    orphaned ones included. `peak_memory` is above the baseline, as the limit counts.
    `peak_processes` counts subprocesses, so a task that starts none has 0; it is exact under a
    `processes` limit that is hard, else sampled, so that a short-lived one may be missed.
    `exit_code` is negative for a signal, as in `multiprocessing.Process.exitcode`, and None where
    no process ran. `limit_reached` names the limit that was met, also by a task that caught the
    soft exception, or a refused fork's error, and went on. `traceback` is the text of the one
    inside the task, for any exception that left it. `stdout` and `stderr` are None unless output
    was captured. `started_at` is a `time.time()`. `rusage` is the kernel's own account of the
    task's processes (getrusage(2)): those that were reaped, from their fork on, so with the loading
    of the call; None where none was.
    """

    status: Status
    result: Any = None
    exception: BaseException | None = None
    traceback: str | None = None
    message: str = ""
    exit_code: int | None = None
    signal: int | None = None
    os_errno: int | None = None
    wall_time: float = 0.0
    cpu_time: float = 0.0
    peak_memory: int = 0
    peak_processes: int = 0
    limit_reached: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    limits: dict[str, Enforced] = field(default_factory=dict)
    started_at: float | None = None
    pid: int | None = None
    rusage: struct_rusage | None = None

    @property
    def exit_status(self) -> type[errors.TaskError] | int:
        """0, or the class of pynisher 0.6 that stands for this ending."""
        return exit_status_of(self.status, self.signal)

    def to_dict(self) -> dict[str, Any]:
        """Give what `json.dumps` takes: names for classes, text for foreign objects."""
        exit_status = self.exit_status
        return {
            "status": self.status.value,
            "exit_status": exit_status if isinstance(exit_status, int) else exit_status.__name__,
            "message": self.message,
            "result": _as_json(self.result),
            "exception": _exception_as_json(self.exception, self.traceback),
            "exit_code": self.exit_code,
            "signal": None if self.signal is None else signal_name(self.signal),
            "os_errno": self.os_errno,
            "wall_time": self.wall_time,
            "cpu_time": self.cpu_time,
            "peak_memory": self.peak_memory,
            "peak_processes": self.peak_processes,
            "limit_reached": self.limit_reached,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "limits": {name: limit._asdict() for name, limit in self.limits.items()},
            "started_at": self.started_at,
            "pid": self.pid,
            "rusage": _rusage_as_json(self.rusage),
        }

    def _repr_html_(self) -> str:
        """Show it in a notebook: a table of what counts, with what the task wrote as text."""
        facts = [
            ("status", self.status.value),
            ("message", self.message),
            ("result", "" if self.result is None else shortened(self.result)),
            ("wall time", f"{self.wall_time:.3f} s"),
            ("CPU time", f"{self.cpu_time:.3f} s"),
            ("peak memory", size_text(self.peak_memory)),
            ("subprocesses", str(self.peak_processes)),
            ("limits", ", ".join(_limit_text(*each) for each in self.limits.items())),
            ("limit reached", self.limit_reached or ""),
            ("stderr", last_lines(self.stderr)),
            ("traceback", last_lines(self.traceback)),
        ]
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left;white-space:pre-wrap'>{escape(text)}</td></tr>"
            for name, text in facts
            if text
        )
        return f"<table>{cells}</table>"


_SHOWN = 20
"""Lines of stderr and of a traceback that a person is shown."""


def last_lines(text: str | None) -> str:
    """Give the last lines of what a task wrote; empty where it wrote nothing."""
    return "\n".join((text or "").rstrip("\n").splitlines()[-_SHOWN:])


def _limit_text(name: str, limit: Enforced) -> str:
    """`memory 2 GiB`, `wall_time 60 s`, `processes 4`."""
    if name in ("memory", "file_size", "core_size"):
        return f"{name} {size_text(limit.value)}"
    return f"{name} {limit.value:g}{'' if name in ('processes', 'open_files') else ' s'}"


def _rusage_as_json(usage: struct_rusage | None) -> dict[str, float] | None:
    if usage is None:
        return None
    names = [name for name in dir(usage) if name.startswith("ru_")]
    return {name: getattr(usage, name) for name in names}


def plain(value: Any) -> Any:
    """Give Python's number for one of numpy's, as JSON wants it; TypeError for all else."""
    if not is_number_of_numpy(value):
        msg = f"{type(value).__name__} has no form in JSON"
        raise TypeError(msg)
    return value.item()


def is_number_of_numpy(value: Any) -> bool:
    """Whether it is one, and one that Python has as well."""
    numpy = sys.modules.get("numpy")
    kinds = () if numpy is None else (numpy.integer, numpy.floating, numpy.bool_)
    return isinstance(value, kinds) and isinstance(value.item(), bool | int | float)


def _as_json(value: object) -> object:
    """Pass what JSON can hold, and the start of the `repr` of what it cannot."""
    try:
        text = json.dumps(value, allow_nan=False, default=plain)
    except (TypeError, ValueError, RecursionError):
        return shortened(value)
    return json.loads(text)


def _exception_as_json(
    error: BaseException | None, traceback: str | None
) -> dict[str, object] | None:
    if error is None:
        return None
    return {"type": type(error).__name__, "message": shortened(error, str), "traceback": traceback}


def shortened(value: object, render: Any = repr, length: int = 500) -> str:
    """Give a value as text, cut to a length; never raises."""
    try:
        text: str = render(value)
    except Exception as error:  # noqa: BLE001  (a foreign __repr__ may raise anything)
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= length else text[: length - 3] + "..."
