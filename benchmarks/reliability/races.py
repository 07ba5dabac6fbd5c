"""Ends of executors at random points, and what piles up in a long life."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import signal
import statistics
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import descendants, name_of, zombies
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.marks import Mark
from benchmarks.reliability.scripts import GONE_WITHIN, Script, run_all
from benchmarks.rows import fork_and_wait, timed
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynisher_exec import LimitedFuture

__all__ = ["CHECKS"]

PATIENCE = 60
SEED = 20261125
MEMORY = 1 << 30


# Shutdown ----------------------------------------------------------------------------------------


def two_after(seconds: float) -> int:
    """Run for a while."""
    time.sleep(seconds)
    return 2


class _Race:
    """One executor, and threads that use it and end it at once."""

    def __init__(self, chance: random.Random) -> None:
        self.troubles: list[str] = []
        self.futures: list[LimitedFuture[Any]] = []
        self._may_cancel = False
        self._executor: LimitedProcessExecutor | None = LimitedProcessExecutor(2)
        self._chance = chance

    def run(self) -> None:
        """Start it all, and see it all end."""
        actions = self._chance.choices(
            [self._submit, self._cancel, self._shut_down, self._kill, self._drop], k=4
        )
        pauses = [self._chance.uniform(0, 0.3) for _ in actions]
        threads = [
            threading.Thread(target=self._guarded, args=(action, pause), daemon=True)
            for action, pause in zip([self._submit, *actions], [0.0, *pauses], strict=False)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            if thread.is_alive():
                self.troubles.append("a thread hangs")
        last = threading.Thread(target=self._guarded, args=(self._shut_down, 0), daemon=True)
        last.start()
        last.join(PATIENCE)
        if last.is_alive():
            self.troubles.append("the last shutdown hangs")
        for future in self.futures:
            self._see(future)

    def _see(self, future: LimitedFuture[Any]) -> None:
        try:
            value = future.result(PATIENCE)
        except CancelledError:
            if not self._may_cancel:
                self.troubles.append("cancelled by nobody")
        except TimeoutError:
            self.troubles.append(f"no answer: {future}")
        else:
            if value != 2:
                self.troubles.append(f"a wrong value: {value}")

    def _guarded(self, action: Callable[[LimitedProcessExecutor], None], pause: float) -> None:
        time.sleep(pause)
        executor = self._executor
        try:
            if executor is not None:
                action(executor)
        except BaseException as error:  # noqa: BLE001 - whatever comes is what is looked for
            if not (isinstance(error, RuntimeError) and "shutdown" in str(error)):
                self.troubles.append(f"{action.__name__}: {error!r}")

    def _submit(self, executor: LimitedProcessExecutor) -> None:
        for _ in range(5):
            seconds = self._chance.choice([0, 0, 0, 0.02, 0.1])
            self.futures.append(executor.submit(two_after, seconds))

    def _cancel(self, _: LimitedProcessExecutor) -> None:
        self._may_cancel = True
        for future in self.futures[::2]:
            future.cancel()

    def _shut_down(self, executor: LimitedProcessExecutor) -> None:
        cancels = self._chance.random() < 0.5
        self._may_cancel |= cancels
        executor.shutdown(wait=True, cancel_futures=cancels)

    def _kill(self, executor: LimitedProcessExecutor) -> None:
        self._may_cancel = True
        executor.kill_workers()

    def _drop(self, _: LimitedProcessExecutor) -> None:
        self._executor = None
        gc.collect()


class _Complaints(logging.Handler):
    """All that is raised where nobody can catch it, or logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Hear a line of a log."""
        self.heard.append(f"logged: {self.format(record)}"[:400])

    def __enter__(self) -> list[str]:
        self._hooks = threading.excepthook, sys.unraisablehook
        threading.excepthook = lambda args: self.heard.append(f"a thread raised: {args}")
        sys.unraisablehook = lambda args: self.heard.append(f"unraisable: {args}")
        logging.getLogger().addHandler(self)
        return self.heard

    def __exit__(self, *_: object) -> None:
        threading.excepthook, sys.unraisablehook = self._hooks
        logging.getLogger().removeHandler(self)


def _one_race(chance: random.Random) -> list[str]:
    """Run one, and see its processes go."""
    mark = Mark()
    with mark.on_what_is_started():
        race = _Race(chance)
        race.run()
    mark.wait_until_gone(GONE_WITHIN)
    left = mark.scan()
    deadline = time.monotonic() + GONE_WITHIN
    while (unreaped := zombies()) and time.monotonic() < deadline:
        time.sleep(0.002)
    failures = [f"left: {name_of(pid)} {pid}" for pid in left]
    return [*race.troubles, *failures, *(f"zombie: {name_of(pid)} {pid}" for pid in unreaped)]


def shutdown_races(count: int) -> Found:
    """Row 14."""
    chance = random.Random(SEED)  # noqa: S311 - the same races in every run
    failures: list[str] = []
    slowest = 0.0
    with _Complaints() as complaints:
        for _ in range(count):
            began = time.monotonic()
            failures += _one_race(chance)
            slowest = max(slowest, time.monotonic() - began)
    exits = run_all(EXITS, max(len(EXITS), count // 20))
    at_random = run_all(EXITS_AT_RANDOM, max(1, count // 20))
    tries = count + exits.tries + at_random.tries
    failures += [*complaints, *exits.failures, *at_random.failures]
    return Found(tries, failures, f"slowest {slowest:.1f} s, {exits.worst}")


EXITS = (
    Script(
        "the interpreter ends with work pending, which is done first",
        """
        executor = LimitedProcessExecutor(2)
        for number in range(6):
            executor.submit(time.sleep, 0.05).add_done_callback(lambda future: print(True))
        """,
        "True\n" * 6,
        quiet=True,
    ),
    Script(
        "the interpreter ends by an exception, the executor was never shut down",
        """
        executor = LimitedProcessExecutor(2)
        print(answers(executor))
        executor.submit(time.sleep, 0.1)
        sys.exit(3)
        """,
        code=3,
        quiet=True,
    ),
    Script(
        "the process ends at once, with tasks running",
        """
        executor = LimitedProcessExecutor(2)
        print(answers(executor), flush=True)
        executor.submit(time.sleep, 60)
        os._exit(4)
        """,
        code=4,
        quiet=True,
    ),
    Script(
        "the interpreter ends while other threads submit and shut down",
        """
        executor = LimitedProcessExecutor(2)
        print(answers(executor))
        def work():
            try:
                while True:
                    executor.submit(abs, -1)
                    time.sleep(0.002)
            except RuntimeError:
                pass
        threads = [threading.Thread(target=work) for _ in range(3)]
        threads.append(threading.Timer(0.2, executor.shutdown))
        for thread in threads:
            thread.start()
        """,
        quiet=True,
    ),
)

EXIT_AT_RANDOM = """
import gc, random
chance = random.Random({seed})
executors = [LimitedProcessExecutor(2)]
futures = []
def submit(executor):
    for _ in range(5):
        futures.append(executor.submit(time.sleep, chance.uniform(0, 0.1)))
