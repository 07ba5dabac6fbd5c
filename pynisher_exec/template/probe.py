"""Finds out what this machine allows, by doing it, in an interpreter started for nothing else."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

from pynisher_exec.kernel import landlock, perf, prctl, proc, seccomp

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["serve"]


def serve(answer: int, no_new_privs: bool) -> None:  # noqa: FBT001  (called from the bootstrap)
    """Try each mechanism and send the reasons for which some are refused, as JSON."""
    if no_new_privs:
        prctl.set_no_new_privs()
    found = {
        "perf": _try(lambda: os.close(perf.open_task_clock(os.getpid()))),
        "landlock": _try(_scope_signals),
        "pss": _try(_read_own_pss),
        "gate": _try(lambda: os.close(seccomp.install_gate())),
        "filter": _try(seccomp.deny_forks),
    }
    with socket.socket(fileno=answer) as line:
        line.sendall(json.dumps(found).encode())


def _scope_signals() -> None:
    ruleset = landlock.signal_scope()
    try:
        landlock.restrict_self(ruleset)
    finally:
        os.close(ruleset)


def _read_own_pss() -> None:
    if proc.fair_memory(os.getpid()) is None:
        msg = "/proc/PID/smaps_rollup cannot be read"
        raise OSError(msg)


def _try(action: Callable[[], object]) -> str:
    """Empty where it works, else why not."""
    try:
        action()
    except OSError as error:
        return error.strerror or str(error)
    return ""
