"""From evidence to the one word: a pure function, so that every order of events can be tabled.

The supervisor only collects evidence (it knows why *it* killed, what the task told it, and what
`wait` said); the caller adds whether the outcome arrived. Everything that decides stands here.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass, field
from typing import Any, Final

from pynisher_exec.limits import FORK_FILTER, SOFT_SIGNALS
from pynisher_exec.report import Enforced, Status

__all__ = ["Evidence", "Verdict", "judge"]

LIMIT_STATUS: Final = {
    "memory": Status.MEMORY,
    "cpu_time": Status.CPU_TIME,
    "wall_time": Status.WALL_TIME,
    "processes": Status.PROCESSES,
    "startup_time": Status.STARTUP,
}
"""Reasons for which a supervisor kills by itself, and the status of a task that died of it."""

RETURNED_STATUS: Final = {
    "value": Status.OK,
    "exception": Status.EXCEPTION,
    "unpicklable": Status.EXCEPTION,
    "os_error": Status.OS_ERROR,
    "memory": Status.MEMORY,
    "processes": Status.PROCESSES,
    "cpu_time": Status.CPU_TIME,
    "wall_time": Status.WALL_TIME,
    "quit": Status.SIGNAL,
    "exit": Status.EXIT,
    "startup": Status.STARTUP,
}
"""What a task says of itself when its function has ended, and the status that this is."""


@dataclass(frozen=True)
class Evidence:
    """What was seen of one task.

    `stage` is how far it came: waiting, loading, running, outcome (the function had ended, its
    outcome was being pickled or tried), returned. `returned` is what the task then said.
    `wait_status` is that of waitpid(2), None if the task was never reaped. `killed` is the reason
    for which the supervisor killed, `struck` whether the task was still there when it was decided
    on, `limit_reached` the limit of a soft signal or kill.
    """

    stage: str
    wait_status: int | None = None
    killed: str | None = None
    struck: bool = False
    returned: dict[str, Any] | None = None
    limit_reached: str | None = None
    what: str = ""
    survivors: tuple[int, ...] = ()
    refused_forks: int = 0
    used: float | None = None
    detail: str = ""
    wall_time: float = 0.0
    cpu_time: float = 0.0
    peak_memory: int = 0
    peak_processes: int = 0
    started_at: float | None = None
    pid: int | None = None
    rusage: tuple[float, ...] = ()
    limits: dict[str, Enforced] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """The status, and what of the evidence goes with it."""

    status: Status
    exit_code: int | None = None
    signal: int | None = None
    limit_reached: str | None = None


def judge(evidence: Evidence, *, delivered: bool) -> Verdict:
    """Say why the task ended; `delivered` is whether its outcome arrived whole at the caller."""
    exit_code = _exit_code(evidence.wait_status)
    signum = -exit_code if exit_code is not None and exit_code < 0 else None
    status = _status(evidence, exit_code, delivered=delivered)
    limit_reached = evidence.limit_reached
    if status in (Status.MEMORY, Status.CPU_TIME, Status.WALL_TIME, Status.PROCESSES):
        limit_reached = status.value
    elif limit_reached is None and evidence.refused_forks:
        limit_reached = Status.PROCESSES.value  # it met the limit, and went on
    if status is Status.SIGNAL and signum is None:  # SIGQUIT came out as an exception
        signum = signal.SIGQUIT
    return Verdict(status, exit_code, signum, limit_reached)


def _exit_code(wait_status: int | None) -> int | None:
    return None if wait_status is None else os.waitstatus_to_exitcode(wait_status)


def _status(evidence: Evidence, exit_code: int | None, *, delivered: bool) -> Status:
    if evidence.survivors:
        return Status.UNKILLABLE
    if evidence.killed == "cancelled":
        return Status.CANCELLED
    if evidence.returned is not None:
        return _said(evidence, evidence.returned, delivered=delivered)
    if evidence.stage == "outcome":
        # The function had ended; what it left behind could not be pickled and tried. A limit or a
        # signal that struck there is in the report, but the object is the cause.
        return Status.EXCEPTION
    if evidence.killed in LIMIT_STATUS and evidence.struck:
        return LIMIT_STATUS[evidence.killed]
    if evidence.stage in ("waiting", "loading"):
        return Status.STARTUP
    return _ended_by_itself(evidence, exit_code)


def _said(evidence: Evidence, returned: dict[str, Any], *, delivered: bool) -> Status:
    """The task's own word, unless its outcome did not arrive."""
    said = RETURNED_STATUS.get(str(returned.get("outcome")))
    if not delivered and evidence.killed in LIMIT_STATUS:
        return LIMIT_STATUS[evidence.killed]  # it returned just as the limit struck: a tie
    if not delivered or said is None:
        return Status.TRANSFER
    if said is Status.OS_ERROR and returned.get("os_errno") == errno.EAGAIN:
        gate = evidence.limits.get("processes")
        refused = evidence.refused_forks or (gate is not None and gate.mechanism == FORK_FILTER)
        if refused and returned.get("forking"):  # else a socket with nothing to read, say
            return Status.PROCESSES
    return said


def _ended_by_itself(evidence: Evidence, exit_code: int | None) -> Status:
    """Without a kill of ours: a signal, an exit, or the kernel's own RLIMIT_CPU behind ours."""
    if exit_code is None or exit_code >= 0:
        return Status.EXIT
    if SOFT_SIGNALS.get(str(evidence.limit_reached)) == -exit_code:
        # The function had put the signal's default action back, or become another program.
        return LIMIT_STATUS[str(evidence.limit_reached)]
    if -exit_code in (signal.SIGXCPU, signal.SIGKILL) and _is_far_over_cpu(evidence):
        return Status.CPU_TIME
    return Status.SIGNAL


def _is_far_over_cpu(evidence: Evidence) -> bool:
    """Whether the kernel's own RLIMIT_CPU, which lies behind our limit, can have struck."""
    limit, grace = evidence.limits.get("cpu_time"), evidence.limits.get("grace_period")
    return limit is not None and evidence.cpu_time > limit.value + (grace.value if grace else 0) + 1
