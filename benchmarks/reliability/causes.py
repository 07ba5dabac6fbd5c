"""Forty ways to end, many of them with a second cause near, on a machine that is busy otherwise."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.reliability import deeds
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.deeds import (
    burn,
    crash,
    fail,
    fail_oddly,
    fail_to_open,
    hog,
    kill_itself,
)
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pynisher_exec import LimitedFuture, Report

__all__ = ["CHECKS"]

PATIENCE = 120
SEED = 20261126
LIMIT = 0.2
NEAR = 0.004
"""Seconds around a limit within which something else happens, now before it and now after."""

CLEAR = 0.02
"""Seconds before or after a limit from which on there is no tie: what came first is the cause."""

FAR_OFF = 0.06
"""Seconds around the limit for what can tell its moment: two times in three it is clear of it."""

MIB = 1 << 20


# The scenarios -----------------------------------------------------------------------------------

Plan = tuple["Callable[..., object]", tuple[Any, ...]]


class Scenario(NamedTuple):
    """A call, made anew for each try; its limits; what may be told of its end, and what must be.

    `statuses` are all right where two causes tie. `meanwhile` acts on the future from outside.
    `tells`: the moment at which something else than the limit ends it is in a file, whose path is
    the last argument.
    """

    name: str
    plan: Callable[[random.Random], Plan]
    limits: dict[str, Any]
    statuses: tuple[str, ...]
    is_right: Callable[[Report], bool] = lambda _: True
    meanwhile: Callable[[random.Random, LimitedFuture[Any], tuple[Any, ...]], None] | None = None
    tells: bool = False


def _call(function: Callable[..., object], *args: Any, **kwargs: Any) -> Callable[..., Plan]:
    return lambda _: (partial(function, **kwargs) if kwargs else function, args)


def _near(function: Callable[..., object], *args: Any) -> Callable[[random.Random], Plan]:
    """With the moment as its first argument: about the wall limit."""
    return lambda chance: (function, (LIMIT + chance.uniform(-NEAR, NEAR), *args))


def _telling(how: str) -> Callable[[random.Random], Plan]:
    """With moment and a file to tell of it: about the wall limit, now close to it, now not."""

    def plan(chance: random.Random) -> Plan:
        path = f"{tempfile.gettempdir()}/causes-{chance.randbytes(8).hex()}"
        return deeds.tell_and, (how, LIMIT + _offset(chance), path)

    return plan


def _offset(chance: random.Random) -> float:
    return chance.uniform(*chance.choice([(-FAR_OFF, -CLEAR), (-NEAR, NEAR), (CLEAR, FAR_OFF)]))


def _or_limit(is_right: Callable[[Report], bool]) -> Callable[[Report], bool]:
    return lambda report: report.status == "wall_time" or is_right(report)


def _signal(number: int) -> Callable[[Report], bool]:
    return lambda report: report.signal == number


def _exit(code: int) -> Callable[[Report], bool]:
    return lambda report: report.exit_code == code


def _reached(limit: str | None) -> Callable[[Report], bool]:
    return lambda report: report.limit_reached == limit


def _wait_until_running(future: LimitedFuture[Any]) -> None:
    while not (future.running() or future.done()):
        time.sleep(0.001)


def _kill(_: random.Random, future: LimitedFuture[Any], args: tuple[Any, ...]) -> None:
    """Send SIGKILL to the task, as an operator does, at about its wall limit; and note when."""
    _, seconds, path = args
    while not (future.done() or _told(path)):
        time.sleep(0.001)
    if not _told(path):
        return
    pid, began = _told(path)[0][:2]
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    sending = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGKILL)
        sent = time.monotonic()
        with Path(path).open("a") as file:
            file.write(f"{sending} {sent}")


def _told(path: str) -> list[list[float]]:
    """The lines of what was told so far."""
    try:
        return [[*map(float, line.split())] for line in Path(path).read_text().splitlines()]
    except FileNotFoundError:
        return []


def _cancel(chance: random.Random, future: LimitedFuture[Any], _: tuple[Any, ...]) -> None:
    """Cancel at about the moment at which it ends."""
    _wait_until_running(future)
    time.sleep(LIMIT + chance.uniform(-NEAR, NEAR))
    future.cancel()


WALL = {"wall_time": LIMIT}
FAR = {"wall_time": 60}
"""For what ends at once: on a busy machine, that may last for as long as the other limit."""

CPU = {"cpu_time": LIMIT, "wall_time": 60}
MEMORY = {"memory": 100 * MIB, "wall_time": 60}
GRACE = {"wall_time": LIMIT, "grace_period": 1}

SCENARIOS = (
    Scenario("asleep", _call(time.sleep, 60), WALL, ("wall_time",)),
    Scenario("ignores signals", _call(deeds.ignore_signals), WALL, ("wall_time",)),
    Scenario("stopped", _call(deeds.stop_itself), WALL, ("wall_time",)),
    Scenario("busy", _call(burn), CPU, ("cpu_time",)),
    Scenario("busy in C", _call(deeds.burn_in_c), CPU, ("cpu_time",)),
    Scenario("busy children", _call(deeds.burn_in_children), CPU, ("cpu_time",)),
    Scenario("busy orphan", _call(deeds.burn_in_an_orphan), CPU, ("cpu_time",)),
    Scenario("one allocation", _call(hog, 300 * MIB), MEMORY, ("memory",)),
    Scenario("shared memory", _call(deeds.hog_shared, 300 * MIB), MEMORY, ("memory",)),
    Scenario("children's memory", _call(deeds.hog_in_children, 300 * MIB), MEMORY, ("memory",)),
    Scenario("a program's memory", _call(deeds.hog_in_a_program, 300 * MIB), MEMORY, ("memory",)),
    Scenario("MemoryError", _call(deeds.raise_memory_error), MEMORY, ("memory",)),
    Scenario("MemoryError, no limit", _call(deeds.raise_memory_error), {}, ("exception",)),
    Scenario("forks", _call(deeds.fork_too_often, swallow=False), {"processes": 3}, ("processes",)),
    Scenario(
        "forks, error swallowed",
        _call(deeds.fork_too_often, swallow=True),
        {"processes": 3},
        ("ok",),
        _reached("processes"),
    ),
    Scenario(
        "EAGAIN of a pipe", _call(deeds.find_nothing_to_read), {"processes": 3}, ("os_error",)
    ),
    Scenario("segfault", _call(crash), MEMORY, ("signal",), _signal(signal.SIGSEGV)),
    Scenario("abort", _call(os.abort), CPU, ("signal",), _signal(signal.SIGABRT)),
    Scenario("SIGKILL", _call(kill_itself, 9), {**CPU, **MEMORY}, ("signal",), _signal(9)),
    Scenario("SIGTERM", _call(kill_itself, 15), FAR, ("signal",), _signal(15)),
    Scenario("SIGQUIT", _call(kill_itself, 3), FAR, ("signal",), _signal(3)),
    Scenario("os._exit", _call(os._exit, 3), FAR, ("exit",), _exit(3)),
    Scenario("sys.exit", _call(deeds.exit_politely, 4), FAR, ("exit",), _exit(4)),
    Scenario("exit in C", _call(deeds.exit_in_c, 5), FAR, ("exit",), _exit(5)),
    Scenario("an exception", _call(fail, 7), MEMORY, ("exception",), _reached(None)),
    Scenario("an OSError", _call(fail_to_open), MEMORY, ("os_error",), _reached(None)),
    Scenario("unpicklable value", _call(threading.Lock), FAR, ("exception",)),
    Scenario("unloadable exception", _call(fail_oddly), FAR, ("exception",)),
    Scenario("unloadable call", _call(deeds.take, deeds.Unloadable()), FAR, ("startup",)),
    Scenario("child segfaults", _call(deeds.survive_a_child, 11), MEMORY, ("ok",), _reached(None)),
    Scenario(
        "program killed", _call(deeds.fail_by_a_child), MEMORY, ("exception",), _reached(None)
    ),
    Scenario(
        "busy, both clocks", _call(burn), {"cpu_time": LIMIT, "wall_time": LIMIT + 0.01},
        ("cpu_time", "wall_time"),
    ),
    Scenario(
        "memory and CPU time", _call(deeds.hog_and_burn, 100 * MIB, LIMIT), {**MEMORY, **CPU},
        ("memory", "cpu_time"),
    ),
    Scenario(
        "memory and wall time", _call(deeds.hog_slowly, 100 * MIB, LIMIT), {**MEMORY, **WALL},
        ("memory", "wall_time"),
    ),
    Scenario("returns at the limit", _near(deeds.then, "return"), WALL, ("ok", "wall_time")),
    Scenario("raises at the limit", _near(deeds.then, "raise"), WALL, ("exception", "wall_time")),
    Scenario(
        "exits at the limit", _telling("exit"), WALL, ("exit", "wall_time"), _or_limit(_exit(3)),
        tells=True,
    ),
    Scenario(
        "dies at the limit", _telling("kill"), WALL, ("signal", "wall_time"),
        _or_limit(_signal(signal.SIGKILL)), tells=True,
    ),
    Scenario(
        "crashes at the limit", _telling("segfault"), WALL, ("signal", "wall_time"),
        _or_limit(_signal(signal.SIGSEGV)), tells=True,
    ),
    Scenario("in time, but large", _call(deeds.return_much, 1.8), {"wall_time": 2}, ("ok",)),
    Scenario("sends at the limit", _near(deeds.send_much), WALL, ("ok", "wall_time")),
    Scenario(
        "killed at the limit", _telling("wait"), WALL, ("signal", "wall_time"),
        _or_limit(_signal(signal.SIGKILL)), meanwhile=_kill, tells=True,
    ),
    Scenario(
        "cancelled at the end", _near(deeds.then, "return"), {}, ("ok", "cancelled"),
        meanwhile=_cancel,
    ),
    Scenario("soft exception swallowed", _call(deeds.swallow_and, "sleep"), GRACE, ("wall_time",)),
    Scenario(
        "soft exception, returns", _call(deeds.swallow_and, "return"), GRACE, ("ok",),
        _reached("wall_time"),
    ),
    Scenario(
        "soft exception, raises", _call(deeds.swallow_and, "raise"), GRACE, ("exception",),
        _reached("wall_time"),
    ),
    Scenario("soft exception escapes", _call(time.sleep, 60), GRACE, ("wall_time",)),
    Scenario(
        "soft CPU limit, returns", _call(deeds.burn_until_told),
        {"cpu_time": LIMIT, "grace_period": 1}, ("ok",), _reached("cpu_time"),
    ),
)  # fmt: skip


# The check ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _busy_machine() -> Iterator[None]:
    """Two processes that never rest."""
    pids = []
    try:
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                burn()
            pids.append(pid)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _wrong(scenario: Scenario, future: LimitedFuture[Any], side: str) -> str:
    """Say what is wrong with an answer; empty when it is right."""
    report = future.report
    if report is None:
        return f"{scenario.name}: no report"
    if report.status not in scenario.statuses:
        return f"{scenario.name}: {report.status}, {report.message}"
    if scenario.limits == WALL and _is_on_the_wrong_side(report):
        return f"{scenario.name}: {report.status} after {report.wall_time} s of {LIMIT}"
    if side not in ("", "tie", "limit" if report.status == "wall_time" else "other"):
        took = f"{report.wall_time} s of {LIMIT}"
        return f"{scenario.name}: {report.status} after {took}, but {side} was clearly first"
    if not scenario.is_right(report):
        return f"{scenario.name}: {report.status}, but {str(report)[:300]}"
    return ""


def _is_on_the_wrong_side(report: Report) -> bool:
    """Whether a wall limit is told before it, or a function's own end after it."""
    if report.status == "wall_time":
        return report.wall_time < LIMIT
    return report.status in ("ok", "exception") and report.wall_time >= LIMIT


