"""Finds out what this machine allows, by doing it, in an interpreter started for nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
from typing import TYPE_CHECKING

from pynisher_exec.kernel import cgroup, landlock, perf, prctl, proc, seccomp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["serve"]


def serve(answer: int, no_new_privs: bool) -> None:  # noqa: FBT001  (called from the bootstrap)
    """Try each mechanism and send the reasons for which some are refused, as JSON."""
    if no_new_privs:
        prctl.renounce_privileges()
    rlimits, cores = _try(_be_bound_by_an_rlimit), _try(_leave_no_core)
    group = _try(_use_a_group)
    with _child() as pid:  # what a supervisor does to its task, which is another process
        found = {
            "perf": _try(lambda: os.close(perf.open_task_clock(pid))),
            "pss": _try(lambda: _read_pss(pid)),
        }
    found |= {
        "rlimits": rlimits,
        "cores": cores,
        "group": group,
        "landlock": _try(_scope_signals),
        "gate": _try(lambda: os.close(seccomp.install_gate())),
        "filter": _try(seccomp.deny_forks),
    }
    with socket.socket(fileno=answer) as line:
        line.sendall(json.dumps(found).encode())


def _be_bound_by_an_rlimit() -> None:
    """OSError where this process can lift one; by that of core files, which it leaves none of."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except (ValueError, OSError):  # which of them is Python's affair
        return
    msg = "this process has lifted one"
    raise OSError(msg)


def _leave_no_core() -> None:
    """OSError where the kernel hands a core to a program, however large it is (core(5))."""
    with open("/proc/sys/kernel/core_pattern", encoding="ascii") as file:
        if file.read(1) == "|":
            msg = "core_pattern names a program"
            raise OSError(msg)


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


def _use_a_group() -> None:
    """Have a process enter a group, as a supervisor does; OSError where it does not count there."""
    place = cgroup.find()
    pid = os.fork()
    if pid == 0:
        group = cgroup.Group(place)
        group.enter()
        os._exit(group.cpu_time() is None)
    failed = os.waitpid(pid, 0)[1] != 0
    cgroup.sweep(place)
    if failed:
        msg = "no cgroup of version 2 can be made"
        raise OSError(msg)


def _try(action: Callable[[], object]) -> str:
    """Empty where it works, else why not."""
    try:
        action()
    except OSError as error:
        return error.strerror or str(error)
    return ""
