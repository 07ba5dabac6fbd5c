"""Finds out what this machine allows, by doing it, in an interpreter started for nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING

from pynisher_exec.kernel import cgroup, landlock, perf, prctl, proc, seccomp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["serve"]

_NO_GROUP = "no cgroup for it can be made here"


def serve(answer: int, no_new_privs: bool) -> None:  # noqa: FBT001  (called from the bootstrap)
    """Try each mechanism and send the reasons for which some are refused, as JSON."""
    if no_new_privs:
        prctl.set_no_new_privs()
    groups = _try_groups()
    with _child() as pid:  # what a supervisor does to its task, which is another process
        found = {
            "perf": _try(lambda: os.close(perf.open_task_clock(pid))),
            "pss": _try(lambda: _read_pss(pid)),
        }
    found |= {
        "landlock": _try(_scope_signals),
        "gate": _try(lambda: os.close(seccomp.install_gate())),
        "filter": _try(seccomp.deny_forks),
    }
    found |= groups
    with socket.socket(fileno=answer) as line:
        line.sendall(json.dumps(found).encode())


def _scope_signals() -> None:
    ruleset = landlock.signal_scope()
    try:
        landlock.restrict_self(ruleset)
    finally:
        os.close(ruleset)


@contextlib.contextmanager
def _child() -> Iterator[int]:
    """Have a child that waits."""
    waiting, ending = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ending)
        os.read(waiting, 1)
        os._exit(0)
    try:
        yield pid
    finally:
        os.close(ending)
        os.close(waiting)
        os.waitpid(pid, 0)


def _read_pss(pid: int) -> None:
    if proc.fair_memory(pid) is None:
        msg = "/proc/PID/smaps_rollup cannot be read"
        raise OSError(msg)


def _try_groups() -> dict[str, str]:
    """What a control group counts and bounds, for a process that enters one as supervisors do."""
    place = cgroup.find()
    pid = os.fork()
    if pid == 0:
        group = cgroup.Group(place)
        group.enter()
        os._exit(
            (group.cpu_time() is not None) + 2 * group.holds_memory + 4 * group.holds_processes
        )
    held = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    cgroup.sweep(place)
    names = ("group_cpu", "group_memory", "group_processes")
    return {name: "" if held >> bit & 1 else _NO_GROUP for bit, name in enumerate(names)}


def _try(action: Callable[[], object]) -> str:
    """Empty where it works, else why not."""
    try:
        action()
    except OSError as error:
        return error.strerror or str(error)
    return ""
