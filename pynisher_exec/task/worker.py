"""A task process that may serve more than one call, where the user has asked for that.

After each call it tidies up after itself, as far as that is the library's part: multiprocessing's
exit handlers run, signal handlers of ours go, and the next call brings its surroundings. What the
function has changed besides (modules, globals, caches, threads) stays; that is the point of it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from pynisher_exec.task import run, shared, surroundings

if TYPE_CHECKING:
    from pynisher_exec.task.run import Endpoints

__all__ = ["main"]

_INTERNAL_ERROR = 70  # EX_SOFTWARE, sysexits.h


def main(ends: Endpoints, rest: int | None, max_tasks: int | None) -> NoReturn:
    """Serve calls and exit; never returns, whatever they do.

    `rest` and `max_tasks`: see `supervisor.child.Child`.
    """
    code = _INTERNAL_ERROR
    try:
        code = _serve(ends, rest, max_tasks)
    except BaseException:  # noqa: BLE001  (a task must never fall back into its supervisor's loop)
        with suppress(BaseException):  # stderr may be closed
            sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _serve(ends: Endpoints, rest: int | None, max_tasks: int | None) -> int:
    served = 0
    while True:
        served += 1
        task = run.Task(ends, nth=served, is_last=rest is None or served == max_tasks)
        code = task.serve()
        if rest is None or not task.stays:
            return code
        surroundings.end_of_call()
        shared.forget()
        os.eventfd_write(rest, 1)
