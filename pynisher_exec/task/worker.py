"""A task process that may serve more than one call, where the user has asked for that.

After each call it tidies up, as far as that is the library's part: multiprocessing's exit handlers
run, timers, signal handlers, soft rlimits and standard streams are as they were before the first
call, and the next one brings its surroundings. What a function has changed besides (modules,
globals, caches, threads) stays; that is the point of it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from pynisher_exec.kernel import libc
from pynisher_exec.task import run, shared, surroundings
from pynisher_exec.task.process import Process

if TYPE_CHECKING:
    from pynisher_exec.task.run import Endpoints

__all__ = ["main"]

_INTERNAL_ERROR = 70  # EX_SOFTWARE, sysexits.h
_STREAMS = ("stdin", "stdout", "stderr")
_LIMITS = sorted({number for name, number in vars(resource).items() if name.startswith("RLIMIT_")})


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
    beginning = None if bell is None else _Beginning()
    while True:
        process.served += 1
        task = run.Task(ends, process)
        code = task.serve()
        if bell is None or beginning is None or not (task.stays and beginning.comes_back()):
            return code
        os.write(bell, b".")


class _Beginning:
    """What this process was before its first call, as far as it shall be that before the others."""

    def __init__(self) -> None:
        self._handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self._streams = {name: getattr(sys, name) for name in _STREAMS}
        self._hard = _hard_limits()

    def comes_back(self) -> bool:
        """Tidy up before the bell is rung; False where that cannot be."""
        if _hard_limits() != self._hard:  # it has lowered one, for good
            return False
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        while pending := signal.sigpending():  # all are blocked since the function's end
            signal.sigtimedwait(pending, 0)
        for number, handler in self._handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        surroundings.end_of_call()
        self._restore_streams()
        libc.flush_output()
        shared.forget()
        return True

    def _restore_streams(self) -> None:
        """Have descriptors 0 to 2 open, and Python's own streams on them."""
        for number, (name, stream) in enumerate(self._streams.items()):
            with suppress(Exception):  # what the function put there may do anything
                getattr(sys, name).flush()
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
                os.set_inheritable(number, True)
            if stream is None or stream.closed:
                stream = self._streams[name] = _open(number)  # noqa: PLW2901
            setattr(sys, name, stream)


def _open(number: int) -> Any:
    if number == 0:
        return open(number, closefd=False)
    errors = "backslashreplace" if number == 2 else "strict"  # noqa: PLR2004  (stderr)
    return open(number, "w", 1, errors=errors, closefd=False)


def _hard_limits() -> list[int]:
    return [resource.getrlimit(kind)[1] for kind in _LIMITS]
