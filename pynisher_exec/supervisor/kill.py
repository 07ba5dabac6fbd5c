"""Ending a whole tree, and the proof that it has ended.

The proof is the kernel's: as the child subreaper of everything below it, this process has no
children left exactly when waitpid(-1) answers ECHILD. A list of children is no proof (it may skip
entries while it changes), so it only serves to find whom to kill next.

Own children are killed by pid: a pid cannot be reused before it is reaped, and only this thread
reaps. Deeper descendants are killed by pidfd, with their ancestry read again after the opening.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from resource import struct_rusage
from typing import TYPE_CHECKING

from pynisher_exec.kernel import pidfd, proc

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["Reaped", "end_others", "end_tree", "ignore", "reap", "reap_orphans"]

ROUND = 0.002
"""Seconds to wait for the next death before looking for more to kill."""

LONGEST_ROUND = 0.1
"""Seconds between rounds while nothing dies."""

HURRY_AFTER = 20
"""Rounds after which a tree counts as a fork bomb: it is stopped first, and outranked."""


OTHERS_TIME = 0.5
"""Seconds after which one process cannot be left alone: it goes with the others."""

TRACKER_TIME = 1.0
"""Seconds that a resource tracker has to remove what the killed have left in /dev/shm."""

MOST_WITH_TRACKERS = 64
"""Processes: a tree of more is ended without a look at who tracks what."""

_TRACKER = b"resource_tracker import main"
"""In the command line of multiprocessing's tracker, of loky's, and of joblib's copy of that. What
only calls itself so lives for that second, and no longer."""

Reaped = Callable[[int, int, struct_rusage], None]
"""Told of each process that is reaped: its pid, wait status and usage (wait4(2))."""


def ignore(_pid: int, _status: int, _usage: struct_rusage) -> None:
    """Take no notice of what is reaped."""


def reap(reaped: Reaped) -> bool:
    """Reap all that has ended, telling of each; True when no child is left at all."""
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            return False
        reaped(pid, status, usage)


def reap_orphans(first: int, reaped: Reaped, most: int) -> set[int]:
    """Reap what has come to this process and has ended, but never its `first` child; give the pids.

    `first` is left to be waited for when its task is over. It is looked who has ended before
    anything is taken: a pid cannot be another's until this thread reaps it. `most` bounds it: a
    tree that leaves orphans faster than they are reaped must not keep this process from its clocks.
    """
    gone: set[int] = set()
    while len(gone) < most:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None or ended.si_pid == first:  # then all of them are about to be ended
            break
        reaped(*os.wait4(ended.si_pid, os.WNOHANG))
        gone.add(ended.si_pid)
    return gone


def end_tree(
    reaped: Reaped,
    patience: float,
    spared: Collection[int] = (),
    first: int = 0,
    at_once: Callable[[], None] = lambda: None,
) -> list[int]:
    """Kill and reap every process below this one; SIGCHLD must be blocked.

    `at_once` may end a large tree in one step, and is called first for one. `spared` children are
    left alone (a template's supervisors). Gives the pids that are still there after `patience`
    seconds: empty means that nothing is left. Where they cannot be seen (/proc cannot be read
    without a free descriptor) `first` is given, the child that had been forked.
    """
    if reap(reaped):  # as with most tasks: nothing was left running
        return []
    deadline = time.monotonic() + patience
    killer = _Killer(spared, min(TRACKER_TIME, patience / 2), at_once)
    with contextlib.ExitStack() as hurry:
        while not reap(reaped):
            targets = killer.kill()
            if killer.sees_nothing:
                return []
            if time.monotonic() >= deadline:
                return targets or [first]
            if killer.rounds == HURRY_AFTER:
                hurry.enter_context(_outranking())
            killer.wait()
    return []


def end_others(spared: int, reaped: Reaped) -> set[int] | None:
    """Kill and reap every process below this one but one, which goes on; None where that fails.

    Gives its resource trackers, which are left to it: what it has registered there may still be in
    use, and they end with it. Other children that it has are its own to reap. Where there were
    others, two looks in turn have to find none: the list may have skipped entries.
    """
    deadline = time.monotonic() + OTHERS_TIME
    trackers: set[int] = set()
    clean = 1
    while clean < 2:  # noqa: PLR2004  (see above)
        reap(reaped)
        below = proc.descendants(os.getpid())
        others = {pid for pid in below if pid != spared and proc.is_alive(pid)}
        trackers = {pid for pid in others if _is_child(pid, spared) and _is_tracker(pid)}
        others -= trackers
        clean = 0 if others else clean + 1
        if time.monotonic() >= deadline:
            return None
        for pid in others:
            _send(pid, signal.SIGKILL)
        if others:
            signal.sigtimedwait({signal.SIGCHLD}, ROUND)
    return trackers


def _is_child(pid: int, parent: int) -> bool:
    current = proc.stat(pid)
    return current is not None and current.parent == parent


def _is_tracker(pid: int) -> bool:
    return _TRACKER in proc.command_line(pid)


class _Killer:
    """Kills what is there, round by round, and stops it first when that goes on for long.

    Resource trackers come last: they end by themselves when nobody is left who might use what they
    track, and remove it first.
    """

    def __init__(
        self, spared: Collection[int], tracker_time: float, at_once: Callable[[], None]
    ) -> None:
        self.rounds = 0
        self._at_once = at_once
        self._spared = spared
        self._trackers_until = time.monotonic() + tracker_time
        self._are_trackers: dict[int, bool] = {}
        self._unseen = 0
        self._pause = ROUND

    def kill(self) -> list[int]:
        """Kill everything below; give the pids of what was there."""
        below = _below(self._spared)
        if len(below) > MOST_WITH_TRACKERS:
            self._at_once()
        self._unseen = 0 if below else self._unseen + 1
        targets = self._without_trackers(below)
        if targets or not below:
            self.rounds += 1
        if targets and self.rounds > HURRY_AFTER:
            self._stop_all(targets)
        for pid in targets:
            _send(pid, signal.SIGKILL)
        return below

    def _without_trackers(self, pids: list[int]) -> list[int]:
        if len(pids) > MOST_WITH_TRACKERS:
            return pids
        return [pid for pid in pids if not self._is_tracker(pid)]

    def _is_tracker(self, pid: int) -> bool:
        """Whether to spare it. A command line is read under a lock that a fork holds for long."""
        if time.monotonic() >= self._trackers_until:
            return False
        if pid not in self._are_trackers:
            self._are_trackers[pid] = _is_tracker(pid)
        return self._are_trackers[pid]

    def _stop_all(self, targets: list[int]) -> None:
        """Stop to a fixpoint: what is stopped forks no more, and cannot outrun the killer."""
        stopped: set[int] = set()
        for _ in range(HURRY_AFTER):
            fresh = [pid for pid in targets if pid not in stopped]
            if not fresh:
                return
            for pid in fresh:
                _send(pid, signal.SIGSTOP)
            stopped.update(fresh)
            targets = self._without_trackers(_below(self._spared))

    @property
    def sees_nothing(self) -> bool:
        """Whether only spared children are left. Seen twice: the list may have skipped entries."""
        return bool(self._spared) and self._unseen > 1

    def wait(self) -> None:
        """Wait for the next death, for longer where nothing dies: it is stuck, or huge."""
        died = signal.sigtimedwait({signal.SIGCHLD}, self._pause) is not None
        slow = not died and self.rounds > HURRY_AFTER
        self._pause = min(2 * self._pause, LONGEST_ROUND) if slow else ROUND


def _below(spared: Collection[int]) -> list[int]:
    """Everything below this process but the spared children and what is below them."""
    found = [pid for pid in proc.children(os.getpid()) if pid not in spared]
    for pid in list(found):
        found += proc.descendants(pid)
    return found


@contextlib.contextmanager
def _outranking() -> Iterator[None]:
    """Raise this process's priority where it may: equals can be outforked for minutes.

    For as long as it takes: the tasks to come inherit the priority of this process.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


def _send(pid: int, signum: int) -> None:
    """Signal a process if, held by a pidfd, it still descends from this one."""
    try:
        descriptor = pidfd.open_pidfd(pid)
    except (
        OSError
    ):  # it has gone, or no descriptor is free: a child of ours can be named by its pid
        if _is_child(pid, os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(pid, signum)
        return
    try:
        if _descends(pid):
            with contextlib.suppress(OSError):
                pidfd.send_signal(descriptor, signum)
    finally:
        os.close(descriptor)


def _descends(pid: int) -> bool:
    """Whether the chain of parents leads here; it is read while the pidfd holds the process."""
    own = os.getpid()
    while pid > 1:
        current = proc.stat(pid)
        if current is None:
            return False
        if current.parent == own:
            return True
        pid = current.parent
    return False
