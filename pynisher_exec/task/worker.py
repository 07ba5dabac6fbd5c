"""A task process that may serve more than one call, where the user has asked for that.

After each call it tidies up, as far as that is the library's part: multiprocessing's exit handlers
run, timers, signal handlers, rlimits and standard streams are as they were before the first call,
and the next one brings its surroundings. What a function has changed besides (modules, globals,
caches, threads) stays; that is the point of it.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from pynisher_exec.kernel import libc
from pynisher_exec.task import run, shared, surroundings
from pynisher_exec.task.process import Process

if TYPE_CHECKING:
    from pynisher_exec.task.run import Endpoints

__all__ = ["main"]

_INTERNAL_ERROR = 70  # EX_SOFTWARE, sysexits.h


def main(ends: Endpoints, bell: int | None, max_tasks: int | None) -> NoReturn:
    """Serve calls and exit; never returns, whatever they do.

    `max_tasks` (None: any number) with a `bell`, a pipe to ring each time it waits for another.
    """
    code = _INTERNAL_ERROR
    try:
        code = _serve(ends, bell, max_tasks)
    except BaseException:  # noqa: BLE001  (a task must never fall back into its supervisor's loop)
        with suppress(BaseException):  # stderr may be closed
            sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _serve(ends: Endpoints, bell: int | None, max_tasks: int | None) -> int:
    kept = [] if bell is None else [bell, ends.stdout, ends.stderr]
    process = Process([ends.line.fileno(), ends.stream.fileno(), *kept], max_tasks)
    usual = {} if bell is None else surroundings.dispositions()
    while True:
        process.served += 1
        task = run.Task(ends, process)
        code = task.serve()
        if bell is None or not task.stays:
            return code
        _tidy_up(usual)
        os.write(bell, b".")


def _tidy_up(usual: surroundings.Dispositions) -> None:
    """Before the bell is rung: what was started is ended then, and output counted as the task's."""
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    surroundings.restore_dispositions(usual)
    surroundings.end_of_call()
    libc.flush_streams()
    shared.forget()
