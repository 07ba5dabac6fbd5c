"""What becomes of tasks when the processes that watch over them are killed or stopped."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.processes import descendants, name_of, zombies
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.marks import Mark
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from pynisher_exec import LimitedFuture

__all__ = ["CHECKS"]

PATIENCE = 120
SEED = 20261125
HELPERS = ("limit-slot", "limit-template")


def square(number: int, seconds: float) -> int:
    """Take a while."""
    time.sleep(seconds)
    return number * number


def strike(who: str, number: int, seconds: float) -> None:
    """Kill or stop supervisor or template, as a task can where Landlock does not bar it."""
    time.sleep(seconds)
    struck = os.getppid()
    if who == "template":
        struck = int(Path(f"/proc/{struck}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(struck, number)
    time.sleep(60)


class _Attacker:
    """Kills or stops a helper of this process at a random moment, as often as it is told."""

    def __init__(self, times: int) -> None:
        self.strikes: list[str] = []
        self.struck: set[int] = set()  # tasks whose supervisor was struck
        self._times = times
        self._chance = random.Random(SEED)  # noqa: S311 - the same order in every run
        self._thread = threading.Thread(target=self._attack)

    def begin(self) -> None:
        """Strike from now on."""
        self._thread.start()

    @property
    def goes_on(self) -> bool:
        """Whether it will strike again."""
        return self._thread.is_alive()

    def _attack(self) -> None:
        while len(self.strikes) < self._times:
            time.sleep(self._chance.uniform(0, 0.1))
            helpers = [pid for pid in descendants(os.getpid()) if name_of(pid) in HELPERS]
            if helpers:
                self._strike(self._chance.choice(helpers))

    def _strike(self, pid: int) -> None:
        """One in ten is stopped only: the caller finds that out after some seconds."""
        number = signal.SIGSTOP if self._chance.random() < 0.1 else signal.SIGKILL
        name = name_of(pid)
        try:
            os.kill(pid, signal.SIGSTOP)  # so that it has no other child when it is struck
            if name == "limit-slot":
                self.struck.update(descendants(pid))
            os.kill(pid, number)
        except ProcessLookupError:
            return
        self.strikes.append(f"{number.name} {name}")


class _Wave:
    """Tasks at once, some of which strike their own supervisors, or their template."""

    SIZE = 40
    STRIKING: ClassVar[dict[int, tuple[str, int]]] = {
        13: ("supervisor", signal.SIGKILL),
        20: ("template", signal.SIGKILL),
        27: ("supervisor", signal.SIGSTOP),
        34: ("template", signal.SIGSTOP),
    }

    def __init__(self, executor: LimitedProcessExecutor, chance: random.Random) -> None:
        self.futures = [
            executor.submit(strike, *self.STRIKING[number], chance.uniform(0, 0.1))
            if number in self.STRIKING
            else executor.submit(square, number, chance.uniform(0, 0.05))
            for number in range(self.SIZE)
        ]

    def wrong(self, struck: set[int]) -> list[str]:
        """What is wrong with the answers."""
        found = [
            _wrong(number, future, None if number in self.STRIKING else struck)
            for number, future in enumerate(self.futures)
        ]
        return [each for each in found if each]

    def lost(self) -> int:
        """How many were lost that have not struck."""
        peaceful = [f for n, f in enumerate(self.futures) if n not in self.STRIKING]
        return sum(future.exception() is not None for future in peaceful)


def _wrong(number: int, future: LimitedFuture[Any], struck: set[int] | None) -> str:
    """What is wrong with an answer: it is the value, or says that a struck supervisor was lost.

    `struck` are tasks whose supervisors were struck from outside; None: this one did it itself.
    """
    try:
        error = future.exception(PATIENCE)
    except TimeoutError:
        return f"no answer to {number}"
    report = future.report
    if report is None:
        return "done without a report"
    if error is None:
        return "" if future.result() == number * number else f"a wrong value {future.result()}"
    if report.status == "startup":  # three in turn did not live long enough to take it
        return ""
    if struck is None and report.status == "wall_time":
        # It had struck its template; or had stopped its supervisor, and the kernel had that go on
        # when the template was killed.
        return ""
    right = report.status == "supervisor_lost" and (struck is None or report.pid in struck)
    return "" if right else f"{report.status}, task {report.pid}: {report.message}"


def helpers_are_killed(count: int) -> Found:
    """Row 5."""
    failures: list[str] = []
    chance = random.Random(SEED)  # noqa: S311 - as above
    lost = done = 0
    slowest = 0.0
    attacker = _Attacker(count)
    mark = Mark()
    with (
        mark.on_what_is_started(),
        LimitedProcessExecutor(
            4, wall_time=4, startup_time=3, kill_timeout=2, no_new_privs=False, preload=[__name__]
        ) as executor,
    ):
        attacker.begin()
        while attacker.goes_on:
            began = time.monotonic()
            wave = _Wave(executor, chance)
            failures += wave.wrong(attacker.struck)
            lost += wave.lost()
            done += wave.SIZE
            slowest = max(slowest, time.monotonic() - began)
        last = _wrong(7, executor.submit(square, 7, 0), set())
        failures += [f"the executor does not go on: {last}"] if last else []
    if lost > count:
        failures.append(f"{lost} tasks were lost to {count} strikes")
    mark.wait_until_gone(5)
    failures += [f"left: {name_of(pid)}" for pid in mark.scan()]
    failures += [f"zombie {pid}" for pid in zombies()]
    worst = f"{lost} of {done} tasks lost, {_Wave.SIZE} of them in {slowest:.1f} s at most"
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
