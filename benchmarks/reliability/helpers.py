"""What becomes of tasks when the processes that watch over them are killed or stopped."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.processes import descendants, name_of, parent_of, state_of, zombies
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.marks import Mark
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pynisher_exec import LimitedFuture, Report

__all__ = ["CHECKS"]

PATIENCE = 120
SEED = 20261125
WALL = 2.0
MARGIN = 5.0
"""Seconds for which a limit may be late on a machine that is busy otherwise: the row is no clock.
"""

PAUSE = 0.15
"""Seconds between two strikes, at most: shorter, and no task at all would come to its end."""

MOST_IN_TURN = 2
"""Strikes that can cost the call that is first in the queue one of its three tries: no more, so
that there is no excuse for a call that never begins."""

UNNAMED = ("limit-slot", "limit-template")
"""What a supervisor is called: a fresh fork still has its parent's name."""


def square(number: int, seconds: float) -> int:
    """Take a while."""
    time.sleep(seconds)
    return number * number


def strike(who: str, number: int, seconds: float, path: str) -> None:
    """Kill or stop supervisor or template, as a task can where Landlock does not bar it.

    Tells so first. It may have lost both by then: no other process shall be hit.
    """
    time.sleep(seconds)
    supervisor = os.getppid()
    template = parent_if_there(supervisor)
    victim, name = {
        "supervisor": (supervisor, "limit-slot"),
        "template": (template, "limit-template"),
    }[who]
    if name_of(victim) == name:
        Path(path).write_text(f"{os.getpid()} {template}")
        os.kill(victim, number)
    time.sleep(60)


def parent_if_there(pid: int) -> int:
    """0 when the process has gone."""
    try:
        return parent_of(pid)
    except OSError:
        return 0


class _Attacker:
    """Kills or stops a helper of this process at a random moment, as often as it is told."""

    def __init__(self, times: int, mark: Mark) -> None:
        self.strikes: Counter[str] = Counter()
        self.struck: dict[int, int] = {}  # tasks whose supervisor was struck, and that
        self.wave: _Wave | None = None
        self._mark = mark
        self._times = times
        self._chance = random.Random(SEED)  # noqa: S311 - the same order in every run
        self._thread = threading.Thread(target=self._attack)
        self._front: tuple[_Wave | None, int] = None, 0
        self._in_turn = 0

    def begin(self) -> None:
        """Strike from now on."""
        self._thread.start()

    @property
    def goes_on(self) -> bool:
        """Whether it will strike again."""
        return self._thread.is_alive()

    def _attack(self) -> None:
        while self.strikes.total() < self._times:
            time.sleep(self._chance.uniform(0, PAUSE))
            helpers = self._helpers()
            if helpers:
                pid = self._chance.choice(sorted(helpers))
                self._strike(pid, helpers[pid])

    def _helpers(self) -> dict[int, str]:
        """Which there are, and what they are: told by their place, for they have no name at first.

        An orphan that the template has adopted is in a supervisor's place, and called a task.
        """
        parents = {pid: parent_if_there(pid) for pid in self._mark.scan()}
        templates = {pid for pid, parent in parents.items() if parent == os.getpid()}
        below = {pid for pid, parent in parents.items() if parent in templates}
        supervisors = {pid for pid in below if name_of(pid) in UNNAMED}
        return dict.fromkeys(templates, "template") | dict.fromkeys(supervisors, "supervisor")

    def _strike(self, pid: int, what: str) -> None:
        """One in ten is stopped only: the caller finds that out after some seconds."""
        number = signal.SIGSTOP if self._chance.random() < 0.1 else signal.SIGKILL
        if state_of(pid) == "T":  # by a strike before, and going on would be another's answer
            return
        try:
            os.kill(pid, signal.SIGSTOP)  # so that it has no other child when it is struck
            while state_of(pid) not in ("T", "Z", "X", ""):  # a busy machine has it run on a little
                time.sleep(0.0001)
            below = descendants(pid)
            is_early = not (below if what == "supervisor" else any(map(descendants, below)))
            if not self._may_cost_a_try():
                os.kill(pid, signal.SIGCONT)
                return
            if what == "supervisor":
                self.struck.update(dict.fromkeys(below, pid))
            os.kill(pid, number)
        except ProcessLookupError:
            return
        self.strikes[f"{'early ' if is_early else ''}{number.name} of a {what}"] += 1

    def _may_cost_a_try(self) -> bool:
        """Whether the call that waits first, if one does, has not lost too many helpers yet.

        A template takes slots with it that it waits for. So may any supervisor: one that has a
        child already may not have said so yet.
        """
        begun = 0 if self.wave is None else self.wave.begun
        front = self.wave, begun
        self._in_turn = self._in_turn + 1 if front == self._front else 1
        self._front = front
        return self._in_turn <= MOST_IN_TURN or begun == _Wave.SIZE


