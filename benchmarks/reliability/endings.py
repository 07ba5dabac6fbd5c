"""Thousands of tasks that end in every way there is: each future has exactly one right answer."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import as_completed
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.processes import zombies
from benchmarks.reliability import deeds
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.deeds import burn, crash, echo, fail, hog, kill_itself
from benchmarks.reliability.marks import Mark
from pynisher_exec import (
    AnythingException,
    CpuTimeoutException,
    LimitedProcessExecutor,
    MemorylimitException,
    PynisherError,
    SubprocessException,
    TimeoutException,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from pynisher_exec import Report

__all__ = ["CHECKS", "crash", "echo", "hog"]

PATIENCE = 120
SEED = 20261125
WAVE = 200
LATE = 5.0
"""Seconds for which a limit may be late on a busy machine: this row is about what is told."""

MIB = 1 << 20

RAISED: dict[str, type[Exception]] = {
    "memory": MemorylimitException,
    "cpu_time": CpuTimeoutException,
    "wall_time": TimeoutException,
    "processes": SubprocessException,
    "signal": AnythingException,
    "exit": AnythingException,
    "startup": PynisherError,
    "os_error": OSError,
}
"""What a future gives for a status, where that is not the function's to say."""


# The kinds of ending -----------------------------------------------------------------------------


class Case(NamedTuple):
    """A call, its limits, the statuses that are right, and what its outcome must be."""

    function: Callable[..., object]
    arguments: tuple[Any, ...]
    limits: dict[str, Any]
    statuses: tuple[str, ...]
    is_right: Callable[[Report], bool] = lambda _: True


def _value(chance: random.Random) -> Case:
    size = int(10 ** chance.uniform(0, 6.5))
    data = chance.randbytes(size)
    return Case(echo, (data,), {}, ("ok",), lambda r: bool(r.result == data))


def _exception(chance: random.Random) -> Case:
    number = chance.randrange(10**9)
    return Case(fail, (number,), {}, ("exception",), lambda r: _arguments(r) == (number,))


def _arguments(report: Report) -> tuple[Any, ...]:
    return () if report.exception is None else report.exception.args


def _signal(chance: random.Random) -> Case:
    number = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGABRT])
    return Case(kill_itself, (number,), {}, ("signal",), lambda r: r.signal == number)


def _exit(chance: random.Random) -> Case:
    code = chance.choice([0, chance.randrange(1, 256)])
    way = chance.choice([os._exit, deeds.exit_politely, deeds.exit_in_c])
    return Case(way, (code,), {}, ("exit",), lambda r: r.exit_code == code)


def _memory(chance: random.Random) -> Case:
    limit = chance.randrange(20, 200) * MIB
    return Case(hog, (limit * 2,), {"memory": limit}, ("memory",))


def _memory_of_many(chance: random.Random) -> Case:
    limit = chance.randrange(20, 60) * MIB
    way = chance.choice([deeds.hog_shared, deeds.hog_in_children])
    limits = {"memory": limit, "processes": chance.choice([None, 4, 9])}
    return Case(way, (limit * 2,), limits, ("memory",))


def _memory_error(chance: random.Random) -> Case:
    """A library's own refusal: the limit's where there is one."""
    limit = chance.choice([None, 1 << 30])
    status = "exception" if limit is None else "memory"
    return Case(deeds.raise_memory_error, (), {"memory": limit}, (status,))


def _wall(chance: random.Random) -> Case:
    """Asleep, stopped, deaf or busy; the latter's other limit is far away."""
    limit, grace = chance.uniform(0.01, 0.2), chance.choice([None, 0, chance.uniform(0, 0.3)])
    ways: list[tuple[Any, ...]] = [
        (time.sleep, 60), (deeds.stop_itself,), (deeds.ignore_signals,), (burn,)
    ]  # fmt: skip
    way, *args = chance.choice(ways)
    limits = {"wall_time": limit, "grace_period": grace}
    least = limit + (grace or 0) if way in (deeds.stop_itself, deeds.ignore_signals) else limit
    return Case(
        way,
        tuple(args),
        limits,
        ("wall_time",),
        lambda r: least <= r.wall_time < limit + (grace or 0) + LATE,
    )


def _cpu(chance: random.Random) -> Case:
    limit = chance.uniform(0.02, 0.1)
    limits = {"cpu_time": limit, "wall_time": 60, "processes": None}
    way = chance.choice([burn, deeds.burn_in_c, deeds.burn_in_children])
    return Case(way, (), limits, ("cpu_time",), lambda r: r.cpu_time >= limit)


