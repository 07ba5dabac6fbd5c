"""What others can read of a task: its processes' command lines and environments, its sockets.

A process's environment holds what its caller's held when it was started, as any program's does;
nothing of a call may be added to it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.processes import descendants, name_of
from benchmarks.reliability.check import Check, Found
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CHECKS"]

PATIENCE = 60
COMM = 15
"""Characters of a process's name (proc_pid_comm(5))."""


class Held(NamedTuple):
    """What a task's standard output and error are, and what else it has open."""

    output: set[str]
    others: set[str]


def stay(secret: str, seconds: float) -> Held:
    """Be looked at, and look at oneself."""
    print(secret)
    time.sleep(seconds)
    links = dict(_links(os.getpid()))
    return Held({links[1], links[2]}, {link for number, link in links.items() if number > 2})


def _links(pid: int) -> Iterator[tuple[int, str]]:
    """Descriptors of a process, and what they are."""
    folder = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(OSError):  # it has just ended
        for number in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # what the listing itself was read by
                yield int(number), str((folder / number).readlink())


def _leaks(secret: str, pids: set[int]) -> Iterator[str]:
    for pid in pids:
        for part in ("cmdline", "environ", "comm"):
            try:
                content = Path(f"/proc/{pid}/{part}").read_bytes()
            except OSError:  # it has just ended
                continue
            wanted = secret[:COMM] if part == "comm" else secret
            if wanted.encode() in content:
                yield f"{name_of(pid)}: the secret is in {part}"
        yield from _named_sockets(pid)


def _named_sockets(pid: int) -> Iterator[str]:
    """Sockets of a process that others could find by a name: unix(7), /proc/net/unix."""
    names = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7:
            names[f"socket:[{fields[6]}]"] = fields[7]
    for number, link in _links(pid):
        if number > 2 and link in names:  # the standard streams are the user's
            yield f"{name_of(pid)}: {link} is named {names[link]}"


def nothing_leaks(count: int) -> Found:
    """Row 22."""
    failures: list[str] = []
    seen = 0
    before = set(descendants(os.getpid()))
    for context in (None, "loky", "spawn"):  # multiprocessing's fork server has a named socket
        with LimitedProcessExecutor(2, context=context, capture_output=True) as executor:
            for _ in range(count):
                seen += 1
                failures += _tried(executor, secrets.token_hex(16), before)
    return Found(seen, failures, f"{seen} pairs of tasks, {len(failures)} leaks")


def _tried(executor: LimitedProcessExecutor, secret: str, others: set[int]) -> list[str]:
    """Two tasks at once, that know the secret by their arguments, and write and return it."""
    futures = [executor.submit(stay, secret, 0.3) for _ in range(2)]
    failures: list[str] = []
    while not all(future.done() for future in futures):
        failures += _leaks(secret, set(descendants(os.getpid())) - others)
        time.sleep(0.05)
    one, other = (future.result(PATIENCE) for future in futures)
    shared = {link for link in one.others & other.others if link.startswith("socket:")}
    shared |= one.output & (other.output | other.others) | other.output & one.others
    return failures + [f"both tasks have {link}" for link in shared]


CHECKS = (
    Check(
        22,
        "no process of ours shows user data, and no task has another's lines",
        "a secret in arguments and output, looked for in /proc while tasks run",
        nothing_leaks,
        50,
        1,
    ),
)
