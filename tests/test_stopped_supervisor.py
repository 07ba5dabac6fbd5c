"""A supervisor that somebody has stopped keeps no limit, and its task ends all the same."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

import crashes
import pytest
from conftest import child_pids, wait_until, wait_until_running, wait_until_stopped

from pynisher_exec import LimitedProcessExecutor, PynisherError
from pynisher_exec.caller import monitor, slot

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 40


def only_child(pid: int) -> int:
    """Wait until a process has one child, and give it."""
    return wait_until(lambda: found if len(found := child_pids(pid)) == 1 else [], PATIENCE)[0]


def supervisor_of(executor: LimitedProcessExecutor) -> int:
    """Pid of the one supervisor of an executor with one slot, when a child waits below it."""
    before = set(child_pids(os.getpid()))
    executor.submit(crashes.value).result(PATIENCE)
    (template,) = set(child_pids(os.getpid())) - before
    slots = executor._pool._monitor._slots
    wait_until(lambda: [slot.state for slot in slots] == ["idle"], PATIENCE)
    return only_child(template)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process, and have it go on at the end, if it is still there."""
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGSTOP)
        wait_until_stopped(pid)
        yield
    finally:
        try:
            signal.pidfd_send_signal(handle, signal.SIGCONT)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a supervisor does not do in two seconds it does not do at all."""
    monkeypatch.setattr(monitor, "END_TIME", 1.5)


def test_wall_limit_is_kept_though_late() -> None:
    """The caller looks a while after the limit, and ends a supervisor that is stopped."""
    with LimitedProcessExecutor(1, wall_time=0.5, kill_timeout=1) as executor:
        supervisor = supervisor_of(executor)
        future = executor.submit(crashes.sleep_long)
        wait_until_running(future)
        with stopped(supervisor):
            error = future.exception(PATIENCE)
        assert isinstance(error, PynisherError)
        assert future.report is not None
        assert future.report.status == "supervisor_lost"
        assert executor.submit(crashes.value).result(PATIENCE) == 42


def test_task_without_limits_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller looks at supervisors now and then; one that is stopped is not waited for."""
    monkeypatch.setattr(slot, "CHECK_EVERY", 0.5)
    monkeypatch.setattr(slot, "CHECK_AFTER", 0.5)
    with LimitedProcessExecutor(1, kill_timeout=1) as executor:
        supervisor = supervisor_of(executor)
        future = executor.submit(crashes.sleep_long)
        wait_until_running(future)
        with stopped(supervisor):
            assert isinstance(future.exception(PATIENCE), PynisherError)
        assert future.report is not None
        assert future.report.status == "supervisor_lost"
        assert executor.submit(crashes.value).result(PATIENCE) == 42


def test_supervisor_that_was_stopped_for_a_moment_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a whole job is suspended: it is given up only where it is found stopped twice."""
    monkeypatch.setattr(slot, "CHECK_EVERY", 0.2)
    monkeypatch.setattr(slot, "CHECK_AFTER", PATIENCE)
    with LimitedProcessExecutor(1, wall_time=PATIENCE) as executor:
        supervisor = supervisor_of(executor)
        future = executor.submit(time.sleep, 2)
        wait_until_running(future)
        (running,) = executor._pool._monitor._slots
        with stopped(supervisor):
            wait_until(lambda: running._was_stopped, PATIENCE)
        assert future.result(PATIENCE) is None


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("way", ["cancel", "kill_workers"])
def test_stopped_supervisor_does_not_keep_its_task_from_ending(way: str) -> None:
    """`cancel` and `kill_workers` are kept within `kill_timeout` and a few seconds more."""
    executor = LimitedProcessExecutor(1, kill_timeout=0.5)
    supervisor = supervisor_of(executor)
    future = executor.submit(crashes.sleep_long)
    wait_until_running(future)
    with stopped(supervisor):
        if way == "cancel":
            assert future.cancel()
        else:
            executor.kill_workers()
            assert not future.done()  # it does not wait
        assert not wait([future], PATIENCE).not_done
        executor.shutdown()
    assert future.cancelled()
    assert future.report is not None
    assert future.report.status == "cancelled"


def test_call_that_comes_back_after_shutdown_is_cancelled() -> None:
    """Its child had died before it began, so it would be sent again: it is cancelled, not lost."""
    executor = LimitedProcessExecutor(1)
    supervisor = supervisor_of(executor)
    with stopped(supervisor):
        os.kill(only_child(supervisor), signal.SIGKILL)
        future = executor.submit(crashes.value)
        wait_until_running(future)
        executor.shutdown(wait=False, cancel_futures=True)
        obeyed(executor)
    assert not wait([future], PATIENCE).not_done
    assert future.cancelled()
    assert future.report is not None
    assert future.report.status == "cancelled"
    executor.shutdown()


def obeyed(executor: LimitedProcessExecutor) -> None:
    """Wait until the monitor thread has had a turn, and so has taken its orders."""
    turns: list[None] = []
    original = executor._pool._monitor._obey

    def obey() -> None:
        original()
        turns.append(None)

    executor._pool._monitor._obey = obey  # type: ignore[method-assign]
    deadline = time.monotonic() + PATIENCE
    while not turns:
        executor._pool._reactor.ring()
        assert time.monotonic() < deadline
