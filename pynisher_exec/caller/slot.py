"""One slot as the caller sees it: the line to its supervisor and the task that it runs.

    starting -> idle -> busy -> (ended) -> starting -> ...       closed, or lost: the line has ended

Everything here belongs to the monitor thread. What a slot learns it hands to its `Keeper`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, Protocol

from pynisher_exec.caller.account import Ending
from pynisher_exec.caller.exchange import Exchange
from pynisher_exec.caller.reactor import Reactor, control_line, private
from pynisher_exec.kernel import pidfd, proc
from pynisher_exec.kernel.descriptors import above_standard
from pynisher_exec.protocol import messages

if TYPE_CHECKING:
    from pynisher_exec.caller.inbox import PoolOptions
    from pynisher_exec.caller.item import Item, Key, Segments
    from pynisher_exec.caller.launch import Host
    from pynisher_exec.errors import RemoteTraceback

__all__ = ["Keeper", "Slot"]


CHECK_EVERY = 10.0
"""Seconds between two looks at the supervisor of a task that runs: stopped, it keeps no limit."""

CHECK_AFTER = 2.0
"""Seconds after a wall limit, or after it was found stopped, until it is looked at again."""

FRESH_AFTER = 1.0
"""Seconds without a call, after which a slot that has worked is replaced by a fresh one."""


class Keeper(Protocol):
    """Who owns the slots."""

    def finished(self, slot: Slot, item: Item, ending: Ending) -> None:
        """The task's tree has gone."""

    def requeue(self, item: Item, slot: Slot | None = None) -> None:
        """The call never began: its child had died while it waited."""

    def lost(self, slot: Slot) -> None:
        """The supervisor has gone."""


