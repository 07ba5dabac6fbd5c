"""Thousands of tasks that end in every way there is: each future has exactly one right answer."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import threading
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.processes import zombies
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.marks import Mark
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynisher_exec import LimitedFuture, Report

__all__ = ["CHECKS"]

PATIENCE = 120
SEED = 20261125


class Oddity(Exception):  # noqa: N818 - it is named for what it is
    """Cannot be loaded: it is made with two arguments and pickles as if with one."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def echo(data: bytes) -> bytes:
    """Give back what came."""
    return data


def fail(number: int) -> None:
    """Raise with a number that the caller knows."""
    raise ValueError(number)


def fail_oddly() -> None:
    """Raise what cannot be loaded."""
    first = "one"
    raise Oddity(first, "two")


def fail_to_open() -> None:
    """Raise the kernel's own error."""
    os.open("/nowhere/at/all", os.O_RDONLY)


def crash() -> None:
    """Read at address 0."""
    ctypes.string_at(0)


def kill_itself(number: int) -> None:
    """End by a signal."""
    os.kill(os.getpid(), number)
    time.sleep(60)


def hog(size: int) -> int:
    """Ask for memory."""
    return len(bytearray(size))


def burn() -> None:
    """Use CPU time for ever."""
    while True:
        pass


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
    return Case(echo, (data,), {}, ("ok",), lambda report: bool(report.result == data))


def _exception(chance: random.Random) -> Case:
    number = chance.randrange(10**9)
    return Case(fail, (number,), {}, ("exception",), lambda r: _arguments(r) == (number,))


def _arguments(report: Report) -> tuple[Any, ...]:
    return () if report.exception is None else report.exception.args


def _signal(chance: random.Random) -> Case:
    number = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGABRT])
    return Case(kill_itself, (number,), {}, ("signal",), lambda r: r.signal == number)


def _exit(chance: random.Random) -> Case:
    code = chance.randrange(1, 256)
    return Case(os._exit, (code,), {}, ("exit",), lambda r: r.exit_code == code)


def _memory(chance: random.Random) -> Case:
    limit = chance.randrange(20, 200) << 20
    return Case(hog, (limit * 2,), {"memory": limit}, ("memory",))


def _wall(chance: random.Random) -> Case:
    limit = chance.uniform(0.01, 0.2)
    return Case(
        time.sleep,
        (60,),
        {"wall_time": limit},
        ("wall_time",),
        lambda r: limit <= r.wall_time < limit + 5,
    )


def _cpu(chance: random.Random) -> Case:
    limit = chance.uniform(0.02, 0.1)
    return Case(burn, (), {"cpu_time": limit, "wall_time": 60}, ("cpu_time",))


def _plain(function: Callable[..., object], status: str) -> Callable[[random.Random], Case]:
    return lambda _: Case(function, (), {}, (status,))


KINDS: tuple[tuple[int, Callable[[random.Random], Case]], ...] = (
    (30, _value),
    (10, _exception),
    (10, _signal),
    (10, _exit),
    (8, _memory),
    (8, _wall),
    (2, _cpu),
    (5, _plain(crash, "signal")),
    (5, _plain(fail_oddly, "exception")),
    (5, _plain(fail_to_open, "os_error")),
    (4, _plain(threading.Lock, "exception")),
)


def _verdict(case: Case, future: LimitedFuture[Any], *, cancelled: bool) -> str:
    """Say what is wrong with an answer; empty when it is right."""
    report = future.report
    if report is None:
        return f"{case.function.__name__}: done without a report"
    if cancelled and future.cancelled():
        return "" if report.status == "cancelled" else f"cancelled, and the report says {report}"
    if report.status not in case.statuses:
        return f"{case.function.__name__} {case.limits}: {report.status}, {report.message}"
    if not case.is_right(report):
        return f"{case.function.__name__}: a wrong {report.status}: {str(report)[:300]}"
    return ""


def _count(answers: Counter[int], number: int, _: object) -> None:
    answers[number] += 1


def every_ending(count: int) -> Found:
    """Row 6: a seeded order of endings, with limits, sizes and cancellations at random."""
    chance = random.Random(SEED)  # noqa: S311 - the same cases in every run
    weights = [weight for weight, _ in KINDS]
    answers: Counter[int] = Counter()
    failures: list[str] = []
    statuses: Counter[str] = Counter()
    mark = Mark()
    with mark.on_what_is_started(), LimitedProcessExecutor(4, preload=[__name__]) as executor:
        for begin in range(0, count, 200):
            wave = []
            for number in range(begin, min(count, begin + 200)):
                case = chance.choices(KINDS, weights)[0][1](chance)
                future = executor.limit(**case.limits).submit(case.function, *case.arguments)
                future.add_done_callback(partial(_count, answers, number))
                wave.append((case, future, chance.random() < 0.1))
            for _, future, cancel in wave:
                if cancel:
                    threading.Timer(chance.uniform(0, 1), future.cancel).start()
            for case, future, cancel in wave:
                try:
                    future.exception(PATIENCE)
                except TimeoutError:
                    return Found(count, [f"no answer: {case}"], "hangs")
                except BaseException:  # noqa: BLE001, S110 - CancelledError is none of Exception's
                    pass
                wrong = _verdict(case, future, cancelled=cancel)
                failures += [wrong] if wrong else []
                statuses[str(future.report.status) if future.report else "none"] += 1
    failures += [f"{times} answers of one" for times in answers.values() if times != 1]
    failures += ["some without an answer"] if len(answers) != count else []
    failures += [f"left: {pid}" for pid in mark.scan()]
    failures += [f"zombie {pid}" for pid in zombies()]
    return Found(count, failures, " ".join(f"{name} {n}" for name, n in statuses.most_common()))


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
