"""The caller's end of a slot, in any order of events; all other ends are played by the model."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from pynisher_exec.caller import exchange
from pynisher_exec.caller.copying import Fetch
from pynisher_exec.caller.exchange import TRANSFER_TIME
from pynisher_exec.caller.future import LimitedFuture
from pynisher_exec.caller.inbox import Inbox, PoolOptions
from pynisher_exec.caller.item import Item
from pynisher_exec.caller.launch import Host
from pynisher_exec.caller.monitor import Monitor
from pynisher_exec.caller.reactor import Reactor, control_line
from pynisher_exec.caller.slot import CHECK_EVERY, Slot
from pynisher_exec.kernel import memory_copy
from pynisher_exec.limits import Limits
from pynisher_exec.protocol import messages
from pynisher_exec.protocol.frames import TAKEN, FrameWriter, Left
from pynisher_exec.report import Status
from pynisher_exec.task.run import Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynisher_exec.caller.account import Ending

__all__ = ["SlotModel"]

NOBODY = (1 << 31) - 1
"""No process has this pid (proc(5), pid_max)."""

PATIENCE = 5.0
LONGEST = max(TRANSFER_TIME, CHECK_EVERY, PATIENCE) + 1
"""Seconds from now that no deadline may lie behind: what these tasks claim is copied in one."""

MOST_DEADLINES = 5
"""Until what does not deliver is over: the transfer's, the kill's, the supervisor's, the host's."""

COPIED_WITHIN = 20
NOTHING = [""] * 5
"""What is drawn more often than what ends the slot, so that most orders come to more than that."""

WHOLE = bytearray(b"whole")
STAYED = Left(len(WHOLE), memory_copy.address_of(WHOLE))
NOWHERE = Left(len(WHOLE), 1 << 46)
ADDRESSES = [[struct.pack("!Q", each.address)] for each in (STAYED, NOWHERE)]


class SlotModel(RuleBasedStateMachine):
    """The caller's end of one slot; supervisor, template and task are in our hands.

    The task's pid is ours, so that what stayed in its memory can be copied.
    """

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.held = mock.patch.object(exchange, "Fetch", _HeldFetch)
        self.held.start()
        self.reactor = Reactor()
        self.monitor = _Monitor(self.reactor, self)
        line, self.template = control_line()
        self.host = _Host(line)
        self.monitor.take_in(self.host)
        self.now = time.monotonic()
        self.slot = Slot(1, self.host, (), self.reactor, self.monitor, PATIENCE, self.now + 5)
        self.slot.open(PoolOptions(1))
        self.monitor.take_in(self.slot)
        message = messages.receive(self.template)
        assert message is not None
        self.supervisor = socket.socket(fileno=message.descriptors[0])
        self.task: socket.socket | None = None
        self.generation = 0
        self.owed: list[Item] = []
        self.answers: list[str] = []
        self.given = 0
        self.forked_since = False
        self.asked_to_read = self.said_taken = False
        self.frames = 0
        self.reasons: set[str] = set()
        """For which answers something has happened since the task was given."""

    @initialize(steps=st.integers(0, 4), data=st.sampled_from(["stayed", "nowhere"]))
    def come_up(self, steps: int, data: str) -> None:
        """Most orders begin with what is needed for anything to happen."""
        come: list[Callable[[], object]] = [
            lambda: self.fork(with_stream=True),
            self.give,
            self._return,
            lambda: self.write(data),
        ]
        for step in come[:steps]:
            step()

    def answer(self, item: Item, what: str) -> None:
        """A task has its verdict, or goes back to the queue: for a reason."""
        assert self.owed == [item]
        assert what in self.reasons
        self.owed.clear()
        self.answers.append(what)

    # -- what the supervisor and the task do ---------------------------------------------------

    @property
    def _open(self) -> bool:
        return self.slot.state not in ("closed", "lost")

    @property
    def _near_is_open(self) -> bool:
        return self._open and self.supervisor.fileno() >= 0

    def _turn(self) -> None:
        self.reactor.turn(time.monotonic())

    def _say(self, kind: str, descriptors: tuple[int, ...] = (), **fields: Any) -> None:
        with contextlib.suppress(OSError):
            messages.send(self.supervisor, kind, descriptors, **fields)
        self._turn()

    @precondition(lambda self: self._near_is_open)
    @rule(with_stream=st.sampled_from([True, True, True, True, False]))
    def fork(self, *, with_stream: bool) -> None:
        """A child waits."""
        if self.task is not None:
            self.task.close()
        mine, its = socket.socketpair()
        self.task = mine
        self.generation += 1
        self.forked_since = self.slot.state == "busy"
        streams = (its.fileno(),) if with_stream else ()
        if not with_stream:  # the caller had no descriptor left for it, and gives the slot up
            self.reasons.add("lost")
        self._say("ready", streams, generation=self.generation, pid=os.getpid(), supervisor=NOBODY)
        its.close()

    @precondition(lambda self: self.slot.state == "idle")
    @rule()
    def give(self) -> None:
        """The caller has a task for it."""
        item = Item(LimitedFuture(), Call(abs, (-1,), {}), Limits(wall_time=5.0))
        self.owed.append(item)
        self.given += 1
        self.forked_since = self.asked_to_read = self.said_taken = False
        self.frames = 0
        self.reasons.clear()
        self.slot.run(item, [b"call"])

    @precondition(lambda self: self._near_is_open)
    @rule(stale=st.booleans())
    def return_(self, *, stale: bool) -> None:
        """The supervisor asks that the outcome be read: once for a task."""
        self._return(stale=stale or self.asked_to_read)

    def _return(self, *, stale: bool = False) -> None:
        self.asked_to_read |= self.slot.state == "busy" and not stale and not self.forked_since
        self._say("returned", generation=self.generation - stale)

    @precondition(lambda self: self.task is not None and self._open)
    @rule(data=st.sampled_from(["whole", "half", "garbage", "stayed", "nowhere", "word"]))
    def write(self, data: str) -> None:
        """The task sends an outcome, or where it lies, or something else."""
        if self.task is None or self.task.fileno() < 0:
            return
        self.task.setblocking(False)
        frames: dict[str, bytes | Left] = {"whole": b"whole", "stayed": STAYED, "nowhere": NOWHERE}
        others = {"half": b"PXF1", "garbage": b"nonsense", "word": TAKEN}
        self.said_taken |= data == "word"
        with contextlib.suppress(OSError):
            if data in frames:
                self.frames += 1
                FrameWriter([frames[data]]).write(self.task)
            else:
                self.task.send(others[data])
        self._turn()

    @precondition(lambda self: self._fetches)
    @rule()
    def copy(self) -> None:
        """The thread that copies comes to its end, whether or not there was anything."""
        self.slot._exchange._fetch.go.set()  # type: ignore[union-attr]  # noqa: SLF001
        end = time.monotonic() + COPIED_WITHIN
        while self._fetches:
            assert time.monotonic() < end
            self.reactor.turn(time.monotonic() + 0.1)

    @property
    def _fetches(self) -> bool:
        stream = self.slot._exchange  # noqa: SLF001 - no event tells it
        return stream is not None and stream._fetch is not None  # noqa: SLF001

    @precondition(lambda self: self._near_is_open)
    @rule(unstarted=st.booleans(), survivors=st.lists(st.just(NOBODY), max_size=1))
    def end(self, *, unstarted: bool, survivors: list[int]) -> None:
        """The tree has gone: the supervisor tells so, at any moment."""
        if self.task is not None:
            self.task.close()
        fields: dict[str, Any] = {"generation": self.generation, "survivors": survivors}
        if unstarted and self.forked_since:  # it says so of a child before the one that waits
            fields.update(unstarted=True, next_generation=self.generation)
        self.reasons.add("requeue" if "unstarted" in fields else "finished")
        self._say("ended", **fields)

    @precondition(lambda self: self._near_is_open)
    @rule()
    def tidy(self) -> None:
        """The tree has gone, and its temporary directory is being removed."""
        self._say("tidying", generation=self.generation)

    @precondition(lambda self: self._near_is_open)
    @rule(kind=st.sampled_from([*NOTHING, "failed", "nonsense"]))
    def babble(self, kind: str) -> None:
        """The supervisor fails, or the line has been tampered with."""
        if not kind:
            return
        self.reasons.add("lost")
        self._say(kind)

    @rule(what=st.sampled_from([*NOTHING, "supervisor", "both", "template"]))
    def lose(self, what: str) -> None:
        """The supervisor dies, and the template may tell so; or that one dies, alone."""
        if not what:
            return
        self.reasons.add("lost")
        if what == "template":
            self.host.kill()
        else:
            self.supervisor.close()
        if what == "both" and not self.host.ended:
            with contextlib.suppress(OSError):  # the last slot there has gone, and its line
                messages.send(self.template, "gone", slot=1, survivors=[], error="")
        self._turn()

    @precondition(lambda self: self._open)
    @rule(how=st.sampled_from(["kill", "gently"]))
    def cancel(self, how: str) -> None:
        """The caller cancels what runs."""
        if self.slot.item is not None:
            self.monitor._end(self.slot, self.slot.item, how)  # noqa: SLF001 - as `_obey` does

    @rule()
    def wait(self) -> None:
        """The next deadline passes."""
        due = self.slot.next_deadline
        if due is not None:
            self.reasons.add("lost")  # it may give the supervisor up
            self.now = max(self.now, due)
            self.monitor._pass_deadline(self.slot, self.now)  # noqa: SLF001 - as it does when late
            self._turn()

    @precondition(lambda self: self._must_end)
    @rule(who=st.sampled_from([*NOTHING, "all"]))
    def be_silent(self, who: str) -> None:
        """Nobody does anything any more: the deadlines alone bring it to an end."""
        if not who:
            return
        for _ in range(MOST_DEADLINES):
            self.wait()
            if self.host.ended:  # nobody is there to be ended but a supervisor, whose line ends
                self.lose("supervisor")
        assert self.slot.state == "closed"

    # -- what must be --------------------------------------------------------------------------

    @property
    def _must_end(self) -> bool:
        """Whether it may not last: all but a task that runs, and what is left being removed."""
        busy = self.slot.state == "busy"
        reading = self.asked_to_read and not self.slot.tidying
        return (busy and (reading or self.slot.killing)) or self.slot.state in ("starting", "lost")

    @invariant()
    def somebody_will_look(self) -> None:
        """Each state but those that wait for a call, or for nothing, has a deadline that comes."""
        if self.slot.state in ("idle", "closed"):
            return
        due = self.slot.next_deadline
        assert due is not None, self.slot.state
        assert due <= max(self.now, time.monotonic()) + LONGEST, self.slot.state

    def teardown(self) -> None:
        """Whatever the order was: once both lines have ended, each task has had one answer."""
        self.held.stop()
        self.lose("supervisor")
        self.lose("template")
        if self.slot.state == "idle":
            self.slot.close()
        assert self.slot.state == "closed"
        assert self.owed == []
        for each in (self.task, self.template):
            if each is not None:
                each.close()
        self.monitor.release()
        assert len(self.answers) == self.given
        type(self).runs += 1


class _Monitor(Monitor):
    """What is done with slots and hosts, but for their start; it tells the model of answers."""

    def __init__(self, reactor: Reactor, model: SlotModel) -> None:
        super().__init__(Inbox(), reactor, PoolOptions(1, startup_time=PATIENCE))
        self._model = model

    def take_in(self, each: Slot | Host) -> None:
        if isinstance(each, Slot):
            self._slots.add(each)
        else:
            self._hosts._keep(each)  # noqa: SLF001 - as if it had started it

    def finished(self, slot: Slot, item: Item, ending: Ending) -> None:
        assert slot.item is None
        if ending.outcome is not None:
            twice = self._model.frames > 1  # what shall be sent at last, is said to have stayed
            assert [bytes(each) for each in ending.outcome] in ([WHOLE], *ADDRESSES[: 2 * twice])
            copied = isinstance(ending.outcome[0], memoryview)
            assert not copied or self._model.said_taken  # else it may be another process's
        super().finished(slot, item, ending)

    def requeue(
        self,
        item: Item,
        slot: Slot | None = None,  # noqa: ARG002 - as declared
    ) -> None:
        self._model.answer(item, "requeue")

    def _conclude(self, item: Item, ending: Ending) -> None:
        self._model.answer(item, "lost" if ending.told.get("lost") else "finished")

    def _fail(
        self,
        item: Item,
        message: str,  # noqa: ARG002 - as declared, these three
        cause: BaseException | None,  # noqa: ARG002
        status: Status = Status.STARTUP,  # noqa: ARG002
    ) -> None:
        self._model.answer(item, "failed")


class _HeldFetch(Fetch):
    """Its copy goes on when the model says so, or when it is ended: never by the clock."""

    def __init__(self, *args: Any) -> None:
        self.go = threading.Event()
        super().__init__(*args)

    def _copy(self) -> None:
        self.go.wait(COPIED_WITHIN)
        super()._copy()

    def close(self) -> None:
        self.go.set()
        super().close()


class _Host(Host):
    """A template that is none: an event stands for its pidfd, and is there when it has died."""

    def __init__(self, line: socket.socket) -> None:
        line.setblocking(False)
        super().__init__(NOBODY, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), line)
        self._killed = False

    def kill(self) -> None:
        if not self._killed:
            self._killed = True
            os.eventfd_write(self.pidfd, 1)

    @property
    def ended(self) -> bool:
        return self._killed
