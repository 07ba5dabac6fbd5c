"""The watch over one task, from its START to ENDED: the I/O around `state.Watch`.

Whatever ends the watch, everything below this process is killed and reaped before the caller is
told: to ECHILD, or all but a process that waits for its next task, and its resource trackers.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from pynisher_exec.kernel import pidfd, proc
from pynisher_exec.limits import Limits
from pynisher_exec.protocol import messages
from pynisher_exec.supervisor import kill, on_time, output
from pynisher_exec.supervisor.cpu import SummedClocks
from pynisher_exec.supervisor.evidence import Account, number_in
from pynisher_exec.supervisor.gate import Gate
from pynisher_exec.supervisor.state import SHORTEST_CPU_LOOK, Kill, Reading, Soft, Watch
from pynisher_exec.task import private_tmp

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from pynisher_exec.kernel.cgroup import Group
    from pynisher_exec.supervisor.child import Child
    from pynisher_exec.supervisor.options import SlotOptions

__all__ = ["CallerGone", "Watching"]

LARGE_OUTCOME = 1 << 16
"""Bytes: above this the socket may not hold the outcome, so the caller must read meanwhile."""

WORDS_AT_ONCE, MOST_WORDS = 16, 64
"""Messages of a task that are taken in one turn, and in its life; it has no more than five to say.

What floods its line shall not keep this process from its clocks.
"""

LINGER = 0.2
"""Seconds after RETURNED at which the caller is asked to read, whatever the outcome's size."""

QUIET = 0.005
"""Seconds after START in which the task is not listened to.

A small task has returned by then, and all that it said is read at once, when it closes its line; to
wake up for each word would cost it, and other tasks, more than what it does. Nothing is late by
that: its words carry their time, and no limit is looked at earlier.
"""

_CORES = os.cpu_count() or 1


class CallerGone(Exception):  # noqa: N818  (a signal, not an error)
    """The caller has died or let go of the line."""


