"""The thread that resolves futures may be held up: what has come meanwhile counts all the same."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from conftest import child_pids, stat_fields, wait_until, wait_until_running

from pynisher_exec import LimitedProcessExecutor
from pynisher_exec.caller import exchange, slot

if TYPE_CHECKING:
    from typing import Any

    import pytest

PATIENCE = 40


def return_parts(count: int) -> list[object]:
    """Return what is sent in many parts, none of them large, and all together not small."""
    return [np.full(100_000, number) for number in range(count)]


def test_outcome_is_not_given_up_for_time_that_the_caller_was_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was stopped, say, with the first bytes read: the task could send no more meanwhile."""
    original = exchange.Exchange.begin_to_read
    times: list[float] = []

    def begin_and_be_held_up(self: exchange.Exchange) -> None:
        original(self)
        times.append(time.monotonic())
        time.sleep(1.5)

    monkeypatch.setattr(exchange, "TRANSFER_TIME", 0.5)
    monkeypatch.setattr(exchange, "LATE", 0.2)
    monkeypatch.setattr(exchange.Exchange, "begin_to_read", begin_and_be_held_up)
    with LimitedProcessExecutor(1, wall_time=PATIENCE) as executor:
        value = executor.submit(return_parts, 40).result(PATIENCE)
    assert [part[0] for part in value] == list(range(40))  # type: ignore[index]
    assert len(times) == 1


def supervisor_after(path: str) -> int:
    """Tell the supervisor, and end when the file is there."""
    Path(f"{path}-told").write_text(str(os.getppid()))
    while not Path(path).exists():
        time.sleep(0.001)
    return os.getppid()


def strike(supervisor: int) -> None:
    """Kill a supervisor once it has its next child, and see it reaped."""
    wait_until(lambda: child_pids(supervisor), PATIENCE)
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not stat_fields(supervisor), PATIENCE)


def test_value_is_not_lost_when_its_supervisor_ends_right_after(tmp_path: Path) -> None:
    """The template's word of that end lies before the value in the queue of events.

    Because another supervisor had ended before, of which it told on the same line.
    """
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    is_held, may_go_on = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        is_held.set()
        may_go_on.wait(PATIENCE)

    with LimitedProcessExecutor(2, no_new_privs=False) as executor:
        one = executor.submit(supervisor_after, first)
        other = executor.submit(supervisor_after, second)
        wait_until_running(one, other)
        wait_until(lambda: Path(f"{second}-told").exists() and Path(f"{first}-told").exists())
        one.add_done_callback(hold)
        Path(first).touch()
        assert is_held.wait(PATIENCE)
        try:
            strike(one.result())
            supervisor = int(Path(f"{second}-told").read_text())
            (task,) = child_pids(supervisor)
            Path(second).touch()
            wait_until(lambda: child_pids(supervisor) not in ([], [task]), PATIENCE)
            strike(supervisor)
        finally:
            may_go_on.set()
        assert other.result(PATIENCE) == supervisor


def test_news_that_comes_as_a_deadline_passes_is_acted_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A call that waits for room starts at once when there is some, not when somebody rings."""
    path = str(tmp_path / "path")
    is_held, may_go_on = threading.Event(), threading.Event()

    class Holding:
        def __reduce__(self) -> Any:
            is_held.set()
            may_go_on.wait(PATIENCE)
            msg = "not pickled"
            raise ValueError(msg)

    monkeypatch.setattr(slot, "CHECK_EVERY", 0.2)
    with LimitedProcessExecutor(2, max_memory="300MB", memory="200MB", preload=()) as executor:
        small = executor.limit(memory="50MB")
        assert list(small.map(abs, [1, 2])) == [1, 2]
        executor.submit(supervisor_after, path)
        wait_until(Path(f"{path}-told").exists, PATIENCE)
        due = time.monotonic() + slot.CHECK_EVERY
        small.submit(id, Holding())
        assert is_held.wait(PATIENCE)
        waiting = executor.submit(abs, -1)
        try:
            supervisor = int(Path(f"{path}-told").read_text())
            (task,) = child_pids(supervisor)
            Path(path).touch()
            wait_until(lambda: child_pids(supervisor) not in ([], [task]), PATIENCE)
            wait_until(lambda: stat_fields(supervisor)[0] == "S")  # it has told of both
            wait_until(lambda: time.monotonic() > due)
        finally:
            may_go_on.set()
        assert waiting.result(PATIENCE) == 1
