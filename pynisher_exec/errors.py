"""What a future raises when its task did not return: one class per kind of ending.

The seven names are those of pynisher 0.6, so that code written for it keeps its `except` clauses.
They are siblings below `TaskError`, all of them `Exception`s, so that a library's own failure
handling (scikit-learn's `error_score`, Optuna's `catch`) takes them. Each carries the `Report` of
its task as `.report` and survives pickling with it. This module knows nothing of processes.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynisher_exec.report import Report

__all__ = [
    "AnythingException",
    "CpuTimeoutException",
    "MemorylimitException",
    "PynisherError",
    "RemoteTraceback",
    "SignalException",
    "SubprocessException",
    "TaskError",
    "TimeoutException",
    "UnpicklableError",
]


class TaskError(Exception):
    """Base of everything that this library raises for the ending of a task.

    `report` is the whole account of the task (None for the soft exception while it is still
    travelling inside the task), and `os_errno` the error number where the ending has one.
    """

    report: Report | None = None  # a subclass need not call what follows
    os_errno: int | None = None

    def __init__(
        self,
        message: str = "",
        *,
        report: Report | None = None,
        os_errno: int | None = None,
    ) -> None:
        super().__init__(message)
        self.report = report
        self.os_errno = os_errno

    def __reduce__(self) -> tuple[Callable[..., TaskError], tuple[object, ...], dict[str, object]]:
        return _rebuild, (type(self), self.args), self.__dict__


def _rebuild(cls: type[TaskError], args: tuple[object, ...]) -> TaskError:
    """Make the exception again without calling a subclass's `__init__`, whatever it demands."""
    # Not `cls.__new__`: one of these is a MemoryError too, whose `__new__` refuses to be called.
    error: TaskError = BaseException.__new__(cls, *args)
    error.args = args
    return error


class CpuTimeoutException(TaskError):
    """The task's processes together used more CPU time than `cpu_time` allows.

    Also the soft exception: raised inside the function when a grace period is set.
    """


class TimeoutException(TaskError):
    """The task ran for longer than `wall_time`.

    Not the builtin `TimeoutError`: that one says that `future.result(timeout=...)` stopped waiting.
    Also the soft exception: raised inside the function when a grace period is set.
    """


class MemorylimitException(TaskError, MemoryError):
    """The task met its `memory` limit: an allocation was refused, or too much was held."""


class SubprocessException(TaskError):
    """The function raised an `OSError`, or asked for more subprocesses than `processes` allows."""


class PynisherError(TaskError):
    """The task could not be started, watched, ended or heard to its end; the cause says why."""


class SignalException(TaskError):
    """The task received SIGQUIT."""


class AnythingException(TaskError):
    """The task ended some other way: an exit, a signal, or an exception of the function's own."""


class UnpicklableError(AnythingException, pickle.PicklingError):
    """A call, a value or an exception cannot travel between processes; the message names it."""


class RemoteTraceback(Exception):
    """The traceback as it was printed inside the task: the `__cause__` of what a future raises.

    `forking`: whether it ends where a process was asked for. `cause`: what the exception was raised
    from in the task, its own `__cause__` there, where that can be pickled; its `__context__`, and
    both of every exception behind these and in a group, are in their places.
    """

    def __init__(self, text: str, *, forking: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.forking = forking
        self.cause: BaseException | None = None

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
