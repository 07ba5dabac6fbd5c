"""The caller's end of a slot, in any order of events; the other end is played by the model."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
)

from pynisher_exec.caller.future import LimitedFuture
from pynisher_exec.caller.item import Item
from pynisher_exec.caller.launch import Host
from pynisher_exec.caller.reactor import Reactor, control_line
from pynisher_exec.caller.slot import Slot
from pynisher_exec.limits import Limits
from pynisher_exec.protocol import messages
from pynisher_exec.protocol.frames import FrameWriter
from pynisher_exec.task.run import Call

if TYPE_CHECKING:
    from pynisher_exec.caller.account import Ending

__all__ = ["SlotModel"]

NOBODY = (1 << 31) - 1
"""No process has this pid (proc(5), pid_max)."""


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
    @rule()
    def tidy(self) -> None:
        """The tree has gone, and its temporary directory is being removed."""
        self._say("tidying", generation=self.generation)

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
        if self.slot.killing and self.slot.item is not None and not self.slot.tidying:
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