def cancel(executor):
    for future in futures[::2]:
        future.cancel()
def shut_down(executor):
    executor.shutdown(cancel_futures=chance.random() < 0.5)
def kill(executor):
    executor.kill_workers()
def drop(executor):
    executors.clear()
    del executor
    gc.collect()
def act(action, pause):
    time.sleep(pause)
    try:
        if executors:
            action(executors[0])
    except RuntimeError as error:  # it has been shut down, or the interpreter ends
        if "shutdown" not in str(error):
            raise
actions = [submit, *chance.choices([submit, cancel, shut_down, kill, drop], k=4)]
for action in actions:
    threading.Thread(target=act, args=(action, chance.uniform(0, 0.3)), daemon=True).start()
time.sleep(chance.uniform(0, 0.4))
"""

EXITS_AT_RANDOM = tuple(
    Script(
        f"the interpreter ends at a random point, {seed}",
        EXIT_AT_RANDOM.format(seed=seed),
        "",
        quiet=True,
    )
    for seed in range(100)
)


# A long life -------------------------------------------------------------------------------------


WAVE = 250
FORKS = 40
JUDGED = 10_000
"""Fewer tasks than these have no steady pace to be judged by."""


def _leave(number: int) -> int:
    """End in one of several ways."""
    if number % 10 == 3:
        raise ValueError(number)
    match number % 50:
        case 7:
            os._exit(3)
        case 9:
            os.kill(os.getpid(), signal.SIGKILL)
        case 11 | 21:
            time.sleep(PATIENCE)
        case 31:
            return len(bytearray(2 * MEMORY))
    return number


def _right(future: LimitedFuture[Any], number: int) -> bool:
    """Whether the account says what `_leave` did, or what was done to it."""
    with contextlib.suppress(CancelledError):
        future.exception(PATIENCE)
    report = future.report
    if report is None:
        return False
    if number % 10 == 3:
        return report.status == "exception" and str(report.exception) == str(number)
    match number % 50:
        case 7:
            return report.status == "exit" and report.exit_code == 3
        case 9:
            return report.status == "signal" and report.signal == signal.SIGKILL
        case 11:
            return report.status == "wall_time"
        case 21:
            return report.status == "cancelled"
        case 31:
            return report.status == "memory"
    return report.status == "ok" and bool(report.result == number)


def _wave(executor: LimitedProcessExecutor, begin: int) -> int:
    """Run some tasks to their ends; how many of the answers are wrong."""
    futures = {}
    for number in range(begin, begin + WAVE):
        wall_time = 0.02 if number % 50 == 11 else PATIENCE
        futures[number] = executor.limit(wall_time=wall_time).submit(_leave, number)
    for number, future in futures.items():
        if number % 50 == 21:
            future.cancel()
    return sum(not _right(future, number) for number, future in futures.items())


def _held() -> dict[str, int]:
    """KiB resident of this process and its helpers, by what they are, and all their descriptors.

    Without the one ring of pinned pages that a supervisor may hold: it has that from a brief call
    on, and a fresh one that follows it has none. Two would be a leak.
    """
    held = {"KiB of the caller": 0, "KiB of the template": 0, "KiB of supervisors": 0}
    held["descriptors"] = 0
    kinds = {"limit-template": "KiB of the template", "limit-slot": "KiB of supervisors"}
    for pid in [os.getpid(), *descendants(os.getpid())]:
        kind = "KiB of the caller" if pid == os.getpid() else kinds.get(name_of(pid), "")
        try:
            memory = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4
            files = list(Path(f"/proc/{pid}/fd").iterdir())
            links = [str(file.readlink()) for file in files if file.is_symlink()]
        except OSError:  # a task that has just ended
            continue
        held["descriptors"] += len(links) - ("anon_inode:[io_uring]" in links)
        if kind:
            held[kind] += memory
    return held


def _held_at_rest() -> dict[str, int]:
    """The same when nothing changes any more: the children forked ahead are there again."""
    deadline = time.monotonic() + PATIENCE
    held, before = _held(), None
    while held != before and time.monotonic() < deadline:
        time.sleep(0.05)  # nothing tells that a child has been forked ahead
        held, before = _held(), held
    return held


def fork_often() -> None:
    """What a raw fork costs now."""
    for _ in range(FORKS):
        fork_and_wait()


def soak(count: int) -> Found:
    """Row 13: the second half of a long life against the first."""
    failures: list[str] = []
    marks: list[dict[str, float]] = []
    with LimitedProcessExecutor(2, memory=MEMORY, preload=[__name__]) as executor:
        for begin in range(0, count, WAVE):
            began = time.monotonic()
            wrong = _wave(executor, begin)
            failures += [f"{wrong} wrong answers"] if wrong else []
            took = time.monotonic() - began
            held = _held_at_rest()
            # In forks of this process: the pace of the machine itself comes and goes.
            forks = timed(fork_often) / FORKS
            marks.append({f"forks for {WAVE}": took * 1000 / forks, **held})
    half = len(marks) // 2
    worst = []
    for what in marks[0]:
        first = statistics.median(mark[what] for mark in marks[1:half])
        last = statistics.median(mark[what] for mark in marks[half:])
        worst.append(f"{what} {first:.2f} then {last:.2f}")
        allowed = 1.1 if count >= JUDGED or "forks" not in what else 3
        allowed = 1.0 if what == "descriptors" else allowed
        failures += [f"{what} grew: {first:.2f} to {last:.2f}"] if last > allowed * first else []
    failures += [f"{what}: none seen" for what, held in marks[-1].items() if not held]
    failures += [f"zombie {pid}" for pid in zombies()]
    return Found(count, failures, "; ".join(worst))


CHECKS = (
    Check(
        13,
        "memory, descriptors and throughput stay flat",
        "values, exceptions, exits, signals, limits and cancellations on one executor",
        soak,
        100_000,
        2_000,
    ),
    Check(
        14,
        "no order of ends hangs, raises in a thread or leaves a process",
        "submit, cancel, shutdown, kill_workers, last reference dropped, interpreter exit; threads",
        shutdown_races,
        2_000,
        20,
    ),
)
