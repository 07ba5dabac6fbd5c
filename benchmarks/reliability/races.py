"""Ends of executors at random points, and what piles up in a long life."""

from __future__ import annotations

import gc
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

from benchmarks.processes import descendants, zombies
from benchmarks.reliability.callers import Script, run_all
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.marks import Mark
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynisher_exec import LimitedFuture, Report

__all__ = ["CHECKS"]

PATIENCE = 60
SEED = 20261125


# Shutdown ----------------------------------------------------------------------------------------


class _Race:
    """One executor, and threads that use it and end it at once."""

    def __init__(self, chance: random.Random) -> None:
        self.troubles: list[str] = []
        self.futures: list[LimitedFuture[Any]] = []
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
        self._guarded(self._shut_down, 0)
        for future in self.futures:
            self._see(future)

    def _see(self, future: LimitedFuture[Any]) -> None:
        try:
            value = future.result(PATIENCE)
        except CancelledError:
            return
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
            self.futures.append(executor.submit(abs, -2))

    def _cancel(self, _: LimitedProcessExecutor) -> None:
        for future in self.futures[::2]:
            future.cancel()

    def _shut_down(self, executor: LimitedProcessExecutor) -> None:
        executor.shutdown(wait=True, cancel_futures=self._chance.random() < 0.5)

    def _kill(self, executor: LimitedProcessExecutor) -> None:
        executor.kill_workers()

    def _drop(self, _: LimitedProcessExecutor) -> None:
        self._executor = None
        gc.collect()


def shutdown_races(count: int) -> Found:
    """Row 14."""
    chance = random.Random(SEED)  # noqa: S311 - the same races in every run
    failures: list[str] = []
    complaints: list[str] = []
    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda args: complaints.append(str(args))
    sys.unraisablehook = lambda args: complaints.append(str(args))
    slowest = 0.0
    mark = Mark()
    try:
        for _ in range(count):
            began = time.monotonic()
            with mark.on_what_is_started():
                race = _Race(chance)
                race.run()
            slowest = max(slowest, time.monotonic() - began)
            failures += race.troubles
    finally:
        threading.excepthook, sys.unraisablehook = hooks
    mark.wait_until_gone(10)
    failures += [f"left: {pid}" for pid in mark.scan()]
    failures += [f"a thread raised: {line}" for line in complaints]
    exits = run_all(EXITS, max(len(EXITS), count // 20))
    return Found(
        count + exits.tries, failures + exits.failures, f"slowest {slowest:.1f} s, {exits.worst}"
    )


EXITS = (
    Script(
        "the interpreter ends with work pending, which is done first",
        """
        executor = LimitedProcessExecutor(2)
        for number in range(6):
            executor.submit(time.sleep, 0.05).add_done_callback(lambda future: print(True))
        """,
        "True\n" * 6,
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
    ),
)


# A long life -------------------------------------------------------------------------------------


def _leave(number: int) -> int:
    """End in one of several ways."""
    if number % 10 == 3:
        raise ValueError(number)
    if number % 50 == 7:
        os._exit(3)
    if number % 50 == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _right(report: Report, number: int) -> bool:
    """Whether the account says what `_leave` did."""
    if number % 10 == 3:
        return report.status == "exception" and str(report.exception) == str(number)
    if number % 50 == 7:
        return report.status == "exit" and report.exit_code == 3
    if number % 50 == 9:
        return report.status == "signal" and report.signal == signal.SIGKILL
    return report.status == "ok" and bool(report.result == number)


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4


def _held() -> tuple[int, int]:
    """KiB resident and descriptors, of this process and its helpers together."""
    pids = [os.getpid(), *descendants(os.getpid())]
    memory = descriptors = 0
    for pid in pids:
        try:
            memory += _resident(pid)
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:  # a task that has just ended
            continue
    return memory, descriptors


def soak(count: int) -> Found:
    """Row 13: the second half of a long life against the first."""
    failures: list[str] = []
    wave = 500
    marks: list[tuple[float, int, int]] = []
    with LimitedProcessExecutor(2, memory="1GiB", preload=[__name__]) as executor:
        for begin in range(0, count, wave):
            began = time.monotonic()
            reports = executor.reports(_leave, range(begin, begin + wave))
            wrong = sum(not _right(report, begin + number) for number, report in enumerate(reports))
            failures += [f"{wrong} wrong answers"] if wrong else []
            time.sleep(0.2)  # the children forked ahead are there again
            marks.append((time.monotonic() - began, *_held()))
    half = len(marks) // 2
    early, late = marks[1:half], marks[half:]
    worst = []
    for place, (what, allowed) in enumerate(
        [("seconds for 500", 1.1), ("KiB", 1.05), ("descriptors", 1.01)]
    ):
        first = statistics.median(mark[place] for mark in early)
        last = statistics.median(mark[place] for mark in late)
        worst.append(f"{what} {first:.1f} then {last:.1f}")
        failures += [f"{what} grew: {first:.1f} to {last:.1f}"] if last > allowed * first else []
    failures += [f"zombie {pid}" for pid in zombies()]
    return Found(count, failures, "; ".join(worst))


CHECKS = (
    Check(
        13,
        "memory, descriptors and throughput stay flat",
        "tasks with mixed endings on one executor",
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
