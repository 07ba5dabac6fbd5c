"""What a supervisor decides: a state machine without a clock, a process or a descriptor.

In go what the task said, readings of its usage, requests of the caller and the time; out come
actions (send the soft signal, kill) and the moment to look again. The loop does the rest. Being
pure, it can be driven through every order of events by a test.

    waiting -> loading -> running -> outcome -> returned      (a task may end at any of them)

Clocks and limits run in `running` and `outcome`, `startup_time` before. At `returned` the
verdict is fixed and nothing here acts any more but a request of the caller's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pynisher_exec.limits import SOFT_SIGNALS

if TYPE_CHECKING:
    from pynisher_exec.limits import Limits

__all__ = ["STAGES", "Kill", "Reading", "Soft", "Watch"]

STAGES: Final = ("waiting", "loading", "running", "outcome", "returned")

GROWTH_RATE = 3 << 30
"""Bytes that one core can touch in a second (measured): bounds how far memory can have grown."""

SHORTEST_LOOK = 0.005
LONGEST_LOOK = 0.05
IDLE_LOOK = 0.5
"""Seconds between two looks: near a limit, far from it, and at a lone process that sleeps."""

SHORTEST_CPU_LOOK = 0.001
LOOK_SHARE = 20
DEAREST_LOOK = 0.05
"""Looking takes at most one part in this many of the time, up to that many seconds between looks.

A tree that shares much memory has to be confirmed at each look, at milliseconds a look; to look
less often would let it grow unseen.
"""


CPU_FOR_RETURNING = 1.0
MEMORY_FOR_RETURNING = 64 << 20
"""Seconds and bytes beyond the limits that a task may use once its function has ended: seconds to
pickle, flush, clean up and send, as many as the CPU limit allows at least; bytes after RETURNED."""

OUTCOME_TIME = 5.0
"""Seconds that an outcome may take to be pickled and tried though the wall limit passes meanwhile.

The function was in time: that the machine was busy then shall not be told as a fault of its. Some
200 MB took more than one second now and then, with two busy processes for each core.
"""

_LONGEST_NAME = 200


def _before(at: object, moment: float) -> bool:
    return isinstance(at, float) and at <= moment


class Soft(NamedTuple):
    """Send the soft signal of a limit to the task's first process."""

    limit: str
    signum: int


class Kill(NamedTuple):
    """End the whole tree, for this reason."""

    reason: str


class Reading(NamedTuple):
    """What the tree uses: CPU seconds, bytes beyond the baseline, subprocesses; what the look cost.

    `memory` above the limit has been confirmed by whoever read it. `cost` is seconds.
    """

    cpu_time: float
    memory: int
    processes: int
    cost: float = 0.0


