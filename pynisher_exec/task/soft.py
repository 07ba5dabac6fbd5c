"""Soft signals: with a grace period, a limit is first an exception inside the function.

SIGXCPU means CPU time, SIGALRM wall time; both come from the supervisor. The handler raises once,
and only while the function runs: never in the library's own code after it has returned, where it
would cost a finished task its value. Python runs handlers between bytecodes only, so a C loop
meets the kill instead (signal module, "Execution of Python signal handlers").
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Final

from pynisher_exec.errors import CpuTimeoutException, SignalException, TaskError, TimeoutException
from pynisher_exec.kernel import clock

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from pynisher_exec.limits import Limits

__all__ = ["SoftSignals"]

_REASONS: Final[dict[int, tuple[str, type[TaskError]]]] = {
    signal.SIGXCPU: ("cpu_time", CpuTimeoutException),
    signal.SIGALRM: ("wall_time", TimeoutException),
    signal.SIGQUIT: ("quit", SignalException),
}


class SoftSignals:
    """Raises at most one exception, and only below the frame of `below`'s code.

    `raised` is that very exception, `reason` its limit. The walk up the frames is what makes this
    safe: a flag would leave a moment between the function's return and its clearing.
    """

    def __init__(self, limits: Limits, *, on_quit: bool, below: CodeType) -> None:
        self.raised: TaskError | None = None
        self.reason: str | None = None
        self._limits = limits
        self._on_quit = on_quit
        self._below = below
        self._earliest = 0.0

    def install(self, began: float) -> None:
        """Set the handlers that the limits ask for. `began`: from when the supervisor counts."""
        self._earliest = began + (self._limits.wall_time or 0)
        if self._limits.grace_period is not None:
            if self._limits.cpu_time is not None:
                signal.signal(signal.SIGXCPU, self._handle)
            if self._limits.wall_time is not None:
                signal.signal(signal.SIGALRM, self._handle)
        if self._on_quit:
            signal.signal(signal.SIGQUIT, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGALRM and clock.monotonic() < self._earliest:
            # Not the supervisor's: the function set an alarm and no handler. Let that have its way.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        elif self.raised is None and self._is_below(frame):
            self.reason, kind = _REASONS[signum]
            self.raised = kind(self._message())
            raise self.raised

    def _is_below(self, frame: FrameType | None) -> bool:
        while frame is not None and frame.f_code is not self._below:
            frame = frame.f_back
        return frame is not None

    def _message(self) -> str:
        if self.reason == "quit":
            return "received SIGQUIT"
        limit = getattr(self._limits, str(self.reason))
        return f"{self.reason} limit {limit:g} s reached, {self._limits.grace_period:g} s of grace"