class _Wave:
    """Tasks at once, some of which strike their own supervisors, or their template."""

    SIZE = 80
    STRIKING: ClassVar[dict[int, tuple[str, signal.Signals]]] = {
        5: ("supervisor", signal.SIGSTOP),
        20: ("template", signal.SIGSTOP),
        40: ("supervisor", signal.SIGKILL),
        60: ("template", signal.SIGKILL),
    }

    def __init__(self, executor: LimitedProcessExecutor, chance: random.Random) -> None:
        self._place = tempfile.TemporaryDirectory()
        self._orphaned: set[int] = set()  # strikers whose template had gone before they ended
        self.futures: list[LimitedFuture[Any]] = []
        for number in range(self.SIZE):
            if number in self.STRIKING:
                args = (*self.STRIKING[number], chance.uniform(0, 0.1), self._path(number))
                self.futures.append(executor.submit(strike, *args))
                self.futures[-1].add_done_callback(partial(self._look_after, number))
            else:
                self.futures.append(executor.submit(square, number, chance.uniform(0, 0.05)))

    def _path(self, number: int) -> str:
        return f"{self._place.name}/{number}"

    def _told(self, number: int) -> tuple[int, int]:
        """Pid and template of a striker as it struck; zeros if it did not come to that."""
        try:
            pid, template = Path(self._path(number)).read_text().split()
        except (FileNotFoundError, ValueError):
            return 0, 0
        return int(pid), int(template)

    def _look_after(self, number: int, _: object) -> None:
        """At the very end of a striker, before anything else happens to its template."""
        template = self._told(number)[1]
        if state_of(template) in ("", "Z", "X") or name_of(template) != "limit-template":
            self._orphaned.add(number)

    @property
    def begun(self) -> int:
        """How many are in the queue no more."""
        return sum(future.running() or future.done() for future in self.futures)

    def wait(self) -> None:
        """TimeoutError where one has no answer."""
        for future in self.futures:
            future.exception(PATIENCE)
        self._ended = {number: self._told(number) for number in self.STRIKING}
        self._place.cleanup()

    def endings(self) -> Iterator[tuple[str, str]]:
        """Of each task: what it has struck, and the status."""
        for number, future in enumerate(self.futures):
            kind = "struck nobody"
            if number in self.STRIKING:
                who, signum = self.STRIKING[number]
                kind = f"{signum.name} of its {who}" if self._ended[number][0] else "was too late"
            yield kind, str(future.report.status) if future.report else "none"

    def wrong(self, struck: dict[int, int]) -> list[str]:
        """What is wrong with the answers."""
        found = [self._judge(number, struck) for number in range(self.SIZE)]
        lost = Counter(
            struck.get(future.report.pid or 0)
            for number, future in enumerate(self.futures)
            if future.report is not None
            and future.report.status == "supervisor_lost"
            and not self._ended.get(number, (0, 0))[0]
        )
        found += [f"{times} lost by a strike at {pid}" for pid, times in lost.items() if times > 1]
        return [each for each in found if each]

    def _judge(self, number: int, struck: dict[int, int]) -> str:
        report = self.futures[number].report
        if report is None:
            return "done without a report"
        said = f"{report.status}, task {report.pid}, after {report.wall_time:.3f} s: "
        said += report.message
        pid = self._ended.get(number, (0, 0))[0]
        if report.status == "supervisor_lost" and report.pid in struck:
            return ""
        if number not in self.STRIKING:
            right = report.status == "ok" and report.result == number * number
            return "" if right else f"struck nobody: {said}"
        who, signum = self.STRIKING[number]
        if not pid:  # another has struck before: a template's place is taken by init, say
            right = who == "template" and self._fits(number, who, signum, report)
            return "" if right else f"was to strike its {who} and did not: {said}"
        right = report.pid == pid and self._fits(number, who, signum, report)
        return "" if right else f"{signum.name} of its {who}: {said}"

    def _fits(self, number: int, who: str, signum: signal.Signals, report: Report) -> bool:
        """Whether an answer is that to a strike that has been made.

        Without its template a task has its limit all the same. So has one whose supervisor was
        stopped, if the kernel had that go on because the template was killed (setpgid(2), orphaned
        process groups): in no other case.
        """
        in_time = report.status == "wall_time" and WALL <= report.wall_time < WALL + MARGIN
        if who == "template":
            return in_time
        if signum == signal.SIGSTOP and number in self._orphaned and report.status == "wall_time":
            return report.wall_time >= WALL
        return report.status == "supervisor_lost"


def helpers_are_killed(count: int) -> Found:
    """Row 5."""
    failures: list[str] = []
    chance = random.Random(SEED)  # noqa: S311 - as above
    endings: Counter[tuple[str, str]] = Counter()
    slowest = 0.0
    mark = Mark()
    attacker = _Attacker(count, mark)
    with (
        mark.on_what_is_started(),
        LimitedProcessExecutor(
            4,
            wall_time=WALL,
            startup_time=3,
            kill_timeout=2,
            no_new_privs=False,
            preload=[__name__],
        ) as executor,
    ):
        attacker.begin()
        while attacker.goes_on:
            began = time.monotonic()
            wave = attacker.wave = _Wave(executor, chance)
            try:
                wave.wait()
            except TimeoutError:
                failures.append(f"no answer within {PATIENCE} s")
                break
            failures += wave.wrong(attacker.struck)
            endings.update(wave.endings())
            slowest = max(slowest, time.monotonic() - began)
        made = attacker.strikes.total()
        if made < count and not failures:
            failures.append(f"only {made} of {count} strikes were made: the attacker has failed")
        if executor.submit(square, 7, 0).result(PATIENCE) != 7 * 7:
            failures.append("the executor does not go on")
    mark.wait_until_gone(5)
    failures += [f"left: {name_of(pid)}" for pid in mark.scan()]
    failures += [f"zombie {pid}" for pid in zombies()]
    told = "; ".join(f"{kind}: {status} {n}" for (kind, status), n in sorted(endings.items()))
    hit = ", ".join(f"{n} {kind}" for kind, n in sorted(attacker.strikes.items()))
    worst = f"{told} (from outside {hit}), {_Wave.SIZE} tasks in {slowest:.1f} s at most"
    return Found(count, failures, worst)


CHECKS = (
    Check(
        5,
        "a helper that is killed or stopped costs the task that it watched, and no other",
        "SIGKILL or SIGSTOP to supervisors and template at random, from outside and by tasks",
        helpers_are_killed,
        200,
        10,
    ),
)
