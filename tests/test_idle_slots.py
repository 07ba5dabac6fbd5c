"""Slots that have nothing to do are replaced by fresh ones, which take less memory."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import plain
import pytest
from conftest import descendant_pids, name_of, wait_until

from pynisher_exec import LimitedProcessExecutor
from pynisher_exec.caller import roster, slot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pynisher_exec.caller.inbox import PoolOptions

PATIENCE = 30
MANY = 200


def named(name: str) -> set[int]:
    """Give the processes below this one that have this name."""
    return {pid for pid in descendant_pids() if name_of(pid) == name}


def supervisors() -> set[int]:
    """Give those that there are."""
    return named("limit-slot")


def own_memory() -> int:
    """KiB that supervisors and tasks do not share; 0 where they cannot be read."""
    total = 0
    for pid in supervisors() | named("limit-task"):
        with contextlib.suppress(OSError):  # it has just ended
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Private_Dirty:"):
                    total += int(line.split()[1])
    return total


def only_one_not_in(before: set[int]) -> set[int]:
    """Give the only supervisor, if there is one and it was not there before."""
    now = supervisors()
    return now if len(now) == 1 and before.isdisjoint(now) else set()


def note_pid(path: Path) -> int:
    """Write down who has run this."""
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return os.getpid()


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """No more of them may be open than there are."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_slot_without_calls_is_followed_by_one_that_takes_less_memory() -> None:
    """Neither its supervisor nor its child has done what makes calls fast; they work as ever."""
    with LimitedProcessExecutor(1, memory="1GiB", wall_time=60, preload=[]) as executor:
        files = [len(executor.submit(plain.open_files).result(PATIENCE)) for _ in range(20)]
        time.sleep(0.3 * slot.FRESH_AFTER)  # nothing tells that the next child has prepared itself
        before, most = supervisors(), own_memory()
        (fresh,) = wait_until(lambda: only_one_not_in(before))
        wait_until(lambda: 0 < own_memory() < 0.6 * most / len(before))
        assert executor.submit(os.getppid).result(PATIENCE) == fresh
        assert len(executor.submit(plain.open_files).result(PATIENCE)) == files[-1]


def test_slot_that_has_done_nothing_stays() -> None:
    """It is as fresh as another would be."""
    with LimitedProcessExecutor(1, preload=[]) as executor:
        executor.submit(abs, -1).result(PATIENCE)
        before = supervisors()
        fresh = wait_until(lambda: only_one_not_in(before))
        time.sleep(3 * slot.FRESH_AFTER)  # nothing tells that nothing happens
        assert supervisors() == fresh


@pytest.mark.parametrize("most", [None, 50])
def test_process_that_serves_many_calls_stays(most: int | None) -> None:
    """What calls have left in it is the user's choice."""
    with LimitedProcessExecutor(1, preload=[], max_tasks_per_child=most) as executor:
        pid = executor.submit(os.getpid).result(PATIENCE)
        time.sleep(2 * slot.FRESH_AFTER)  # nothing tells that nothing happens
        assert executor.submit(os.getpid).result(PATIENCE) == pid


