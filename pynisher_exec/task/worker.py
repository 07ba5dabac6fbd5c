"""A task process that may serve more than one call, where the user has asked for that.

After each call it tidies up, as far as that is the library's part: child processes have ended (see
`offspring`), timers, signal handlers, soft rlimits and standard streams are as they were before the
first call, and the next one brings its surroundings. What a function has changed besides (modules,
globals, caches, threads) stays; that is the point of it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from pynisher_exec.kernel import libc, signals
from pynisher_exec.task import private_tmp, run, shared, surroundings
from pynisher_exec.task.process import Process

if TYPE_CHECKING:
    from pynisher_exec.task.run import Endpoints

__all__ = ["main"]

DESCRIPTORS = 16
"""Numbers that have to be free for another call: of its output, of what it shares, of /proc."""

_INTERNAL_ERROR = 70  # EX_SOFTWARE, sysexits.h
_NUMBERS: Final = tuple(map(int, signal.valid_signals()))


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
    """Serve calls, and give the exit code to end with."""
    kept = [] if bell is None else [bell, ends.stdout, ends.stderr]
    process = Process([ends.line.fileno(), ends.stream.fileno(), *kept], max_tasks)
    beginning = None if bell is None else _Beginning(bell, process)
    while True:
        process.served += 1
        task = run.Task(ends, process)
        code = task.serve()
        if beginning is None or not (task.stays and beginning.comes_back()):
            return code


class _Beginning:
    """What this process was before its first call, as far as it shall be that before the others."""

    def __init__(self, bell: int, process: Process) -> None:
        self._bell = bell
        self._process = process
        self._handlers = {number: signals.handler_of(number) for number in _NUMBERS}
        self._streams = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}
        self._hard = surroundings.hard_limits()
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)

    def comes_back(self) -> bool:
        """Ring the bell for the next call, and tidy up; False where that cannot be.

        What others can see comes first: the output, whose end the supervisor reads at the bell. The
        rest is nobody's business until the next call is read, so that the answer to this one need
        not wait for it.
        """
        if surroundings.hard_limits() != self._hard:  # it has lowered one, for good
            return False
        if not self._has_descriptors() or self._process.has_outgrown():
            return False
        for name in self._streams:
            with suppress(Exception):  # what the function put there may do anything
                getattr(sys, name).flush()
        libc.flush_output()
        os.write(self._bell, b".")
        self._tidy()
        return True

    def _has_descriptors(self) -> bool:
        """Whether calls before have left enough for the next one to be received."""
        resource.setrlimit(resource.RLIMIT_NOFILE, self._files)  # this call's `open_files` is over
        try:
            lowest = os.dup(self._bell)
        except OSError:
            return False
        os.close(lowest)
        return lowest + DESCRIPTORS <= self._files[0]

    def _tidy(self) -> None:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        if (faults := sys.modules.get("faulthandler")) is not None:
            faults.cancel_dump_traceback_later()
        signal.set_wakeup_fd(-1)
        while pending := signal.sigpending():  # all are blocked since the function's end
            signal.sigtimedwait(pending, 0)
        _reap()
        for number, handler in self._handlers.items():
            if handler is not None and signals.handler_of(number) is not handler:
                signal.signal(number, handler)
        for name, stream in self._streams.items():
            setattr(sys, name, None if stream is None or stream.closed else stream)
        surroundings.open_standard_streams()
        surroundings.end_of_call()
        private_tmp.forget_answer()  # the task's own is about to go
        shared.forget()


def _reap() -> None:
    """What the call has left is ended after it, and nobody waits for that any more.

    Those of this call are reaped after the next one: the supervisor ends them from outside.
    """
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