@dataclass
class Watch:
    """The watch over one task, from its START on. All times are `time.monotonic()` seconds.

    `outlived_kill`: the task has said something of after a kill was decided on, so it had not ended
    by itself before that.
    """

    limits: Limits
    cores: int
    now: float
    counts_processes: bool = False
    stage: str = "waiting"
    running_at: float | None = None
    killed: str | None = None
    killed_at: float | None = None
    outlived_kill: bool = False
    limit_reached: str | None = None
    used: float | None = None
    what: str = ""
    returned: dict[str, Any] | None = None
    last: Reading = field(default_factory=lambda: Reading(0.0, 0, 0))
    _since: float = 0.0
    _kill_at: float | None = None
    _look_at: float | None = None
    _period: float = SHORTEST_LOOK
    _over: int = 0

    def __post_init__(self) -> None:
        self._since = self.now

    def told(self, kind: str, fields: dict[str, Any], now: float) -> None:
        """Take what the task says; what is out of order or unknown is not believed."""
        if kind not in STAGES or STAGES.index(kind) <= STAGES.index(self.stage):
            return
        if self.killed_at is not None and not _before(fields.get("at"), self.killed_at):
            # What a signal of ours has brought about does not change why it was sent. Nor does an
            # end of its own between the decision and the signal, which a busy machine holds up.
            self.outlived_kill = True
            return
        if kind == "outcome" and (self.running_at is None or self.killed is not None):
            return  # no clock would run any more; or a limit was the cause, and not the object
        self.stage, self._since = kind, now
        if kind == "running":
            self.running_at = now
            self._look_at = now + SHORTEST_LOOK
        elif kind == "outcome":
            self.what = str(fields.get("what", ""))[:_LONGEST_NAME]
        elif kind == "returned":
            self.returned = self._judged(fields, now)
            self._kill_at = None

    def _judged(self, fields: dict[str, Any], now: float) -> dict[str, Any]:
        """What the task says of its end; late, if its function ended after its wall limit.

        Without a grace period the limit then holds, though this watch had not noticed yet: whether
        a function that takes as long as its limit is in time must not be a matter of luck.
        """
        limits, at = self.limits, fields.get("at")
        if limits.wall_time is None or limits.grace_period is not None:
            return fields
        if self.running_at is None or not isinstance(at, float) or not math.isfinite(at):
            return fields
        elapsed = min(at, now) - self.running_at  # what is to come is no moment of an end
        if elapsed < limits.wall_time:
            return fields
        self.limit_reached, self.used = "wall_time", elapsed
        return {**fields, "outcome": "wall_time"}

    def asked(self, reason: str, now: float) -> Kill | None:
        """The caller wants the task ended; a cancel wins until the future resolves."""
        self.killed, self.killed_at = reason, now
        return Kill(reason)

    def read(self, reading: Reading, now: float) -> Soft | Kill | None:
        """Judge a reading, and settle when to look again."""
        idle = reading.cpu_time - self.last.cpu_time < SHORTEST_CPU_LOOK
        self.last = reading
        if not self._watched():
            return None
        self._schedule(reading, now, idle=idle)
        if self.stage == "returned":
            return self._read_after_return(reading, now)
        self._count(reading.processes)
        limits = self.limits
        if limits.memory is not None and reading.memory > limits.memory:
            return self._kill("memory", reading.memory, now)
        cpu_time = self._cpu_bound()
        if cpu_time is not None and reading.cpu_time >= cpu_time:
            return self._reach("cpu_time", reading.cpu_time, now)
        if self._over > 1:  # one reading never kills: a process may have been seen twice
            return self._kill("processes", reading.processes, now)
        return None

    def _count(self, processes: int) -> None:
        """Note how many readings in turn were over the limit of subprocesses, if they count."""
        limit = self.limits.processes
        over = self.counts_processes and limit is not None and processes > limit
        self._over = self._over + 1 if over else 0

    def _read_after_return(self, reading: Reading, now: float) -> Kill | None:
        """The verdict is fixed; what the task left running shall not use what it likes."""
        memory, cpu_time = self.limits.memory, self._cpu_bound()
        over = memory is not None and reading.memory > memory + MEMORY_FOR_RETURNING
        if over or (cpu_time is not None and reading.cpu_time > cpu_time):
            return self.asked("transfer", now)
        return None

    def _cpu_bound(self) -> float | None:
        """CPU seconds at which something is done; once the function has ended, as much again."""
        limit = self.limits.cpu_time
        if limit is None or self.stage not in ("outcome", "returned"):
            return limit
        return limit + max(limit, CPU_FOR_RETURNING)

    def tick(self, now: float) -> Soft | Kill | None:
        """Judge the time."""
        if self.killed is not None or self.stage == "returned":
            return None
        if self._starts() and self.limits.startup_time is not None:
            if now >= self._since + self.limits.startup_time:
                return self._kill("startup_time", now - self._since, now)
            return None
        if self._kill_at is not None:
            late = now >= self._grace_due()
            return self._kill(str(self.limit_reached), self.used, now) if late else None
        if self.running_at is not None and now >= self._wall_due():
            return self._reach("wall_time", now - self.running_at, now)
        return None

    def _wall_due(self) -> float:
        """When the wall limit is to be held; later where the function has ended before it."""
        if self.limits.wall_time is None:
            return math.inf
        due = (self.running_at or 0.0) + self.limits.wall_time
        return max(due, self._since + OUTCOME_TIME) if self.stage == "outcome" else due

    def _grace_due(self) -> float:
        """When the grace period is over; later where the function has ended in it."""
        due = self._kill_at or 0.0
        return max(due, self._since + OUTCOME_TIME) if self.stage == "outcome" else due

    def look_due(self, now: float) -> bool:
        """Whether it is time for a reading."""
        return self._watched() and self._look_at is not None and now >= self._look_at

    def deadline(self) -> float:
        """When `tick` or a reading is due next; never: only an event can change anything."""
        due = self.end_due()
        if self._look_at is not None and self._watched():
            due = min(due, self._look_at)
        return due

    def end_due(self) -> float:
        """When the time will be up that the task may take for what it is at."""
        if self.killed is not None:
            return math.inf
        if self._kill_at is not None:
            return self._grace_due()
        if self._starts() and self.limits.startup_time is not None:
            return self._since + self.limits.startup_time
        return self._wall_due() if self._bounded() else math.inf

    def _starts(self) -> bool:
        """Whether `startup_time` runs: until the call is there, and anew until it is loaded."""
        return self.stage in ("waiting", "loading")

    def _bounded(self) -> bool:
        """Whether the clocks run."""
        return self.killed is None and self.stage in ("running", "outcome")

    def _watched(self) -> bool:
        """Whether readings are taken."""
        return self._bounded() or (self.killed is None and self.stage == "returned")

    def _reach(self, limit: str, used: float, now: float) -> Soft | Kill | None:
        """A limit with a grace period is passed: the soft signal once, then the kill."""
        if self._kill_at is not None:
            return None
        if self.limits.grace_period is None:
            return self._kill(limit, used, now)
        self.limit_reached, self.used = limit, used
        self._kill_at = now + self.limits.grace_period
        return Soft(limit, SOFT_SIGNALS[limit])

    def _kill(self, reason: str, used: float | None, now: float) -> Kill:
        self.killed, self.killed_at, self.used = reason, now, used
        if reason != "startup_time":
            self.limit_reached = reason
        return Kill(reason)

    def _schedule(self, reading: Reading, now: float, *, idle: bool) -> None:
        """Look again before a limit can have been passed by much, and no more often than that."""
        longest = IDLE_LOOK if reading.processes == 0 else LONGEST_LOOK
        self._period = min(self._period * 2, longest) if idle else SHORTEST_LOOK
        period = self._period
        if not idle:
            period = LONGEST_LOOK
            if self.limits.memory is not None:
                room = max(0, self.limits.memory - reading.memory)
                period = min(period, room / (GROWTH_RATE * self.cores))
        dear = min(reading.cost * LOOK_SHARE, DEAREST_LOOK)
        period = max(period, SHORTEST_LOOK, dear)
        cpu_time = self._cpu_bound()
        if cpu_time is not None and self._kill_at is None:
            left = (cpu_time - reading.cpu_time) / self.cores
            period = min(period, max(left, SHORTEST_CPU_LOOK))
        self._look_at = now + period
