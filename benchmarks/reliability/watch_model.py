"""What a supervisor decides, and the verdict on it, in any order of events; without a process."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
)

from pynisher_exec.limits import Limits
from pynisher_exec.supervisor.state import (
    CPU_FOR_RETURNING,
    MEMORY_FOR_RETURNING,
    OUTCOME_TIME,
    STAGES,
    Kill,
    Reading,
    Soft,
    Watch,
)
from pynisher_exec.verdict import Evidence, judge

__all__ = ["WatchModel"]

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
    st.sampled_from([0.0, 4.9, 5.0, 7.0, 10.0, 11.0, 60.0]),
    st.sampled_from([0, 100 << 20, (100 << 20) + 1, 400 << 20]),
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
        self.killed_at: float | None = None
        self.soft_at = 0.0
        self.over_after_return = False
        self.spoke_late = False

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
        self.spoke_late |= self._is_news_after_a_kill(kind, before, stamped=stamped)
        if advanced:
            if self.killed_at is not None:  # believed only if it was said before that
                assert stamped
                assert kind != "outcome"
                assert self.now <= self.killed_at
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

    def _is_news_after_a_kill(self, kind: str, before: str, *, stamped: bool) -> bool:
        """Whether it shows that the task went on: what has no time counts as late."""
        if self.killed_at is None or kind not in STAGES:
            return False
        late = self.now > self.killed_at or not stamped
        return late and STAGES.index(kind) > STAGES.index(before)

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
        if due == math.inf:
            assert self._nothing_can_be_due()
            return
        self.now = max(self.now, due)
        if self.watch.look_due(self.now):
            self._read(self.watch.last)
        self._tick()
        later = self.watch.deadline()
        assert self.watch.killed is not None or later > self.now

    @rule(reading=readings)
    def look(self, reading: Reading) -> None:
        """A reading comes, whether it was due or not."""
        self._read(reading)

    @rule()
    def ask(self) -> None:
        """The caller cancels."""
        assert self.watch.asked("cancelled", self.now) == Kill("cancelled")
        self.asked, self.killed_at = True, self.now

    # -- what must be --------------------------------------------------------------------------

    def _clocks_run(self) -> bool:
        running = self.watch.stage in ("running", "outcome")
        return running and not self.kills and not self.asked

    def _read(self, reading: Reading) -> None:
        if self._clocks_run():
            self._note(reading)
        memory, cpu_time = self.limits.memory, self.limits.cpu_time
        free = not (self.kills or self.asked)
        self.over_after_return = (
            free
            and self.watch.stage == "returned"
            and (
                (memory is not None and reading.memory > memory + MEMORY_FOR_RETURNING)
                or (
                    cpu_time is not None
                    and reading.cpu_time > cpu_time + max(cpu_time, CPU_FOR_RETURNING)
                )
            )
        )
        self._take(self.watch.read(reading, self.now))
        if self.over_after_return:
            assert self.kills == ["transfer"]

    def _note(self, reading: Reading) -> None:
        bounds = self.limits
        if bounds.memory is not None and reading.memory > bounds.memory:
            self.passed.add("memory")
        if bounds.cpu_time is not None:
            ended = self.watch.stage == "outcome"  # then there is as much again for the outcome
            if reading.cpu_time >= bounds.cpu_time * (1 + ended):
                self.passed.add("cpu_time")
        if bounds.processes is not None and self.watch.counts_processes:
            self.over = self.over + 1 if reading.processes > bounds.processes else 0
            if self.over > 1:
                self.passed.add("processes")

    def _tick(self) -> None:
        over = self._is_over(self.began, self.limits.wall_time)
        ended = self.watch.stage == "outcome"
        if self._clocks_run() and over and (not ended or self._is_over(self.entered, 1.0)):
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
            self.soft_at = self.now
        else:
            assert (
                self.over_after_return
                if action.reason == "transfer"
                else (action.reason in self.passed)
            )
            if action.reason in self.softs and action.reason == self.watch.limit_reached:
                self._check_grace()
            self.kills.append(action.reason)
            self.killed_at = self.now
            self.asked = action.reason == "transfer"

    def _check_grace(self) -> None:
        """A kill after a soft signal comes when its grace is over, and an outcome had its time."""
        assert self.limits.grace_period is not None
        assert self.now >= self.soft_at + self.limits.grace_period
        if self.watch.stage == "outcome":
            assert self.now >= self.entered + OUTCOME_TIME

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
        for found_alive, delivered in product((killed, False), (True, False)):
            evidence = Evidence(
                self.watch.stage,
                wait_status=9 if found_alive else 0,
                killed=self.watch.killed,
                struck=found_alive or self.watch.outlived_kill,
                returned=self.watch.returned,
                limit_reached=self.watch.limit_reached,
            )
            status = judge(evidence, delivered=delivered).status.value
            self._check(status, delivered=delivered, struck=found_alive or self.spoke_late)

    def _check(self, status: str, *, delivered: bool, struck: bool) -> None:
        if self.watch.killed == "cancelled":
            assert status == "cancelled"
        elif self.said is not None and delivered:
            assert status == _status_of(self.said)
        elif self.said is not None:
            assert status == "transfer" or status in map(_status_of, self.passed)
        elif self.watch.stage == "outcome":
            assert status == "exception"
        elif self.kills and struck:
            assert status == _status_of(self.kills[0])
        elif self.watch.stage in ("waiting", "loading"):
            assert status == "startup"
        else:
            assert status == "exit"


def _status_of(reason: str) -> str:
    return {"value": "ok", "startup_time": "startup"}.get(reason, reason)
