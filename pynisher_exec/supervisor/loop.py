"""The life of a slot supervisor: forks a child ahead, waits for its START, has it watched.

    idle:     a child waits for a call; its stream has gone to the caller with READY, or is still
              there from the call before, and then what that has left is stopped after a while;
              else another waits in its place after a while, which takes less memory
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

IDLE, LONGEST_IDLE = 0.5, 60.0
"""Seconds without a call, after twice which that memory is given back, and 1 MB of the child, which
has rehearsed. Twice as many each time: where calls come every now and then, it costs more to give
it back and to take it again."""

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
        self._is_slim = False
        self._patience = IDLE
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
        if self._child is not None:  # whose place this one takes
            self._child.close()

    def abandon(self) -> None:
        """Nobody wants an account any more: end what is there."""
        survivors = kill.end_tree(kill.ignore, self._options.kill_timeout)
        if self._private_tmp and not survivors:
            private_tmp.remove(self._private_tmp)

    def serve_one(self, scope: int | None) -> bool:
        """Have a child ahead, wait for a call, see it through; False when a child is stuck."""
        is_new = self._child is None
        child = self._child or self._fork(scope)
        start = self._await_start(child, self._rest(child, is_new=is_new), scope)
        if start is None and self._child is child:  # it has died, or has to
            kill.end_tree(kill.ignore, self._options.kill_timeout)
            child.close()
            self._child = None
        if start is None:  # another takes its place
            return True
        self._private_tmp, self._is_slim = start["private_tmp"], False
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
        child = self._child = self._bear(scope)
        self._announce(child)
        return child

    def _bear(self, scope: int | None) -> Child:
        return Child(
            self._pipes,
            self.forget,
            scope,
            self._group,
            self._inherited,
            self._options.max_tasks,
            rehearses=not self._is_slim,
            shows=self._hot_pages.are_sought,
        )

    def _announce(self, child: Child) -> None:
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

    def _warm_up(self) -> None:
        for _ in range(WARM_UP):
            rehearsal.rehearse()
        gc.freeze()

    def _may_stay(self, child: Child, scope: int | None) -> bool:
        """Whether a child goes on waiting, after `_rest`; what calls have left in it is dealt with.

        If there were none, another takes its place, the next time: a call may be on its way, and
        only a child that stands still has surely not begun it.
        """
        if child.rest is not None or not child.stands:
            return _calm(child)
        self._is_slim = True
        self._patience = min(2 * self._patience, LONGEST_IDLE)
        self._hot_pages.release()
        return not self._replace(child, scope)

    def _replace(self, child: Child, scope: int | None) -> bool:
        """Have another child wait; False where there is none to be had, or a call for this one."""
        try:
            other = self._bear(scope)
        except OSError:
            return False
        child.stop()  # somebody may have let it go on
        if messages.has_come(self._control) or self._has_begun(child):
            other.end()
            return False
        kill.end_tree(kill.ignore, self._options.kill_timeout, spared={other.pid})
        child.close()
        other.renew_clock(self._group)
        self._child = other
        self._announce(other)
        return True

    def _has_begun(self, child: Child) -> bool:
        """Kill it, and tell whether a call has come to it until then, and somebody let it go on."""
        child.kill(self._options.kill_timeout)
        return child.has_spoken()

    def _rest(self, child: Child, *, is_new: bool) -> float | None:
        """Milliseconds without a call after which something is to be done about the child."""
        if child.rest is not None:
            return None if is_new else REST * 1000
        lasts = self._is_slim or self._options.single
        return None if lasts else self._patience * 1000

    def _await_start(
        self, child: Child, rest: float | None, scope: int | None
    ) -> dict[str, Any] | None:
        """Wait for START; None when the waiting child has died, or is not to be kept.

        To watch instead what calls before have left in it would mean to look again and again for as
        long as nothing is to be done: it is stopped after `rest` milliseconds.
        """
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
                if not self._may_stay(child, scope):
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
            replaced=self._is_slim,
        )


def _calm(child: Child) -> bool:
    """Stop its threads; the next time, when they start nothing more, end what they have started.

    False where that goes on, and it has to be ended as well.
    """
    if child.stands:
        return kill.end_others(child.pid, kill.ignore) is not None
    child.stop()
    return True
