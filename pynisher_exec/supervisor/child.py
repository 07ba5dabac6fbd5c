"""The child forked ahead: the process that is, or will be, the task, and what is held of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from pynisher_exec.kernel import clock, pages, pidfd, proc
from pynisher_exec.protocol import messages
from pynisher_exec.supervisor import cpu, hot_pages
from pynisher_exec.task import rehearsal, run, worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pynisher_exec.kernel.cgroup import Group

__all__ = ["Child", "Pipes"]

MOST_SHARES = 1000
"""Places that are remembered before it is looked which of them are mapped still."""


class Pipes:
    """What carries a task's captured output: the two reading ends, and the two writing ends.

    A child gets them before it is known whether its output shall be captured. Unless it was, no
    other process has kept an end, so the next child may have the same ones.
    """

    def __init__(self) -> None:
        (out_read, out_write), (err_read, err_write) = _pipe(), _pipe()
        self.read = (out_read, err_read)
        self.write = (out_write, err_write)
        self.used = False

    def close_write(self) -> None:
        """Leave writing to the task, whose output is captured: its end can then be seen."""
        if not self.used:
            self.used = True
            for end in self.write:
                os.close(end)

    def close(self) -> None:
        """Close what is held."""
        for end in self.read if self.used else (*self.read, *self.write):
            os.close(end)


class Child:
    """The process that is, or will be, the task, and what this supervisor holds of it.

    In the process itself `forget` closes what is the supervisor's alone. `scope` is Landlock's
    ruleset for it, if there is one; `group` the supervisor's, in which it is born.

    If it `rehearses`, its first task is faster, for some memory. If it `shows`, `written` are then
    the addresses of this process's pages to which its task has written, empty where that could not
    be seen, None where it did not come to that; `looked`: seconds that it took.

    `rest` is a pipe by which a process that serves `max_tasks` (None: any number) says that it
    waits for the next; None where it serves one. `shares`: places of what it has been given to
    read, unless it has been seen to have let go of that. `trackers`: resource trackers that tasks
    have left to it. `stands`: it has been stopped.
    """

    def __init__(
        self,
        pipes: Pipes,
        forget: Callable[[], None],
        scope: int | None,
        group: Group,
        inherited: run.Inherited | run.Packed | None,
        max_tasks: int | None,
        *,
        rehearses: bool,
        shows: bool,
    ) -> None:
        self.pipes = pipes
        self.shows = shows
        self.written: list[int] | None = None
        self.looked = 0.0
        self.shares: set[bytes] = set()
        self.trackers: set[int] = set()
        self.stands = False
        self.rest: int | None = None
        rest: int | None = None
        if max_tasks != 1:
            self.rest, rest = _pipe()
        self.line, line = messages.pair()
        self.stream, stream = messages.stream_pair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                forget()
                for end in (self.line.detach(), self.stream.detach(), *pipes.read):
                    os.close(end)
                if self.rest is not None:
                    os.close(self.rest)
                run.prepare(scope=scope, inherited=inherited)
                if rehearses:
                    rehearsal.rehearse_unless_called(stream)
            except BaseException:  # noqa: BLE001  (the fork must not go on as a second supervisor)
                with contextlib.suppress(BaseException):  # stderr may be closed
                    sys.excepthook(*sys.exc_info())
                os._exit(1)
            ends = run.Endpoints(line, stream, *pipes.write, inherited, shows)
            worker.main(ends, rest, max_tasks)
        line.close()
        stream.close()
        if rest is not None:
            os.close(rest)
        self.pidfd = pidfd.open_pidfd(self.pid)
        self.clock = cpu.open_clock(self.pid, group)
        self.line.setblocking(False)

    def note_shares(self, places: Iterable[bytes]) -> None:
        """It is about to be given these to read.

        What calls before have kept stays, all else goes: a process may serve without end, and a
        number that is free again may become the place of what nobody has shared.
        """
        if len(self.shares) > MOST_SHARES:
            self.shares &= proc.sealed_places(self.pid)
        self.shares.update(places)

    def stop(self) -> None:
        """Stop all its threads; that is nothing to one that has died."""
        self.stands = True
        with contextlib.suppress(OSError):
            pidfd.send_signal(self.pidfd, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let them go on, if they have been stopped."""
        if self.stands:
            self.stands = False
            with contextlib.suppress(OSError):
                pidfd.send_signal(self.pidfd, signal.SIGCONT)

    def has_spoken(self) -> bool:
        """Whether it has said something that nobody has heard: then it has begun a call."""
        try:
            return bool(self.line.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def see_off(self, *, look: bool) -> None:
        """Let it go on to its end, for which it waits; before that, look where it has written."""
        self.shows = False
        began = clock.monotonic()
        if look and not pidfd.exited(self.pidfd):  # else its number may be another's
            try:
                self.written = pages.copied_by(self.pid, hot_pages.MOST) or None
            except (PermissionError, MemoryError):
                self.written = []
            except OSError:  # it has just been killed
                pass
        self.looked = clock.monotonic() - began
        with contextlib.suppress(OSError):  # it has gone
            self.line.send(b".")

    def close(self) -> None:
        """Let go of everything but the pipes; the process has been reaped."""
        self.line.close()
        self.stream.close()
        self.clock.close()
        os.close(self.pidfd)
        if self.rest is not None:
            os.close(self.rest)


def _pipe() -> tuple[int, int]:
    return os.pipe2(os.O_CLOEXEC)