class Watching:
    """The watch over one task, from START to ENDED.

    `keeps`: the process of the task lives on, and waits for the next.
    """

    def __init__(
        self,
        control: socket.socket,
        caller: int,
        child: Child,
        start: dict[str, Any],
        options: SlotOptions,
        group: Group,
    ) -> None:
        self._control = control
        self._caller = caller
        self._child = child
        self._options = options
        self._group = group
        self._generation = start["generation"]
        self.keeps = False
        self._rests = False
        self._limits = limits = Limits.received(start["limits"])
        self._watch = Watch(limits, _CORES, time.monotonic())
        child.note_shares(start["shared"])
        reused = child.rest is not None
        self._account = Account(child.pid, child.clock, limits, child.shares, reused=reused)
        self._gate: Gate | None = None
        self._read_at: float | None = None
        self._rung = False
        self._walked_at = -math.inf  # CPU seconds
        self._words = 0
        self._streams: list[output.Stream] = []
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._private_tmp: str = start["private_tmp"]
        self._begin(start["capture"])

    def _begin(self, capture: int) -> None:
        child = self._child
        if capture:
            child.pipes.close_write()
            self._streams = [output.Stream(pipe, capture) for pipe in child.pipes.read]
        self._listen(self._control.fileno(), self._hear_caller)
        self._listen(self._caller, self._caller_died)
        self._poll.register(child.pidfd, select.POLLIN)
        self._listen(child.line.fileno(), self._hear_task, select.POLLRDHUP)  # its end: see QUIET
        if child.rest is not None:
            self._listen(child.rest, partial(self._hear_rest, child.rest))

    def _listen_to_task(self) -> None:
        line = self._child.line.fileno()
        if line in self._handlers:
            self._poll.modify(line, select.POLLIN)
        for stream in self._streams:
            self._listen(stream.fileno(), partial(self._drain, stream))

    def _listen(
        self, descriptor: int, handler: Callable[[], None], events: int = select.POLLIN
    ) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, events)

    def _ignore(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    # -- the loop ------------------------------------------------------------------------------

    def see_through(self) -> bool:
        """Watch until the child has ended, end what is left, account; False when it is stuck."""
        ended = self._turn(self._quiet_time())
        if not ended and self._watch.stage == "returned":
            ended = self._turn(self._quiet_time())
        if not ended:
            self._listen_to_task()
        while not ended and self._watch.killed is None:
            ended = self._turn(self._timeout())
            if not ended:
                self._act()
        return self._conclude()

    def _quiet_time(self) -> float:
        """Milliseconds. A task whose forks are gated would wait; a wall limit may be that short."""
        if self._limits.processes is not None:
            return 0.0
        return min(QUIET, (self._limits.wall_time or QUIET) / 2) * 1000

    def _turn(self, timeout: float | None) -> bool:
        """Wait for what comes next and handle it; True once the child has ended."""
        ready = [descriptor for descriptor, _ in self._poll.poll(timeout)]
        for descriptor in ready:
            handler = self._handlers.get(descriptor)
            if handler is not None:
                handler()
        return self._rests or self._child.pidfd in ready

    def _timeout(self) -> float | None:
        """Milliseconds until something is due."""
        due = min(self._watch.deadline(), self._read_at or math.inf)
        if self._gate is not None and self._gate.pending is not None:
            due = min(due, time.monotonic() + self._gate.pending)
        return on_time.until(due, sharp=due == self._watch.end_due())

    def _act(self) -> None:
        """What is due by the clock: a look, a waiting fork, a limit."""
        now = time.monotonic()
        if self._gate is not None and self._gate.pending is not None:
            self._gate.review()
        if self._rung or self._watch.look_due(now):
            reading = self._look() if self._has_worked() else self._same()
            self._perform(self._watch.read(reading, now))
        self._perform(self._watch.tick(now))
        if self._read_at is not None and now >= self._read_at:
            self._ask_to_read()

    def _has_worked(self) -> bool:
        """Whether the tree has used CPU time since it was walked, or there is more to be seen.

        Without any it has neither grown nor forked, and to walk 200 sleepers takes milliseconds.
        Those that were seen are asked, too: one of them may have left the clock of the tree.
        """
        counts = self._watch.counts_processes and self._limits.processes is not None
        undecided = self._rung or self._account.gauge.is_unsure
        if undecided or counts or not self._knows_all():
            return True
        if self._account.cpu_time() - self._walked_at >= SHORTEST_CPU_LOOK:
            return True
        return not self._account.living.stand_still()

    def _knows_all(self) -> bool:
        """Whether the CPU clock misses nobody, and costs no walk itself."""
        return self._child.clock.mechanism != SummedClocks.mechanism

    def _same(self) -> Reading:
        """What the last reading found."""
        return self._watch.last._replace(cpu_time=self._account.cpu_time(), cost=0.0)

    def _look(self) -> Reading:
        """Take a reading, and reap orphans that have ended: else a long task runs out of pids."""
        self._rung = False
        began = time.monotonic()
        account = self._account
        pids = account.tree.pids()
        account.living.note(pids)
        gone = kill.reap_orphans(self._child.pid, account.reaped, len(pids))  # clocks are noted
        pids = [pid for pid in pids if pid not in gone]  # may be others' from now on
        self._walked_at = account.cpu_time()
        used = self._walked_at if self._knows_all() else math.inf
        held = account.gauge.read(pids, self._limits.memory, used)
        bell = account.gauge.bell
        if bell is not None and bell not in self._handlers:
            self._listen(bell, self._hear_gauge)
        others = max(0, account.gauge.living - 1 - len(self._child.trackers.intersection(pids)))
        account.peak_processes = max(account.peak_processes, others)
        cost = max(time.monotonic() - began, account.gauge.cost)
        return Reading(account.cpu_time(), held, others, cost)

    def _hear_gauge(self) -> None:
        """A dear reading has ended: look at what it found."""
        self._rung = True

    def _perform(self, action: Soft | Kill | None) -> None:
        if isinstance(action, Soft):
            with contextlib.suppress(ProcessLookupError):
                pidfd.send_signal(self._child.pidfd, action.signum)

    # -- what comes in -------------------------------------------------------------------------

    def _caller_died(self) -> None:
        raise CallerGone

    def _hear_caller(self) -> None:
        message = messages.receive(self._control)
        if message is None:
            raise CallerGone
        if message.kind != "kill" or message.fields["generation"] != self._generation:
            return
        if message.fields.get("gently"):  # terminate_workers: SIGTERM, and the kill after a while
            with contextlib.suppress(ProcessLookupError):
                pidfd.send_signal(self._child.pidfd, signal.SIGTERM)
        else:
            self._watch.asked(message.fields["reason"], time.monotonic())

    def _hear_task(self) -> None:
        """Take what the task has said. Its end of this line is in the function's hands."""
        for _ in range(WORDS_AT_ONCE):
            try:
                message = None if self._words == MOST_WORDS else messages.hear(self._child.line)
            except BlockingIOError:
                return
            if message is None:
                self._ignore(self._child.line.fileno())
                if self._child.shows:
                    # Not what crashes: its memory goes before its descriptors do.
                    calm = self._watch.stage == "returned" and self._watch.killed is None
                    self._child.see_off(look=calm)
                return
            self._words += 1
            self._take(message)

    def _hear_rest(self, bell: int) -> None:
        """It has delivered, and waits for the next call; all that it has said is there."""
        if not os.read(bell, 1):  # it has ended
            self._ignore(bell)
            return
        self._hear_task()
        # Unless it has lost its line, or has said so much that nobody listens, it was somebody else
        # who has rung before that.
        deaf = self._child.line.fileno() not in self._handlers
        self._rests = deaf or self._watch.stage == "returned"

    def _take(self, message: messages.Message) -> None:
        before = self._watch.stage
        if message.kind == "running" and before in ("waiting", "loading"):
            self._take_running(message)
        else:
            message.close()
            self._watch.told(message.kind, message.fields, time.monotonic())
        if self._watch.stage == "returned" and before != "returned":
            self._take_returned()

    def _take_running(self, message: messages.Message) -> None:
        """The function starts: limits count from what the process holds and has used by now."""
        self._watch.told("running", message.fields, self._account.begin(message.fields))
        if message.descriptors and self._limits.processes is not None:
            self._gate = Gate(message.descriptors[0], self._limits.processes, self._child.pid)
            self._listen(self._gate.fileno(), self._serve_gate)
            message = message._replace(descriptors=message.descriptors[1:])
        message.close()  # a gate is all that is asked for; a task may send more, or unasked
        self._watch.counts_processes = self._gate is None

    def _take_returned(self) -> None:
        fields = self._watch.returned or {}
        self._account.end(number_in(fields, "at"))
        # For nothing: what it touches has to be copied since the last fork, better now than when
        # the task has exited and the caller waits for it (as in `task.rehearsal`).
        if self._child.rest is None:  # else the last fork is long past
            self._account.fields(self._watch, self._gate, [])
        if number_in(fields, "size") > LARGE_OUTCOME:
            self._ask_to_read()
        else:
            self._read_at = time.monotonic() + LINGER

    def _serve_gate(self) -> None:
        if self._gate is not None:
            try:
                self._gate.serve()
            except OSError:  # the filter's last process has gone
                self._ignore(self._gate.fileno())

    def _drain(self, stream: output.Stream) -> None:
        if not stream.drain():
            self._ignore(stream.fileno())

    def _ask_to_read(self) -> None:
        self._read_at = None
        messages.send(self._control, "returned", generation=self._generation)

    # -- the end -------------------------------------------------------------------------------

    def _conclude(self) -> bool:
        """The child has ended or must: end the rest, take the last figures, tell the caller."""
        ended_at = time.monotonic()
        if self._watch.killed is not None:
            self._strike()
        survivors = self._end_tree()
        if not survivors:
            self._account.gauge.close()
        self._hear_task()
        self._account.end(ended_at)
        left = "" if survivors else self._remove_private_tmp()
        fields = self._account.fields(self._watch, self._gate, survivors)
        self._send_ended({**fields, "left": left, "kept": self.keeps})
        # The kernel expects a sender to sleep next, and may have put the caller's thread behind
        # this process, which has a fork to make.
        os.sched_yield()
        if survivors:
            self._wait_for_the_stuck()
        if self._gate is not None:
            self._gate.close()
        if not self.keeps:
            self._child.close()
        return not survivors

    def _end_tree(self) -> list[int]:
        """End what is left of the task: all, unless its process serves others after it."""
        watch = self._watch
        unharmed = watch.killed is None and watch.limit_reached is None
        if self._rests:
            self._account.rests = True
            if unharmed and watch.stage == "returned":
                trackers = kill.end_others(self._child.pid, self._account.reaped)
                self.keeps = trackers is not None
                self._child.trackers = trackers or set()
        if self.keeps:
            return []
        return kill.end_tree(
            self._account.reaped,
            self._options.kill_timeout,
            first=self._child.pid,
            at_once=self._group.kill_others,
        )

    def _remove_private_tmp(self) -> str:
        """Nobody is left to use it; gives its path where it could not be removed.

        That may take long, and the caller's patience with a task that has returned is bounded.
        """
        if not self._private_tmp:
            return ""
        messages.send(self._control, "tidying", generation=self._generation)
        return "" if private_tmp.remove(self._private_tmp) else self._private_tmp

    def _strike(self) -> None:
        """Kill the first process, if nothing else has ended it: only then is the kill why it ended.

        At a wall limit SIGTERM goes first, at once followed by the kill: the exit code then says
        -15 where nothing handles it, as pynisher's did.
        """
        child = self._child.pidfd
        self._account.struck = not (pidfd.exited(child) or proc.is_being_killed(self._child.pid))
        with contextlib.suppress(ProcessLookupError):
            if self._watch.killed == "wall_time":
                pidfd.send_signal(child, signal.SIGTERM)
            pidfd.send_signal(child, signal.SIGKILL)

    def _wait_for_the_stuck(self) -> None:
        """The caller has replaced this slot; what the kernel frees late must still be reaped."""
        while kill.end_tree(kill.ignore, self._options.kill_timeout):
            if pidfd.exited(self._caller):
                return

    def _send_ended(self, fields: dict[str, Any]) -> None:
        fields["generation"] = self._generation
        if not self._streams:
            messages.send(self._control, "ended", **fields)
            return
        for stream in self._streams:
            stream.drain_all()
        contents = [stream.content() for stream in self._streams]
        fields["output"] = [len(content) for content in contents]
        try:
            file = output.to_memory_file(contents)
        except OSError:  # no memory, or no descriptor: the rest of the account counts all the same
            messages.send(self._control, "ended", **fields)
            return
        try:
            messages.send(self._control, "ended", (file,), **fields)
        finally:
            os.close(file)
