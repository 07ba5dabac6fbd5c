"""The child forked ahead: the process that is, or will be, the task, and what is held of it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING

from pynisher_exec.kernel import pidfd
from pynisher_exec.protocol import messages
from pynisher_exec.supervisor import cpu
from pynisher_exec.task import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynisher_exec.supervisor.options import SlotOptions

__all__ = ["Child"]


class Child:
    """The process that is, or will be, the task, and what this supervisor holds of it."""

    def __init__(
        self, forget: Callable[[], None], options: SlotOptions, inherited: run.Inherited | None
    ) -> None:
        self.line, line = messages.pair()
        self.stream, stream = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        (out_read, out_write), (err_read, err_write) = _pipe(), _pipe()
        self.pipes = [out_read, err_read]
        self.pid = os.fork()
        if self.pid == 0:
            try:
                forget()
                for end in (self.line, self.stream):
                    end.close()
                for descriptor in self.pipes:
                    os.close(descriptor)
                keep_main = inherited is not None
                run.prepare(no_new_privs=options.no_new_privs, keep_main=keep_main)
            except BaseException:  # noqa: BLE001  (the fork must not go on as a second supervisor)
                with contextlib.suppress(BaseException):
                    sys.excepthook(*sys.exc_info())
                os._exit(1)
            run.main(run.Endpoints(line, stream, out_write, err_write, inherited))
        for end in (line, stream):
            end.close()
        for descriptor in (out_write, err_write):
            os.close(descriptor)
        self.pidfd = pidfd.open_pidfd(self.pid)
        self.clock = cpu.open_clock(self.pid)
        self.line.setblocking(False)

    def close(self) -> None:
        """Let go of everything; the process has been reaped."""
        self.line.close()
        self.stream.close()
        self.clock.close()
        for descriptor in (*self.pipes, self.pidfd):
            os.close(descriptor)


def _pipe() -> tuple[int, int]:
    return os.pipe2(os.O_CLOEXEC)
