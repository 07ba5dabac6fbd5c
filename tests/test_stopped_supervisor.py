"""A supervisor that somebody has stopped keeps no limit, and its task ends all the same."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import crashes
import pytest
from conftest import child_pids, wait_until, wait_until_running, wait_until_stopped

from pynisher_exec import LimitedProcessExecutor, PynisherError, TaskError
from pynisher_exec.caller import monitor, slot
from pynisher_exec.kernel import pidfd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pynisher_exec import LimitedFuture

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


def lose(executor: LimitedProcessExecutor) -> LimitedFuture[None]:
    """Run a task whose supervisor is stopped until its future resolves; the executor goes on."""
    supervisor = supervisor_of(executor)
    future = executor.submit(crashes.sleep_long)
    wait_until_running(future)
    with stopped(supervisor):
        assert isinstance(future.exception(PATIENCE), TaskError)
    assert executor.submit(crashes.value).result(PATIENCE) == 42
    return future


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a supervisor does not do in two seconds it does not do at all."""
    monkeypatch.setattr(monitor, "END_TIME", 1.5)


def test_wall_limit_is_kept_though_late() -> None:
    """The caller looks a while after the limit, and ends a supervisor that is stopped."""
    with LimitedProcessExecutor(1, wall_time=0.5, kill_timeout=1) as executor:
        future = lose(executor)
    assert isinstance(future.exception(), PynisherError)
    assert future.report is not None
    assert future.report.status == "supervisor_lost"


def test_task_without_limits_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller looks at supervisors now and then; one that is stopped is not waited for."""
    monkeypatch.setattr(slot, "CHECK_EVERY", 0.5)
    monkeypatch.setattr(slot, "CHECK_AFTER", 0.5)
    with LimitedProcessExecutor(1, kill_timeout=1) as executor:
        future = lose(executor)
    assert isinstance(future.exception(), PynisherError)
    assert future.report is not None
    assert future.report.status == "supervisor_lost"


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


def leave_files(then: float) -> None:
    """Fill the task's temporary directory, whose removal takes a while, and sleep."""
    place = Path(tempfile.gettempdir())
    for number in range(5000):
        (place / str(number)).touch()
    (place / "full").touch()
    time.sleep(then)


class Tidying:
    """Stops supervisors as they begin to remove a directory, from the moment that it is armed."""

    def __init__(self) -> None:
        self.is_armed = False
        self.stopped: list[int] = []

    def take(self, original: Callable[[slot.Slot], None], running: slot.Slot) -> None:
        """In the place of the slot's own."""
        if self.is_armed and running._supervisor is not None:
            self.stopped.append(os.dup(running._supervisor))
            pidfd.send_signal(self.stopped[-1], signal.SIGSTOP)
        original(running)


@pytest.fixture
def tidying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tidying]:
    """Not armed yet."""
    found = Tidying()
    original = slot.Slot._take_tidying
    monkeypatch.setattr(slot.Slot, "_take_tidying", lambda self: found.take(original, self))
    yield found
    for handle in found.stopped:
        os.close(handle)


def test_stopped_while_it_tidies_up_is_not_waited_for_either(
    own_tmpdir: Path, tidying: Tidying, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task has gone, and only its directory is left, which the caller removes then."""
    monkeypatch.setattr(slot, "CHECK_AFTER", 0.3)
    tidying.is_armed = True
    with LimitedProcessExecutor(1, kill_timeout=1, private_tmp=True) as executor:
        future = executor.submit(leave_files, 0)
        error = future.exception(PATIENCE)
        assert isinstance(error, PynisherError)
        assert future.report is not None
        assert future.report.status == "supervisor_lost"
        assert list(own_tmpdir.glob("pynisher_exec-*")) == []


def test_supervisor_that_tidies_up_has_obeyed(
    own_tmpdir: Path, tidying: Tidying, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled task has ended, and its supervisor may take its time for what is left."""
    monkeypatch.setattr(slot, "CHECK_AFTER", 1.0)
    with LimitedProcessExecutor(1, private_tmp=True) as executor:
        supervisor = supervisor_of(executor)
        tidying.is_armed = True
        future = executor.submit(leave_files, PATIENCE)
        wait_until(lambda: list(own_tmpdir.glob("*/full")), PATIENCE)
        assert future.cancel()
        (busy,) = executor._pool._monitor._slots
        wait_until(lambda: busy._was_stopped, PATIENCE)
        tidying.is_armed = False
        pidfd.send_signal(tidying.stopped[-1], signal.SIGCONT)
        assert not wait([future], PATIENCE).not_done
        assert future.cancelled()
        assert list(own_tmpdir.glob("pynisher_exec-*")) == []
        assert busy._supervisor_pid == supervisor
        assert executor.submit(os.getppid).result(PATIENCE) == supervisor


def test_supervisor_that_cannot_be_reached_goes_with_its_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No descriptor was free for its pidfd; what it leaves undone is ended all the same.

    The kernel has a stopped one go on whose parent ends (setpgid(2)), so it may end its task first.
    """

    def refuse(pid: int) -> int:
        message = f"no descriptor for {pid}"
        raise OSError(message)

    unreachable = SimpleNamespace(open_pidfd=refuse, send_signal=pidfd.send_signal)
    monkeypatch.setattr(slot, "pidfd", unreachable)
    monkeypatch.setattr(slot, "CHECK_AFTER", 0.3)
    with LimitedProcessExecutor(1, wall_time=0.5, kill_timeout=1) as executor:
        future = lose(executor)
    assert future.report is not None
    assert future.report.status in ("supervisor_lost", "wall_time")
