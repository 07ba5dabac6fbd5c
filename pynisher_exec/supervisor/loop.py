"""The life of a slot supervisor: forks a child ahead, waits for its START, has it watched.

    idle:     a child waits for a call; its stream has gone to the caller with READY, or is still
              there from the call before, and then what that has left is stopped after a while
    watching: from START to the end of the child, see `watching`
    after:    everything below is killed and reaped to ECHILD, or all but a child that waits for its
              next call, and its resource trackers; then ENDED tells the evidence

To the caller go READY (with the stream of the next task), RETURNED (when its outcome needs
reading before the task can end) and ENDED; from it come START and KILL. When the caller dies
(its pidfd) or lets go of the line (its end), the tree is ended and so is this process. A fork of
the caller may keep the line open, an exec keeps the pid alive: both signs are watched.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
from typing import TYPE_CHECKING, Any, NoReturn

from pynisher_exec.kernel import cgroup, clock, landlock, prctl
from pynisher_exec.protocol import messages
from pynisher_exec.supervisor import cpu, kill
from pynisher_exec.supervisor.child import Child, Pipes
from pynisher_exec.supervisor.hot_pages import HotPages
from pynisher_exec.supervisor.watching import CallerGone, Watching
from pynisher_exec.task import private_tmp, rehearsal, surroundings
from pynisher_exec.task.run import Inherited

if TYPE_CHECKING:
    import socket

    from pynisher_exec.supervisor.options import SlotOptions
    from pynisher_exec.task.run import Packed

__all__ = ["serve"]

WARM_UP = 16
"""Times that code must have run for CPython to have specialized it, so that no fork has to."""

REST = 0.1
"""Seconds after a call in which threads that it has left may go on unwatched; and seconds after
they have been stopped, by when none is about to fork any more."""


def serve(
    control: socket.socket,
    caller: int,
    options: SlotOptions,
    place: str,
    inherited: Inherited | Packed | None = None,
) -> NoReturn:
    """Be the supervisor of one slot until the caller lets go.

    `caller` is its pidfd, `place` where control groups can be made.
    """
    group = cgroup.Group(place)
    if place and cpu.is_refused():
        group.enter()
    slot = _Slot(control, caller, options, inherited, group)
    scope = _settle(options, keep_main=isinstance(inherited, Inherited))
    try:
        while slot.serve_one(scope) and not options.single:
            pass
    except (CallerGone, ConnectionError):
        slot.abandon()
    except OSError as error:  # no process or descriptor to be had: the caller can say so
        slot.abandon()
        with contextlib.suppress(OSError):
            messages.send(control, "failed", message=f"no task process: {error.strerror}")
    os._exit(0)


def _settle(options: SlotOptions, *, keep_main: bool) -> int | None:
    """Take on all that every task of this slot shall have from its fork; give Landlock's ruleset.

    What is done once here need not be done in each task. SIGINT has its usual handler already, and
    is blocked here: only a task lets it in.
    """
    prctl.become_subreaper()
    prctl.set_name("limit-slot")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    scope = None
    if options.no_new_privs:
        prctl.renounce_privileges()
        with contextlib.suppress(OSError):  # before Linux 6.12
            scope = landlock.signal_scope()
    surroundings.become_fresh_process(keep_main=keep_main)
    surroundings.note_own()
    gc.freeze()
    return scope


class _Slot:
    """One slot: the line to the caller, the child ahead, and the task being watched."""

    def __init__(
        self,
        control: socket.socket,
        caller: int,
        options: SlotOptions,
        inherited: Inherited | Packed | None,
        group: cgroup.Group,
    ) -> None:
        self._control = control
        self._caller = caller
        self._options = options
        self._inherited = inherited
        self._generation = 0
        self._private_tmp = ""
        self._is_warm = False
        self._hot_pages = HotPages(wanted=options.max_tasks == 1 and not options.single)
        self._child: Child | None = None
        self._group = group
        self._pipes = Pipes()
        control.setblocking(False)

    def forget(self) -> None:
        """In the child: close what is the supervisor's."""
        os.close(self._control.detach())
        os.close(self._caller)
        self._hot_pages.close()

    def abandon(self) -> None:
        """Nobody wants an account any more: end what is there."""
        survivors = kill.end_tree(kill.ignore, self._options.kill_timeout)
        if self._private_tmp and not survivors:
            private_tmp.remove(self._private_tmp)

    def serve_one(self, scope: int | None) -> bool:
        """Have a child ahead, wait for a call, see it through; False when a child is stuck."""
        is_new = self._child is None
        child = self._child or self._fork(scope)
        start = self._await_start(child, leaves=child.rest is not None and not is_new)
        if start is None:  # it has died, or has to: another takes its place
            kill.end_tree(kill.ignore, self._options.kill_timeout)
            child.close()
            self._child = None
            return True
        self._private_tmp = start["private_tmp"]
        watching = Watching(self._control, self._caller, child, start, self._options, self._group)
        began = clock.monotonic()
        over = watching.see_through()
        self._hot_pages.note(clock.monotonic() - began - child.looked, child.written)
        if watching.keeps:
            self._generation += 1
        else:
            self._child = None
        return over

    def _fork(self, scope: int | None) -> Child:
        """Fork a child ahead, and tell the caller of it."""
        if self._pipes.used:
            self._pipes.close()
            self._pipes = Pipes()
        if self._generation and not self._is_warm:  # the first task: nothing was to hold that up
            self._is_warm = True
            self._warm_up()
        self._hot_pages.pin()
        # Kept: what is collected while an exception passes would be closed with a warning.
        child = self._child = Child(
            self._pipes,
            self.forget,
            scope,
            self._group,
            self._inherited,
            self._options.max_tasks,
            rehearses=bool(self._generation) or not self._options.slim,
            shows=self._hot_pages.are_sought,
        )
        self._generation += 1
        messages.send(
            self._control,
            "ready",
            (child.stream.fileno(),),
            generation=self._generation,
            pid=child.pid,
            supervisor=os.getpid(),
        )
        child.stream.close()
        return child

    def _warm_up(self) -> None:
        for _ in range(WARM_UP):
            rehearsal.rehearse()
        gc.freeze()

    def _await_start(self, child: Child, *, leaves: bool) -> dict[str, Any] | None:
        """Wait for START; None when the waiting child has died, or is not to be kept.

        To watch instead what calls before have left in it would mean to look again and again for as
        long as nothing is to be done: it is stopped after a while.
        """
        rest = REST * 1000 if leaves else None
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._caller, select.POLLIN)
        poll.register(child.pidfd, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(rest)}
            if self._control.fileno() in ready:
                start = self._hear_start()
                if start is not None:
                    child.go_on()
                    return start
            elif self._caller in ready:
                raise CallerGone
            elif child.pidfd in ready:
                poll.unregister(child.pidfd)
                if not child.has_spoken():  # else its START has come since `poll` looked for that
                    return None
            else:
                rest = None if child.stands else rest
                if not _calm(child):
                    return None

    def _hear_start(self) -> dict[str, Any] | None:
        """Take a message; None when it is no START for the child that waits."""
        message = messages.receive(self._control)
        if message is None:
            raise CallerGone
        if message.kind != "start":
            return None
        if message.fields["generation"] == self._generation:
            return message.fields
        self._send_unstarted(message.fields["generation"])
        return None

    def _send_unstarted(self, generation: int) -> None:
        """That START was for a child that had died: its call has not run, and can run elsewhere."""
        messages.send(
            self._control,
            "ended",
            generation=generation,
            next_generation=self._generation,
            unstarted=True,
        )


def _calm(child: Child) -> bool:
    """Stop its threads; the next time, when they start nothing more, end what they have started.

    False where that goes on, and it has to be ended as well.
    """
    if child.stands:
        return kill.end_others(child.pid, kill.ignore) is not None
    child.stop()
    return True