def _told(chance: random.Random) -> Case:
    """A soft exception that is caught, in time for the kill: what is returned counts."""
    limit = chance.uniform(0.02, 0.1)
    name = chance.choice(["cpu_time", "wall_time"])
    way = deeds.burn_until_told if name == "cpu_time" else deeds.swallow_and
    args = () if name == "cpu_time" else ("told",)
    return Case(
        way,
        args,
        {name: limit, "grace_period": 10},
        ("ok",),
        lambda r: r.limit_reached == name and r.result == "told",
    )


def _forks(chance: random.Random) -> Case:
    limit, swallow = chance.randrange(6), chance.random() < 0.5
    return Case(
        _Forks(swallow=swallow),
        (),
        {"processes": limit},
        ("ok" if swallow else "processes",),
        lambda r: r.limit_reached == "processes" and r.peak_processes <= limit,
    )


class _Forks:
    """`fork_too_often`, by keyword."""

    __name__ = "forks"

    def __init__(self, *, swallow: bool) -> None:
        self._swallow = swallow

    def __call__(self) -> str:
        return deeds.fork_too_often(swallow=self._swallow)


def _child(chance: random.Random) -> Case:
    """A child that is killed is no end of the task's own."""
    number = chance.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
    limits = {"processes": chance.choice([None, 1, 5])}
    return Case(deeds.survive_a_child, (number,), limits, ("ok",), lambda r: r.result == -number)


def _tie(chance: random.Random) -> Case:
    size, seconds = chance.randrange(20, 60) * MIB, chance.uniform(0.05, 0.2)
    limits = {"memory": size, "cpu_time": seconds}
    return Case(deeds.hog_and_burn, (size, seconds), limits, ("memory", "cpu_time"))


def _rlimit(chance: random.Random) -> Case:
    if chance.random() < 0.5:
        limits, way = {"open_files": chance.randrange(64, 200)}, deeds.open_too_many
        number = errno.EMFILE
    else:
        limits, way = {"file_size": chance.randrange(1, 100) << 14}, deeds.write_too_much
        number = errno.EFBIG
    return Case(way, (), limits, ("os_error",), lambda r: r.os_errno == number)


def _untravelling(chance: random.Random) -> Case:
    """On its way to the task, or back."""
    if chance.random() < 0.5:
        thing = chance.choice([deeds.Untravelling("loaded"), deeds.Unloadable()])
        return Case(deeds.take, (thing,), {}, ("startup",))
    when = chance.choice(["pickled", "loaded"])
    return Case(deeds.Untravelling, (when,), {}, ("exception",))


def _plain(function: Callable[..., object], status: str) -> Callable[[random.Random], Case]:
    return lambda _: Case(function, (), {}, (status,))


KINDS: tuple[tuple[int, Callable[[random.Random], Case]], ...] = (
    (30, _value),
    (10, _exception),
    (10, _signal),
    (10, _exit),
    (8, _memory),
    (1, _memory_of_many),
    (2, _memory_error),
    (8, _wall),
    (1, _cpu),
    (2, _told),
    (3, _forks),
    (2, _child),
    (1, _tie),
    (3, _rlimit),
    (3, _untravelling),
    (5, _plain(crash, "signal")),
    (5, _plain(deeds.fail_oddly, "exception")),
    (5, _plain(deeds.fail_to_open, "os_error")),
    (4, _plain(threading.Lock, "exception")),
)


def _with_room(case: Case, chance: random.Random) -> Case:
    """Add limits of every sort that it does not come near; what it has itself stays."""
    room = {
        "memory": chance.randrange(1 << 30, 4 << 30),
        "cpu_time": chance.uniform(20, 60),
        "wall_time": chance.uniform(60, 90),
        "processes": chance.choice([0, 1, 8]),
        "open_files": chance.randrange(64, 1000),
        "file_size": chance.randrange(MIB, 1 << 30),
        "core_size": 0,  # else crashes leave their files here
        "capture_output": chance.choice([True, 1 << 16]),
    }
    given = {name: value for name, value in room.items() if chance.random() < 0.25} | case.limits
    clocks = given.get("cpu_time") or given.get("wall_time")
    if clocks and "grace_period" not in given and chance.random() < 0.5:
        given["grace_period"] = chance.uniform(0, 0.3)
    return case._replace(limits=given)


# The check ---------------------------------------------------------------------------------------


