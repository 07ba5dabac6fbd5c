"""The watch over one task, from its START to ENDED: the I/O around `state.Watch`.

Whatever ends the watch, everything below this process is killed and reaped to ECHILD before the
caller is told.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from pynisher_exec.kernel import pidfd
from pynisher_exec.limits import Limits
from pynisher_exec.protocol import messages
from pynisher_exec.supervisor import kill, memory, output
from pynisher_exec.supervisor.gate import Gate
from pynisher_exec.supervisor.state import Kill, Reading, Soft, Watch

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from pynisher_exec.supervisor.child import Child
    from pynisher_exec.supervisor.options import SlotOptions

__all__ = ["CallerGone", "Watching"]

LARGE_OUTCOME = 1 << 16
"""Bytes: above this the socket may not hold the outcome, so the caller must read meanwhile."""

LINGER = 0.2
"""Seconds after RETURNED at which the caller is asked to read, whatever the outcome's size."""


class CallerGone(Exception):  # noqa: N818  (a signal, not an error)
    """The caller has died or let go of the line."""


class Watching:
    """The watch over one task, from START to ENDED."""

    def __init__(
        self,
        control: socket.socket,
        caller: int,
        child: Child,
        start: dict[str, Any],
        options: SlotOptions,
    ) -> None:
        self._control = control
        self._caller = caller
        self._child = child
        self._options = options
        self._generation = start["generation"]
        self._limits = Limits(**start["limits"])
        self._watch = Watch(self._limits, os.cpu_count() or 1, time.monotonic())
        self._gauge = memory.MemoryGauge(0)
        self._gate: Gate | None = None
        self._cpu_before = 0.0
        self._peak_memory = self._peak_processes = 0
        self._mechanisms: dict[str, str] = {}
        self._wall: tuple[float, float | None] | None = None
        self._started_at: float | None = None
        self._status: int | None = None
        self._high_water = self._resident_before = 0
        self._read_at: float | None = None
        self._streams: list[output.Stream] = []
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._begin(start["capture"])

    def _begin(self, capture: int) -> None:
        child = self._child
        if capture:
            self._streams = [output.Stream(pipe, capture) for pipe in child.pipes]
            for stream in self._streams:
                self._listen(stream.fileno(), partial(self._drain, stream))
        self._listen(self._control.fileno(), self._hear_caller)
        self._listen(self._caller, self._caller_died)
        self._listen(child.line.fileno(), self._hear_task)
        self._listen(child.pidfd, lambda: None)

    def _listen(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.POLLIN)

    def _ignore(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    # -- the loop ------------------------------------------------------------------------------

    def see_through(self) -> bool:
        """Watch until the child has ended, end what is left, account; False when it is stuck."""
        while self._watch.killed is None:
            ready = [descriptor for descriptor, _ in self._poll.poll(self._timeout())]
            for descriptor in ready:
                handler = self._handlers.get(descriptor)
                if handler is not None:
                    handler()
            if self._child.pidfd in ready:
                break
            self._act()
        return self._conclude()

    def _timeout(self) -> float | None:
        """Milliseconds until something is due; poll(2) rounds up, so nothing happens early."""
        due = [self._watch.deadline(), self._read_at]
        if self._gate is not None and self._gate.pending is not None:
            due.append(time.monotonic() + self._gate.pending)
        times = [moment for moment in due if moment is not None]
        return max(0.0, min(times) - time.monotonic()) * 1000 if times else None

    def _act(self) -> None:
        """What is due by the clock: a look, a waiting fork, a limit."""
        now = time.monotonic()
        if self._gate is not None and self._gate.pending is not None:
            self._gate.review()
        if self._watch.look_due(now):
            self._perform(self._watch.read(self._look(), now))
        self._perform(self._watch.tick(now))
        if self._read_at is not None and now >= self._read_at:
            self._ask_to_read()

    def _look(self) -> Reading:
        """Take a reading; only limits that are set are worth one."""
        began = time.monotonic()
        pids = memory.tree()
        held = self._gauge.read(pids, self._limits.memory)
        self._peak_memory = max(self._peak_memory, held)
        used = self._child.clock.read() - self._cpu_before
        others = max(0, len(pids) - 1)
        self._peak_processes = max(self._peak_processes, others)
        return Reading(used, held, others, time.monotonic() - began)

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
            self._watch.asked(message.fields["reason"])

    def _hear_task(self) -> None:
        """Take all that the task has said. Its end of this line is in the function's hands."""
        while True:
            try:
                message = messages.receive(self._child.line)
            except BlockingIOError:
                return
            if message is None:
                self._ignore(self._child.line.fileno())
                return
            self._take(message)

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
        fields = message.fields
        at = float(fields["at"])
        self._watch.told("running", fields, at)
        self._wall = (at, None)
        self._started_at = time.time() - (time.monotonic() - at)
        self._cpu_before = float(fields["cpu_time"])
        if self._limits.address_space is None and not self._limits.from_zero:
            self._gauge = memory.MemoryGauge(int(fields["held"]))
            self._resident_before = int(fields["resident"])
        self._mechanisms = dict(fields["mechanisms"])
        if message.descriptors and self._limits.processes is not None:
            self._gate = Gate(message.descriptors[0], self._limits.processes, self._child.pid)
            self._listen(self._gate.fileno(), self._serve_gate)
        self._watch.counts_processes = self._gate is None

    def _take_returned(self) -> None:
        fields = self._watch.returned or {}
        at = fields.get("at")
        if self._wall is not None and isinstance(at, float):
            self._wall = (self._wall[0], max(at, self._wall[0]))
        if fields.get("size", 0) > LARGE_OUTCOME:
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
        if self._watch.killed == "wall_time":
            # The exit code then says -15 where nothing handles SIGTERM, as pynisher's did.
            with contextlib.suppress(ProcessLookupError):
                pidfd.send_signal(self._child.pidfd, signal.SIGTERM)
        survivors = kill.end_tree(self._note_status, self._options.kill_timeout)
        self._hear_task()
        if self._wall is not None and self._wall[1] is None:
            self._wall = (self._wall[0], ended_at)
        self._send_ended(survivors)
        if survivors:
            self._wait_for_the_stuck()
        if self._gate is not None:
            self._gate.close()
        self._child.close()
        return not survivors

    def _note_status(self, pid: int, status: int, high_water: int) -> None:
        if pid == self._child.pid:
            self._status = status
            self._high_water = high_water

    def _wait_for_the_stuck(self) -> None:
        """The caller has replaced this slot; what the kernel frees late must still be reaped."""
        while kill.end_tree(self._note_status, self._options.kill_timeout):
            if select.select([self._caller], [], [], 0)[0]:
                return

    def _send_ended(self, survivors: list[int]) -> None:
        returned = self._watch.returned
        fields = {
            "generation": self._generation,
            "stage": self._watch.stage,
            "wait_status": self._status,
            "killed": self._watch.killed,
            "returned": returned,
            "limit_reached": self._watch.limit_reached,
            "what": self._watch.what,
            "survivors": survivors[:100],
            "used": self._watch.used,
            "mechanisms": {**self._mechanisms, **self._own_mechanisms()},
            "started_at": self._started_at,
            "pid": self._child.pid,
            **self._usage(),
        }
        self._send_with_output(fields)

    def _own_mechanisms(self) -> dict[str, str]:
        own = {"wall_time": "supervisor deadline", "grace_period": "supervisor deadline"}
        own |= {"cpu_time": self._child.clock.mechanism, "startup_time": "supervisor deadline"}
        return own

    def _usage(self) -> dict[str, Any]:
        """The final figures: the tree is gone, so they do not change any more."""
        refused = peak = 0
        if self._gate is not None:
            refused, peak = self._gate.refused, self._gate.peak
        said = self._watch.returned or {}
        began, ended = self._wall or (0.0, 0.0)
        largest = self._gauge.largest
        return {
            "refused_forks": refused,
            "wall_time": (ended or began) - began,
            "cpu_time": max(0.0, self._child.clock.read() - self._cpu_before)
            if self._wall
            else 0.0,
            "peak_memory": self._peak_of(said),
            "peak_processes": max(self._peak_processes, peak),
            "detail": f"most of it by {largest.name}, pid {largest.pid}" if largest else "",
        }

    def _peak_of(self, said: dict[str, Any]) -> int:
        """The largest sample, or the high water that the task told itself.

        Where a task ended untold before the first sample, getrusage(2) has its high water, file
        pages included.
        """
        peak = max(self._peak_memory, int(said.get("peak") or 0))
        return peak or max(0, self._high_water - self._resident_before)

    def _send_with_output(self, fields: dict[str, Any]) -> None:
        if not self._streams:
            messages.send(self._control, "ended", **fields)
            return
        for stream in self._streams:
            stream.drain_all()
        contents = [stream.content() for stream in self._streams]
        file = output.to_memory_file(contents)
        try:
            sizes = [len(content) for content in contents]
            messages.send(self._control, "ended", (file,), output=sizes, **fields)
        finally:
            os.close(file)
