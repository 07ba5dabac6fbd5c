"""What a supervisor collects of one task, and tells of it in ENDED.

Figures that the task itself supplies (its baseline, its own high-water mark) are taken for what
they can be: a number of the wrong kind counts as none.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Any, Final

from pynisher_exec.kernel.proc import PAGE
from pynisher_exec.supervisor.cpu import LivingClocks, own_clock
from pynisher_exec.supervisor.memory import MemoryGauge
from pynisher_exec.supervisor.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Collection
    from resource import struct_rusage

    from pynisher_exec.limits import Limits
    from pynisher_exec.supervisor.cpu import CpuClock
    from pynisher_exec.supervisor.gate import Gate
    from pynisher_exec.supervisor.state import Watch

__all__ = ["Account", "number_in"]

_DEADLINE: Final = "supervisor deadline"
_FACTS: Final = {
    "outcome": str,
    "message": str,
    "os_errno": int,
    "exit_code": int,
    "forking": bool,
}
"""What of RETURNED is passed on; it came from the task, so of a known kind and a bounded length."""

_LONGEST_TEXT = 1000
_LONGEST_LIST = 40_000
"""Bytes, of modules: what `task.imports` tells, as long as a task is honest. It all has to fit into
one message to the caller."""
_MAX_RSS = 2  # its place in struct rusage: the one figure of which not the sum is taken


def number_in(fields: dict[str, Any], name: str) -> float:
    """Take a number out of what a task has sent; 0 where it is none."""
    value = fields.get(name)
    try:
        good = isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # an int beyond every float
        good = False
    return value if good and value is not None else 0.0


class Account:
    """The evidence on one task, from its START to its end.

    `reused`: its process may have served others before, whose usage, and that of the children they
    had, is not of this task. `rests`: it has not ended by itself, but waits for another; how it
    ends some time does not belong here. `shares`: places of what it may read uncharged.
    """

    def __init__(
        self, pid: int, clock: CpuClock, limits: Limits, shares: Collection[bytes], *, reused: bool
    ) -> None:
        self.gauge = MemoryGauge(0, pid, shares)
        self.living = LivingClocks()
        self.tree = Tree(pid)
        self.peak_processes = 0
        self.struck = False
        self._pid = pid
        self._clock = clock
        self._limits = limits
        self._shares = shares
        self.rests = False
        self._reused = reused
        self._of_others = 0.0
        if reused:
            with contextlib.suppress(OSError):  # it has died while it waited: this ends unstarted
                self._of_others = max(0.0, clock.read() - own_clock(pid))
        self._mechanisms: dict[str, Any] = {}
        self._imported = ""
        self._began: float | None = None
        self._ended = 0.0
        self._cpu_before = 0.0
        self._resident_before = 0
        self._status: int | None = None
        self._high_water = 0
        self._usage: tuple[float, ...] = ()

    def begin(self, fields: dict[str, Any]) -> float:
        """The function starts: what it uses counts from here on. Gives the moment."""
        self._began = min(number_in(fields, "at") or math.inf, time.monotonic())
        before = self._of_others + number_in(fields, "cpu_time")
        self._cpu_before = min(before, self._clock.read())
        if self._limits.address_space is None and not self._limits.from_zero:
            self.gauge = MemoryGauge(int(number_in(fields, "held")), self._pid, self._shares)
            self._resident_before = int(number_in(fields, "resident"))
        mechanisms = fields.get("mechanisms")
        self._mechanisms = mechanisms if isinstance(mechanisms, dict) else {}
        imported = fields.get("imported")
        self._imported = imported if isinstance(imported, str) else ""
        return self._began

    def end(self, at: float) -> None:
        """The function has ended; what comes after it is not counted. The first word stands."""
        if self._began is not None and not self._ended:
            self._ended = max(at, self._began)

    def cpu_time(self) -> float:
        """CPU seconds of the tree since the function started."""
        if self._began is None:
            return 0.0
        reaped = sum(self._usage[:2])  # user and system time, as wait4(2) told it
        used = max(self._clock.read(), self.living.total, reaped)
        return max(0.0, used - self._cpu_before)

    def reaped(self, pid: int, status: int, usage: struct_rusage) -> None:
        """Take note of a process of the tree that has been reaped."""
        if pid == self._pid and not self.rests:
            self._status = status
            self._high_water = usage.ru_maxrss << 10
        if pid == self._pid and self._reused:
            return
        if not self._usage:
            self._usage = tuple(usage)
            return
        largest = max(self._usage[_MAX_RSS], usage[_MAX_RSS])
        summed = [mine + its for mine, its in zip(self._usage, usage)]  # noqa: B905  (one struct)
        summed[_MAX_RSS] = largest
        self._usage = tuple(summed)

    def fields(self, watch: Watch, gate: Gate | None, survivors: list[int]) -> dict[str, Any]:
        """Everything for ENDED, when nothing of it changes any more.

        The tree is gone then, or its process rests; what that has used to tidy up counts as far as
        it has come. Asked for at RETURNED, it is what is known so far.
        """
        returned = watch.returned
        return {
            "pid": self._pid,
            "stage": watch.stage,
            "wait_status": self._status,
            "killed": watch.killed,
            "struck": self.struck or watch.outlived_kill,
            "returned": None if returned is None else _facts_of(returned),
            "limit_reached": watch.limit_reached,
            "what": watch.what,
            "used": watch.used,
            "survivors": survivors[:100],
            "mechanisms": {**self._own_mechanisms(), **self._told_mechanisms()},
            "refused_forks": 0 if gate is None else gate.refused,
            "started_at": self._started_at(),
            "wall_time": 0.0 if self._began is None else (self._ended or self._began) - self._began,
            "cpu_time": self.cpu_time(),
            "peak_memory": self._peak(returned or {}),
            "peak_processes": max(self.peak_processes, 0 if gate is None else gate.peak),
            "detail": str(self.gauge.largest or ""),
            "rusage": self._usage,
            "imported": _cut(self._imported, _LONGEST_LIST),
        }

    def _told_mechanisms(self) -> dict[str, str]:
        known = self._limits.as_message
        return {
            name: _cut(str(text), _LONGEST_TEXT)
            for name, text in self._mechanisms.items()
            if name in known
        }

    def _own_mechanisms(self) -> dict[str, str]:
        return {
            "cpu_time": self._clock.mechanism,
            "wall_time": _DEADLINE,
            "grace_period": _DEADLINE,
            "startup_time": _DEADLINE,
        }

    def _started_at(self) -> float | None:
        return None if self._began is None else time.time() - (time.monotonic() - self._began)

    def _peak(self, returned: dict[str, Any]) -> int:
        """The largest sample, or the high water that the task told itself.

        Where a task ended untold before the first sample, getrusage(2) has its high water, file
        pages included.
        """
        peak = max(self.gauge.peak, int(number_in(returned, "peak")))
        if peak or self._began is None:
            return peak
        unknown = bool(returned) or self._limits.from_zero  # a program's high water is ours also
        grown = 0 if unknown else self._high_water - self._resident_before
        return max(PAGE, grown)  # what ran has touched something


def _facts_of(returned: dict[str, Any]) -> dict[str, Any]:
    """The facts that count, cut to a bound: what does not fit its kind is left out."""
    facts: dict[str, Any] = {}
    for name, kind in _FACTS.items():
        value = returned.get(name)
        if isinstance(value, kind):
            facts[name] = _cut(value, _LONGEST_TEXT) if isinstance(value, str) else value
    return facts


def _cut(text: str, most: int) -> str:
    """Cut a text to so many bytes, as it is sent; where it is cut, lone surrogates go as well."""
    data = text.encode(errors="surrogatepass")
    return text if len(data) <= most else data[:most].decode(errors="ignore")