def _first(scenario: Scenario, report: Report | None, args: tuple[Any, ...]) -> str:
    """Which came first, by what was told: the limit, the other cause, or as good as a tie.

    The clock runs from before the function's first line. A task that says nothing of its end had
    no time to: the limit was first. Empty where nothing is to be told.
    """
    if not scenario.tells or report is None or report.started_at is None:
        return ""
    told = _told(args[-1])
    Path(args[-1]).unlink(missing_ok=True)
    if not told:
        return "untold"
    (_, began, clock), *end = told
    late = clock - report.started_at
    if late < -NEAR:
        return "a clock that had not begun"
    due = began - late + LIMIT
    if not end or end[0][0] > due + CLEAR:
        return "limit"
    return "other" if end[0][-1] < due - CLEAR else "tie"


def _try_all(
    executor: LimitedProcessExecutor, chance: random.Random, sides: Counter[str]
) -> list[str]:
    tries, threads = [], []
    for scenario in chance.sample(SCENARIOS, len(SCENARIOS)):
        function, args = scenario.plan(chance)
        future = executor.limit(**scenario.limits).submit(function, *args)
        tries.append((scenario, future, args))
        if scenario.meanwhile is not None:
            threads.append(threading.Thread(target=scenario.meanwhile, args=(chance, future, args)))
            threads[-1].start()
    for _, future, _ in tries:
        with contextlib.suppress(CancelledError):
            future.exception(PATIENCE)
    for thread in threads:
        thread.join()
    failures = []
    for scenario, future, args in tries:
        side = _first(scenario, future.report, args)
        sides[side] += 1
        failures.append(_wrong(scenario, future, side))
    return [wrong for wrong in failures if wrong]


def every_cause(count: int) -> Found:
    """Row 7."""
    chance = random.Random(SEED)  # noqa: S311 - the same moments in every run
    failures: list[str] = []
    sides: Counter[str] = Counter()
    with _busy_machine(), LimitedProcessExecutor(4, preload=[__name__]) as executor:
        for _ in range(count):
            failures += _try_all(executor, chance, sides)
    kinds = Counter(line.partition(":")[0] for line in failures)
    told = ", ".join(f"{side} {n}" for side, n in sides.most_common() if side)
    worst = f"{len(SCENARIOS)} scenarios, {sum(kinds.values())} wrong causes; first by {CLEAR} s: "
    return Found(count * len(SCENARIOS), failures, worst + told)


CHECKS = (
    Check(
        7,
        "the cause that is told is the cause, or one of two that tie",
        "scenarios in random order, beside two busy processes",
        every_cause,
        75,
        2,
    ),
)