class Slot:
    """A supervisor's line, and what runs behind it.

    `patience`: seconds after which a supervisor that does not do as it is told is ended.
    """

    def __init__(
        self,
        number: int,
        host: Host,
        key: Key,
        reactor: Reactor,
        keeper: Keeper,
        patience: float,
        deadline: float,
    ) -> None:
        self.number = number
        self.host = host
        self.key = key
        self.state = "starting"
        self.item: Item | None = None
        self.deadline: float | None = deadline
        self.failure = ""
        self.failed_by: RemoteTraceback | None = None
        self.killing = False  # it has been told to end its task
        self.hopeless = False  # another try would fail the same way
        self.idle_since = 0.0
        self.worked = False
        self.follows: Slot | None = None  # the one that it is to replace
        self.rest = FRESH_AFTER
        self.refreshed_at = 0.0  # when it was last tried to replace it
        self._reactor = reactor
        self._keeper = keeper
        self._patience = patience
        self._generation = 0
        self._stream: socket.socket | None = None
        self._exchange: Exchange | None = None
        self._supervisor: int | None = None
        self._pid: int | None = None
        self._supervisor_pid: int | None = None
        self._given_up = False
        self._was_stopped = False
        self.tidying = False  # its task has gone, and only what it left is still there

    def open(self, pool: PoolOptions, *, slim: bool = False) -> None:
        """Ask the host for a supervisor. OSError when its line does not take it."""
        options = {
            "no_new_privs": pool.no_new_privs,
            "kill_timeout": pool.kill_timeout,
            "max_tasks": pool.max_tasks,
            "slim": slim,
        }
        self._control, far_end = control_line()
        try:
            messages.send(
                self.host.line, "fork", (far_end.fileno(),), slot=self.number, options=options
            )
        except BaseException:
            self._control.close()
            raise
        finally:
            far_end.close()
        self._control.setblocking(False)
        self._reactor.listen(self._control.fileno(), self.hear)

    # -- a task begins ---------------------------------------------------------------------------

    def run(self, item: Item, segments: Segments) -> None:
        """Give the waiting child its call."""
        self.state, self.item, self.worked = "busy", item, True
        self._was_stopped = False
        self.deadline = self._next_check(item, time.monotonic())
        try:
            messages.send(
                self._control,
                "start",
                generation=self._generation,
                limits=item.limits.as_message,
                capture=item.capture,
                private_tmp=item.private_tmp,
                shared=[memory.place for memory in item.shared],
            )
        except ConnectionError:
            pass  # the line's end will be heard
        except OSError as error:  # the kernel has no room: nobody would watch the task
            self.failure = f"its supervisor could not be told of the task: {error}"
            self.kill_supervisor()
        stream, self._stream = self._stream, None
        assert stream is not None  # noqa: S101  (a slot becomes idle by READY, which brings one)
        self.killing = self.tidying = False
        pids = self._pid or 0, self._supervisor_pid or 0
        self._exchange = Exchange(stream, self._reactor, item, segments, *pids)
        self._exchange.write()

    def _next_check(self, item: Item, now: float) -> float:
        """When to look whether the supervisor keeps its clocks."""
        limits = item.limits
        if limits.wall_time is None:
            return now + CHECK_EVERY
        return now + min(CHECK_EVERY, limits.wall_time + (limits.grace_period or 0) + CHECK_AFTER)

    def is_held_up(self, now: float) -> bool:
        """Whether somebody has stopped the supervisor, or traces it: then no limit is kept.

        Found twice in turn, since a whole job may have been suspended, this process with it, and go
        on one process after the other. If not, notes when to look again.
        """
        found = None if self._supervisor_pid is None else proc.stat(self._supervisor_pid)
        before, self._was_stopped = self._was_stopped, found is not None and found.state in "Tt"
        if self._was_stopped:
            self.deadline = now + CHECK_AFTER
        elif self.item is not None:
            self.deadline = self._next_check(self.item, now)
        return before and self._was_stopped

    def kill(self, reason: str, *, gently: bool = False) -> None:
        """Have the supervisor end the task that runs now; `due` when it does not."""
        if not gently and not self.tidying:
            self.killing = True
            self.deadline = time.monotonic() + self._patience
        with contextlib.suppress(OSError):
            messages.send(
                self._control, "kill", generation=self._generation, reason=reason, gently=gently
            )

    # -- what the supervisor says ----------------------------------------------------------------

    def hear(self) -> None:
        """Take what has come, to the line's end if it is there."""
        while self.state not in ("closed", "lost"):
            try:
                message = messages.receive(self._control)
            except BlockingIOError:
                return
            if message is None:
                self._lose()
            else:
                self._take(message)

    def _take(self, message: messages.Message) -> None:
        fields = message.fields
        if message.kind == "ready" and message.descriptors:
            self._take_ready(message)
        elif message.kind == "ready":
            self.failure = "no descriptor is free in the calling process"
            self._lose()
        elif message.kind == "returned" and fields["generation"] == self._generation:
            if self._exchange is not None:
                self._exchange.begin_to_read()
        elif message.kind == "tidying":
            self._take_tidying()
        elif message.kind == "ended":
            self._take_ended(message)
        elif message.kind == "failed":
            self.failure = str(fields.get("message", "")) or self.failure
        else:  # this is no line of ours any more
            message.close()
            self.failure = "its line has been tampered with"
            self.kill_supervisor()

    def _take_ready(self, message: messages.Message) -> None:
        try:
            stream = private(socket.socket(fileno=above_standard(message.descriptors[0])))
        except OSError as error:  # the last number that is free is a standard stream's
            self.failure = f"no descriptor is free in the calling process: {error}"
            self._lose()
            return
        stream.setblocking(False)
        if self._stream is not None:
            self._stream.close()
        self._stream, self._pid = stream, message.fields["pid"]
        if self._supervisor is None:
            with contextlib.suppress(OSError):  # no descriptor free, or gone: the line will tell
                self._hold_supervisor(message.fields["supervisor"])
        if self.state == "busy":  # the child died before START reached it: that will be told
            return
        self._become_idle(message.fields["generation"])

    def _hold_supervisor(self, pid: int) -> None:
        """Have a handle to end it by; not to a stranger that has its number meanwhile."""
        if self._is_of_host(pid):
            self._supervisor_pid = pid
            handle = pidfd.open_pidfd(pid)
            if self._is_of_host(pid):
                self._supervisor = handle
            else:
                os.close(handle)

    def _is_of_host(self, pid: int) -> bool:
        found = proc.stat(pid)
        return found is not None and found.parent == self.host.pid

    def _take_tidying(self) -> None:
        """The tree has gone, and what it left is being removed, which may take its time."""
        self.tidying, self.killing = True, False
        self.deadline = time.monotonic() + CHECK_AFTER
        if self._exchange is not None:
            self._exchange.deadline = None

    def _take_ended(self, message: messages.Message) -> None:
        item, self.item = self.item, None
        exchange, self._exchange = self._exchange, None
        fields = message.fields
        if item is None or exchange is None:
            message.close()
            return
        if fields.get("unstarted"):
            exchange.close()
            self._become_idle(fields["next_generation"])  # the child after it is there already
            self._keeper.requeue(item, self)
            return
        exchange.read_rest()
        ending = Ending(fields, exchange.outcome, exchange.trouble, _output_of(message))
        self.state, self.deadline = "starting", None
        if fields.get("kept"):
            self._take_kept(exchange)
        else:
            exchange.close()
        self._keeper.finished(self, item, ending)

    def _take_kept(self, exchange: Exchange) -> None:
        """The process of the task serves the next one as well, if all is well on its stream."""
        if exchange.trouble:
            exchange.close()
            self.failure = exchange.trouble
            self.kill_supervisor()
            return
        self._stream = exchange.let_go()
        self._become_idle(self._generation + 1)

    def _become_idle(self, generation: int) -> None:
        """A child waits for the call of this number."""
        self._generation = generation
        if self.state != "idle":  # else another child of its waits from now on
            self.state, self.deadline, self.idle_since = "idle", None, time.monotonic()

    # -- the end ---------------------------------------------------------------------------------

    def due(self, now: float) -> bool:
        """Whether a deadline of this state has passed: the caller says what follows from it."""
        deadline = self.next_deadline
        return deadline is not None and now >= deadline

    @property
    def next_deadline(self) -> float | None:
        """The deadline of the state, or of the transfer if that is earlier."""
        transfer = None if self._exchange is None else self._exchange.deadline
        times = [moment for moment in (self.deadline, transfer) if moment is not None]
        return min(times, default=None)

    @property
    def stale_at(self) -> float:
        """When it is to be replaced, if it has worked and is idle."""
        return max(self.idle_since, self.refreshed_at) + self.rest

    def lingers_until(self, linger: float | None) -> float | None:
        """When an idle slot is given up, `linger` seconds after its last task."""
        return None if linger is None or self.state != "idle" else self.idle_since + linger

    def end_transfer(self, now: float) -> bool:
        """Have the task ended if it does not deliver; False when that is not what is due."""
        exchange = self._exchange
        if exchange is None or exchange.deadline is None or now < exchange.deadline:
            return False
        if exchange.give_time(now):
            return True
        exchange.deadline = None
        self.kill("transfer")
        return True

    def kill_supervisor(self) -> None:
        """End a supervisor that does not do its work, stopped by somebody perhaps.

        Its host adopts what it leaves, ends that, and says so.
        """
        self.deadline = time.monotonic() + self._patience
        if self._supervisor is not None and not self._given_up:
            with contextlib.suppress(ProcessLookupError):
                pidfd.send_signal(self._supervisor, signal.SIGKILL)
        else:
            self.host.kill()  # that does not hear of it either
        self._given_up = True

    @property
    def told_so_far(self) -> dict[str, Any]:
        """What is known of a task whose supervisor has gone without a word."""
        return {"stage": "running", "pid": self._pid}

    def _lose(self) -> None:
        """The supervisor has gone without a word; its host will say when the tree is gone too."""
        self.state, self.deadline = "lost", time.monotonic() + self._patience
        self._close_lines()
        self._keeper.lost(self)

    def close(self) -> None:
        """Let the supervisor go; it ends what it has."""
        self.state, self.deadline = "closed", None
        self._close_lines()

    def _close_lines(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
        if self._stream is not None:
            self._stream.close()
        self._exchange = self._stream = None
        if self._supervisor is not None:
            os.close(self._supervisor)
            self._supervisor = None
        if self._control.fileno() >= 0:
            self._reactor.ignore(self._control.fileno())
            self._control.close()


def _output_of(message: messages.Message) -> tuple[str, str] | None:
    """The captured output, which came in a memory file; None where there was none to capture."""
    sizes = message.fields.get("output")
    if sizes is None:
        return None
    if not message.descriptors:
        return "", "[output lost: no descriptor was free to receive it]"
    try:
        with open(message.descriptors[0], "rb") as file:
            file.seek(0)
            out, err = (file.read(size).decode(errors="replace") for size in sizes)
    except MemoryError:
        return "", "[output lost: no memory was free to receive it]"
    return out, err
