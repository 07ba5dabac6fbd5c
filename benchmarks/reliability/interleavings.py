"""Orders of events, drawn by Hypothesis, against small models of both ends of the protocol.

`WatchModel` drives what a supervisor decides, and the verdict on it; `SlotModel` the caller's end
of a slot, with a supervisor played by the test. Neither starts a process.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from benchmarks.reliability.check import Check, Found
from pynisher_exec.caller.future import LimitedFuture
from pynisher_exec.caller.item import Item
from pynisher_exec.caller.launch import Host
from pynisher_exec.caller.reactor import Reactor, control_line
from pynisher_exec.caller.slot import Slot
from pynisher_exec.limits import Limits
from pynisher_exec.protocol import messages
from pynisher_exec.protocol.frames import FrameWriter
from pynisher_exec.supervisor.state import STAGES, Kill, Reading, Soft, Watch
from pynisher_exec.task.run import Call
from pynisher_exec.verdict import Evidence, judge

if TYPE_CHECKING:
    from pynisher_exec.caller.account import Ending

__all__ = ["CHECKS", "SlotModel", "WatchModel"]

NOBODY = (1 << 31) - 1
"""No process has this pid (proc(5), pid_max)."""

limits = st.builds(
    Limits,
    memory=st.none() | st.just(100 << 20),
    cpu_time=st.none() | st.just(5.0),
    wall_time=st.none() | st.just(10.0),
    processes=st.none() | st.integers(0, 2),
    startup_time=st.none() | st.just(3.0),
)
readings = st.builds(
    Reading,
    st.sampled_from([0.0, 4.9, 5.0, 7.0]),
    st.sampled_from([0, 100 << 20, (100 << 20) + 1]),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.01]),
)
spans = st.sampled_from([0.0, 0.001, 0.5, 2.0, 3.0, 10.0, 1e6])
"""Seconds; the last as when the machine has slept."""

words = st.sampled_from(["value", "exception", "os_error", "memory", "exit", "cpu_time"])


class WatchModel(RuleBasedStateMachine):
    """One task under watch. The model keeps only what had happened when, and what was passed."""

    runs = 0

    @initialize(limits=limits, grace=st.none() | st.just(2.0), gated=st.booleans())
    def start(self, limits: Limits, grace: float | None, *, gated: bool) -> None:
        """The supervisor sends START."""
        if limits.cpu_time is None and limits.wall_time is None:
            grace = None
        self.limits = limits.changed(grace_period=grace)
        self.now = 100.0
        self.watch = Watch(self.limits, cores=2, now=self.now, counts_processes=not gated)
        self.passed: set[str] = set()
        self.kills: list[str] = []
        self.softs: list[str] = []
        self.asked = False
        self.said: str | None = None
        self.said_stage = 0
        self.entered = self.now
        self.began: float | None = None
        self.over = 0

    # -- what happens --------------------------------------------------------------------------

    @rule(kind=st.sampled_from([*STAGES[1:], "nonsense"]), outcome=words, stamped=st.booleans())
    def say(self, kind: str, outcome: str, *, stamped: bool) -> None:
        """The task says how far it is, in any order, with or without the time of it."""
        fields: dict[str, Any] = {"outcome": outcome, "what": "thing"}
        if stamped:
            fields["at"] = self.now
        before = self.watch.stage
        self.watch.told(kind, fields, self.now)
        advanced = self.watch.stage != before
        if advanced:
            assert STAGES.index(kind) > STAGES.index(before)
            assert self.watch.stage == kind
            self.entered = self.now
            if kind == "running":
                self.began = self.now
            if kind == "returned":
                self.said = outcome
        elif kind in STAGES and not self.kills and not self.asked:
            early = kind == "outcome" and self.began is None  # no clock would have run
            assert early or STAGES.index(kind) <= STAGES.index(before)
        if kind == "returned" and advanced and self._is_late(stamped=stamped):
            self.passed.add("wall_time")
            self.said = "wall_time"

    def _is_late(self, *, stamped: bool) -> bool:
        wall = self.limits.wall_time
        if wall is None or self.began is None or self.limits.grace_period is not None:
            return False
        return stamped and self.now - self.began >= wall

    @rule(span=spans)
    def wait(self, span: float) -> None:
        """Time passes; the loop looks at its clock."""
        self.now += span
        self._tick()

    @rule()
    def wait_until_due(self) -> None:
        """What is due is done, or is due later: a loop that sleeps until then never spins."""
        due = self.watch.deadline()
        if due is None:
            assert self._nothing_can_be_due()
            return
        self.now = max(self.now, due)
        if self.watch.look_due(self.now):
            self._read(self.watch.last)
        self._tick()
        later = self.watch.deadline()
        assert self.watch.killed is not None or later is None or later > self.now

    @rule(reading=readings)
    def look(self, reading: Reading) -> None:
        """A reading comes, whether it was due or not."""
        self._read(reading)

    @rule()
    def ask(self) -> None:
        """The caller cancels."""
        assert self.watch.asked("cancelled", self.now) == Kill("cancelled")
        self.asked = True

    # -- what must be --------------------------------------------------------------------------

    def _clocks_run(self) -> bool:
        running = self.watch.stage in ("running", "outcome")
        return running and not self.kills and not self.asked

    def _read(self, reading: Reading) -> None:
        if self._clocks_run():
            self._note(reading)
        self._take(self.watch.read(reading, self.now))

    def _note(self, reading: Reading) -> None:
        bounds = self.limits
        if bounds.memory is not None and reading.memory > bounds.memory:
            self.passed.add("memory")
        if bounds.cpu_time is not None and reading.cpu_time >= bounds.cpu_time:
            self.passed.add("cpu_time")
        if bounds.processes is not None and self.watch.counts_processes:
            self.over = self.over + 1 if reading.processes > bounds.processes else 0
            if self.over > 1:
                self.passed.add("processes")

    def _tick(self) -> None:
        if self._clocks_run() and self._is_over(self.began, self.limits.wall_time):
            self.passed.add("wall_time")
        starting = self.watch.stage in ("waiting", "loading") and not (self.kills or self.asked)
        if starting and self._is_over(self.entered, self.limits.startup_time):
            self.passed.add("startup_time")
        self._take(self.watch.tick(self.now))
        if "startup_time" in self.passed and starting:
            assert self.kills == ["startup_time"]

    def _is_over(self, since: float | None, limit: float | None) -> bool:
        return since is not None and limit is not None and self.now - since >= limit

    def _take(self, action: Soft | Kill | None) -> None:
        if action is None:
            return
        assert not self.asked
        assert not self.kills
        if isinstance(action, Soft):
            assert action.limit in self.passed
            assert self.limits.grace_period is not None
            assert not self.softs
            self.softs.append(action.limit)
        else:
            assert action.reason == "transfer" or action.reason in self.passed
            self.kills.append(action.reason)
            self.asked = action.reason == "transfer"

    def _nothing_can_be_due(self) -> bool:
        """Whether only an event can change anything: every clock that could run has no limit."""
        if self.kills or self.asked or self.watch.stage == "returned":
            return True
        if self.watch.stage in ("waiting", "loading"):
            return self.limits.startup_time is None
        return self.limits.wall_time is None and self.began is None

    def teardown(self) -> None:
        """The task ends now, as whatever was done to it says: there is one verdict, and it fits."""
        type(self).runs += 1
        killed = self.watch.killed is not None
        evidence = Evidence(
            self.watch.stage,
            wait_status=9 if killed else 0,
            killed=self.watch.killed,
            struck=killed,
            returned=self.watch.returned,
            limit_reached=self.watch.limit_reached,
        )
        for delivered in (True, False):
            self._check(judge(evidence, delivered=delivered).status.value, delivered=delivered)

    def _check(self, status: str, *, delivered: bool) -> None:
        if self.watch.killed == "cancelled":
            assert status == "cancelled"
        elif self.said is not None and delivered:
            assert status == _status_of(self.said)
        elif self.said is not None:
            assert status == "transfer" or status in map(_status_of, self.passed)
        elif self.watch.stage == "outcome":
            assert status == "exception"
        elif self.kills:
            assert status == _status_of(self.kills[0])
        elif self.watch.stage in ("waiting", "loading"):
            assert status == "startup"
        else:
            assert status == "exit"


def _status_of(reason: str) -> str:
    return {"value": "ok", "startup_time": "startup"}.get(reason, reason)


class SlotModel(RuleBasedStateMachine):
    """The caller's end of one slot; the supervisor's end, and the task's, are in our hands."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.reactor = Reactor()
        line, self.template = control_line()
        self.host = _Host(line)
        self.slot = Slot(1, self.host, (), self.reactor, self, 5.0, time.monotonic() + 5)
        self.slot.open({})
        message = messages.receive(self.template)
        assert message is not None
        self.supervisor = socket.socket(fileno=message.descriptors[0])
        self.task: socket.socket | None = None
        self.generation = 0
        self.owed: list[Item] = []
        self.answers: list[str] = []
        self.given = 0
        self.forked_since = False

    # -- what the slot tells its keeper --------------------------------------------------------

    def finished(self, slot: Slot, item: Item, ending: Ending) -> None:
        """The task's tree has gone."""
        self._answer(item, "finished")
        assert slot.item is None
        assert ending.outcome is None or [bytes(each) for each in ending.outcome] == [b"whole"]

    def requeue(self, item: Item, slot: Slot | None = None) -> None:
        """The call never began."""
        assert slot is self.slot
        self._answer(item, "requeue")

    def lost(self, slot: Slot) -> None:
        """The supervisor has gone: what the slot had is still its item."""
        if slot.item is not None:
            self._answer(slot.item, "lost")

    def _answer(self, item: Item, what: str) -> None:
        assert self.owed == [item]
        self.owed.clear()
        self.answers.append(what)

    # -- what the supervisor and the task do ---------------------------------------------------

    @property
    def _open(self) -> bool:
        return self.slot.state not in ("closed", "lost")

    @property
    def _near_is_open(self) -> bool:
        return self._open and self.supervisor.fileno() >= 0

    def _say(self, kind: str, descriptors: tuple[int, ...] = (), **fields: Any) -> None:
        with contextlib.suppress(OSError):
            messages.send(self.supervisor, kind, descriptors, **fields)
        self.reactor.turn(time.monotonic())

    @precondition(lambda self: self._near_is_open)
    @rule(with_stream=st.booleans())
    def fork(self, *, with_stream: bool) -> None:
        """A child waits."""
        if self.task is not None:
            self.task.close()
        mine, its = socket.socketpair()
        self.task = mine
        self.generation += 1
        self.forked_since = self.slot.state == "busy"
        streams = (its.fileno(),) if with_stream else ()
        self._say("ready", streams, generation=self.generation, pid=NOBODY, supervisor=NOBODY)
        its.close()

    @precondition(lambda self: self.slot.state == "idle")
    @rule()
    def give(self) -> None:
        """The caller has a task for it."""
        item = Item(LimitedFuture(), Call(abs, (-1,), {}), Limits(wall_time=5.0))
        self.owed.append(item)
        self.given += 1
        self.forked_since = False
        self.slot.run(item, [b"call"])

    @precondition(lambda self: self._near_is_open)
    @rule(stale=st.booleans())
    def return_(self, *, stale: bool) -> None:
        """The supervisor asks that the outcome be read."""
        self._say("returned", generation=self.generation - stale)

    @precondition(lambda self: self.task is not None and self._open)
    @rule(data=st.sampled_from(["whole", "half", "garbage"]))
    def write(self, data: str) -> None:
        """The task sends an outcome, or something else."""
        if self.task is None or self.task.fileno() < 0:
            return
        self.task.setblocking(False)
        with contextlib.suppress(OSError):
            if data == "whole":
                FrameWriter([b"whole"]).write(self.task)
            else:
                self.task.send(b"PXF1" if data == "half" else b"nonsense")
        self.reactor.turn(time.monotonic())

    @precondition(lambda self: self._near_is_open)
    @rule(unstarted=st.booleans(), survivors=st.lists(st.just(NOBODY), max_size=1))
    def end(self, *, unstarted: bool, survivors: list[int]) -> None:
        """The tree has gone: the supervisor tells so, at any moment."""
        if self.task is not None:
            self.task.close()
        fields: dict[str, Any] = {"generation": self.generation, "survivors": survivors}
        if unstarted and self.forked_since:  # it says so of a child before the one that waits
            fields.update(unstarted=True, next_generation=self.generation)
        self._say("ended", **fields)

    @precondition(lambda self: self._near_is_open)
    @rule(kind=st.sampled_from(["failed", "nonsense"]))
    def babble(self, kind: str) -> None:
        """The supervisor fails, or the line has been tampered with."""
        self._say(kind)

    @rule()
    def die(self) -> None:
        """The supervisor dies."""
        self.supervisor.close()
        self.reactor.turn(time.monotonic())

    @precondition(lambda self: self._open)
    @rule()
    def kill(self) -> None:
        """The caller cancels what runs."""
        if self.slot.item is not None:
            self.slot.kill("cancelled")
            assert self.slot.next_deadline is not None

    @precondition(lambda self: self._open)
    @rule()
    def wait(self) -> None:
        """All deadlines pass: none is due twice for the same."""
        late = time.monotonic() + 1e6
        if self.slot.due(late) and not self.slot.end_transfer(late):
            self.slot.deadline = None
            self.slot.kill_supervisor()
            assert self.host.killed
        if self.slot.killing and self.slot.item is not None:
            assert self.slot.next_deadline is not None  # somebody will look again

    def teardown(self) -> None:
        """Whatever the order was: once the line has ended, each task has had one answer."""
        self.supervisor.close()
        if self._open:
            self.reactor.turn(time.monotonic())
            self.slot.close()
        assert self.owed == []
        for each in (self.task, self.template, self.host.line):
            if each is not None:
                each.close()
        self.reactor.close()
        assert len(self.answers) == self.given
        type(self).runs += 1


class _Host(Host):
    """A template that only notes that it was killed."""

    def __init__(self, line: socket.socket) -> None:
        super().__init__(os.getpid(), -1, line)
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    @property
    def ended(self) -> bool:
        return self.killed


def interleavings(count: int) -> Found:
    """Row 24."""
    failures = []
    plan = settings(
        max_examples=count,
        stateful_step_count=40,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    ran = 0
    for model in (WatchModel, SlotModel):
        model.runs = 0
        try:
            run_state_machine_as_test(model, settings=plan)
        except Exception as error:  # noqa: BLE001 - whatever comes is what is looked for
            failures.append(f"{model.__name__}: {''.join(traceback.format_exception(error))}")
        ran += model.runs
    return Found(ran, failures, f"{ran} orders of up to 40 events")


CHECKS = (
    Check(
        24,
        "each task gets exactly one verdict that fits, and no state waits for ever",
        "orders of events against models of both ends of the protocol",
        interleavings,
        100_000,
        500,
    ),
)