def test_calls_that_come_as_slots_are_replaced_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in the process that its future tells of, and no more slots are there afterwards."""
    monkeypatch.setattr(slot, "FRESH_AFTER", 0.02)
    monkeypatch.setattr(roster, "LONGEST_REST", 0.02)
    seen = set()
    with LimitedProcessExecutor(4, preload=[]) as executor:
        for number in range(MANY):
            notes = [tmp_path / f"{number} {each}" for each in range(number % 4 + 1)]
            pids = list(executor.map(note_pid, notes, timeout=PATIENCE))
            assert [note.read_text().split() for note in notes] == [[str(pid)] for pid in pids]
            seen |= supervisors()
            time.sleep(0.02 + number % 10 * 0.001)  # at any moment of a replacement
            # One beyond the workers, and one that comes up; those that are let go need a moment.
            wait_until(lambda: len(supervisors()) <= 4 + 2)
        wait_until(lambda: len(supervisors()) == 4)
    assert len(seen) > MANY


def test_calls_stay_with_the_slot_that_works() -> None:
    """One that has followed another that was not needed has no part in them."""
    with LimitedProcessExecutor(2, preload=[]) as executor:
        list(executor.map(time.sleep, [0.2, 0.2], timeout=PATIENCE))
        before = supervisors()
        served: list[int] = []
        after = 0
        while after < 5:
            wait_until(lambda: len(named("limit-task")) >= len(supervisors()))
            time.sleep(0.02)  # until that has been announced; much less than makes a slot stale
            served.append(executor.submit(os.getppid).result(PATIENCE))
            after += not before <= supervisors()
        assert len(set(served)) == 1


def test_replacement_that_fails_is_tried_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a slot has been idle."""
    starts = []
    monkeypatch.setattr(slot, "FRESH_AFTER", 0.05)
    monkeypatch.setattr(roster, "LONGEST_REST", 0.2)
    begin = slot.Slot.open

    def note(self: slot.Slot, pool: PoolOptions, *, slim: bool = False) -> None:
        if slim:
            starts.append(time.monotonic())
            raise OSError
        begin(self, pool, slim=slim)

    monkeypatch.setattr(slot.Slot, "open", note)
    with LimitedProcessExecutor(1, preload=[]) as executor:
        executor.submit(abs, -1).result(PATIENCE)
        wait_until(lambda: len(starts) == 6)
        assert executor.submit(abs, -1).result(PATIENCE) == 1
    assert starts[-1] - starts[0] >= 0.1 + 4 * 0.2 - 0.01


def let_one_hang(monkeypatch: pytest.MonkeyPatch, *, replacement: bool) -> threading.Event:
    """Have the first slot that is started, or the first replacement, never come up; tell of it."""
    hangs = threading.Event()
    begin = slot.Slot.open

    def note(self: slot.Slot, pool: PoolOptions, *, slim: bool = False) -> None:
        begin(self, pool, slim=slim)
        if slim is replacement and not hangs.is_set():
            self._reactor.ignore(self._control.fileno())
            hangs.set()

    monkeypatch.setattr(slot.Slot, "open", note)
    return hangs


@pytest.mark.parametrize("most", [1, 2])
def test_replacement_that_hangs_delays_no_call(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """It is of no use to one with other variables, which gets a slot of its own."""
    monkeypatch.setattr(slot, "FRESH_AFTER", 0.1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    hangs = let_one_hang(monkeypatch, replacement=True)
    with LimitedProcessExecutor(most, preload=[], startup_time=2 * PATIENCE) as executor:
        executor.submit(abs, -1).result(PATIENCE)
        assert hangs.wait(PATIENCE)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert executor.submit(abs, -1).result(PATIENCE) == 1


def test_replacement_that_hangs_takes_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many calls run at once as may: two that wait for each other."""
    monkeypatch.setattr(slot, "FRESH_AFTER", 0.1)
    hangs = let_one_hang(monkeypatch, replacement=True)
    meeting = tmp_path / "meeting"
    os.mkfifo(meeting)
    with LimitedProcessExecutor(2, preload=[], startup_time=2 * PATIENCE) as executor:
        executor.submit(abs, -1).result(PATIENCE)
        assert hangs.wait(PATIENCE)
        found = executor.submit(meeting.read_text)
        executor.submit(meeting.write_text, "met")
        assert found.result(PATIENCE) == "met"


def test_slot_that_starts_for_a_call_that_is_cancelled_delays_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One with other variables cannot use it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    hangs = let_one_hang(monkeypatch, replacement=False)
    with LimitedProcessExecutor(2, preload=[], startup_time=2 * PATIENCE) as executor:
        cancelled = executor.submit(abs, -1)
        assert hangs.wait(PATIENCE)
        assert cancelled.cancel()
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert executor.submit(abs, -1).result(PATIENCE) == 1


def test_slot_that_cannot_be_replaced_stays() -> None:
    """No descriptor is free for its successor's line."""
    with LimitedProcessExecutor(1, preload=[]) as executor:
        executor.submit(abs, -1).result(PATIENCE)
        before = wait_until(supervisors)
        wait_until(lambda: named("limit-task"))
        time.sleep(0.3 * slot.FRESH_AFTER)  # nothing tells that its next child has been announced
        with no_more_descriptors():
            time.sleep(1.2 * slot.FRESH_AFTER)  # nor that it has been tried
        assert executor.submit(os.getppid).result(PATIENCE) in before