class Trial:
    """One task, whatever is told of it, and perhaps a cancellation at some moment."""

    def __init__(
        self, executor: LimitedProcessExecutor, chance: random.Random, calls: list[int]
    ) -> None:
        weights = [weight for weight, _ in KINDS]
        self.case = case = _with_room(chance.choices(KINDS, weights)[0][1](chance), chance)
        self.said_cancelled: bool | None = None
        self._called_back: list[Report | None] = []
        self._calls, self._number = calls, len(calls)
        calls.append(0)
        self.times = 0  # that it was told to be done
        self.future = executor.limit(**case.limits).submit(case.function, *case.arguments)
        self.future.add_done_callback(self._note)
        when = chance.choice([(chance.uniform(0, 1), False), (chance.uniform(0, 0.05), True)])
        self.canceller = threading.Thread(target=self._cancel, args=when, daemon=True)
        if chance.random() < 0.1:
            self.canceller.start()

    def _note(self, _: Future[object]) -> None:
        self._called_back.append(self.future.report)
        self._calls[self._number] += 1

    def _cancel(self, seconds: float, running: bool) -> None:  # noqa: FBT001 - a thread's
        """At some moment: most tasks wait then. Or at some moment after it has begun."""
        while running and not (self.future.running() or self.future.done()):
            time.sleep(0.005)
        time.sleep(seconds)
        self.said_cancelled = self.future.cancel()

    def wrong(self) -> str:
        """Say what is wrong with the answer; empty when it is right."""
        what = self._wrong()
        name, report = self.case.function.__name__, self.future.report
        return f"{name} {self.case.limits}: {what}: {str(report)[:400]}" if what else ""

    def _wrong(self) -> str:
        report = self.future.report
        if report is None:
            return "done without a report"
        if bool(self.said_cancelled) != self.future.cancelled():
            return f"cancel() said {self.said_cancelled}"
        if self.future.cancelled():
            return "" if report.status == "cancelled" else "cancelled, and the report does not say"
        if report.status not in self.case.statuses:
            return f"not {self.case.statuses}"
        if not self.case.is_right(report):
            return "a wrong account"
        if not self._is_told_alike(report):
            return "future and report differ"
        return "" if self._is_limited(report) else "not the limits that were given"

    def _is_told_alike(self, report: Report) -> bool:
        error = self.future.exception(0)
        if report.status == "ok":
            return error is None and self.future.result(0) is report.result
        kind = RAISED.get(str(report.status), Exception)
        return error is report.exception and isinstance(error, kind)

    def _is_limited(self, report: Report) -> bool:
        given = {name: value for name, value in self.case.limits.items() if value is not None}
        captures = given.pop("capture_output", None) is not None
        told = {name: report.limits[name].value for name in given if name in report.limits}
        return told == given and captures == (report.stdout is not None)

    def ending(self) -> str:
        """The status; of one that was cancelled, whether it ran."""
        report = self.future.report
        if report is None:
            return "none"
        ran = report.status == "cancelled" and report.started_at is not None
        return "cancelled-running" if ran else str(report.status)

    def several(self) -> bool:
        """Whether it has more than one limit."""
        return sum(value is not None for value in self.case.limits.values()) > 1

    def told_again(self) -> str:
        """What is wrong with its being told: more than once, or not the same."""
        reports = self._called_back
        if (len(reports), self.times) != (1, 1):
            return f"told {self.times} times, called back {len(reports)} times: {self.case}"
        return "" if reports[0] is self.future.report else f"two reports of one: {self.case}"


def _try_some(trials: list[Trial]) -> list[str]:
    """Wait for all. TimeoutError where one has no answer."""
    by_future: dict[Future[object], Trial] = {trial.future: trial for trial in trials}
    for future in as_completed(by_future, PATIENCE):
        by_future[future].times += 1
    for trial in trials:
        if trial.canceller.ident is not None:
            trial.canceller.join()
    return [wrong for trial in trials if (wrong := trial.wrong())]


def every_ending(count: int) -> Found:
    """Row 6: a seeded order of endings, with limits, sizes and cancellations at random."""
    chance = random.Random(SEED)  # noqa: S311 - the same cases in every run
    failures: list[str] = []
    statuses: Counter[str] = Counter()
    limits: Counter[bool] = Counter()
    calls: list[int] = []  # of each task's callback, to the end
    mark = Mark()
    with mark.on_what_is_started(), LimitedProcessExecutor(4, preload=[__name__]) as executor:
        for begin in range(0, count, WAVE):
            trials = [
                Trial(executor, chance, calls) for _ in range(begin, min(count, begin + WAVE))
            ]
            try:
                failures += _try_some(trials)
            except TimeoutError:
                hung = [str(trial.case)[:400] for trial in trials if not trial.future.done()]
                return Found(count, hung or ["told to nobody"], "hangs")
            failures += [again for trial in trials if (again := trial.told_again())]
            statuses.update(trial.ending() for trial in trials)
            limits.update(trial.several() for trial in trials)
    failures += [f"called back {times} times in all" for times in calls if times != 1]
    failures += [f"left: {pid}" for pid in mark.scan()]
    failures += [f"zombie {pid}" for pid in zombies()]
    told = " ".join(f"{name} {n}" for name, n in statuses.most_common())
    return Found(count, failures, f"{told}; {limits[True]} with several limits")


CHECKS = (
    Check(
        6,
        "every future has exactly one right answer",
        "endings, values, limits and cancellations at random, 4 slots",
        every_ending,
        10_000,
        300,
    ),
)
