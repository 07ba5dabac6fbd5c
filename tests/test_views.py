"""Views, `executor.limit(...)`: other limits over the same slots, and an end of their own."""

from __future__ import annotations

import threading
import time

import crashes
import pytest
from capabilities import requires
from conftest import wait_until_running

from pynisher_exec import LimitedProcessExecutor

PATIENCE = 30


def test_shutdown_of_a_view_waits_for_what_went_through_it() -> None:
    """As an executor's does; and for nothing else."""
    with LimitedProcessExecutor(2, wall_time=50) as executor:
        other = executor.submit(crashes.sleep_long)
        view = executor.limit(wall_time=20)
        mine = [view.submit(time.sleep, 0.2) for _ in range(2)]
        view.shutdown()
        assert all(future.done() for future in mine)
        assert not other.done()
        with pytest.raises(RuntimeError, match="after shutdown"):
            view.submit(crashes.value)
        other.cancel()
        assert executor.submit(crashes.value).result(PATIENCE) == 42


def test_shutdown_of_a_view_need_not_wait() -> None:
    """What went through it is finished all the same."""
    with LimitedProcessExecutor(1, wall_time=50) as executor:
        busy = executor.submit(crashes.sleep_long)
        wait_until_running(busy)
        view = executor.limit()
        mine = view.submit(crashes.value)
        view.shutdown(wait=False)
        assert not mine.done()
        busy.cancel()
        assert mine.result(PATIENCE) == 42


def test_shutdown_of_a_view_cancels_its_own_pending_futures() -> None:
    """What runs goes on, and what waits at the executor or at another view as well."""
    with LimitedProcessExecutor(1, wall_time=50) as executor:
        view, other_view = executor.limit(), executor.limit()
        running = view.submit(crashes.sleep_long)
        wait_until_running(running)
        pending = [view.submit(crashes.value) for _ in range(2)]
        others = [executor.submit(crashes.value), other_view.submit(crashes.value)]
        view.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in pending)
        assert running.running()
        running.cancel()
        assert [other.result(PATIENCE) for other in others] == [42, 42]


def test_with_block_of_a_view_waits() -> None:
    """And the executor goes on after it."""
    with LimitedProcessExecutor(1) as executor:
        with executor.limit(wall_time=20) as view:
            future = view.submit(time.sleep, 0.2)
        assert future.done()
        assert executor.submit(crashes.value).result(PATIENCE) == 42


@pytest.mark.parametrize("name", ["kill_workers", "terminate_workers"])
def test_view_ends_only_its_own_tasks(name: str) -> None:
    """Running and pending ones; the executor's own, and another view's, go on."""
    with LimitedProcessExecutor(3, wall_time=50) as executor:
        view, other_view = executor.limit(), executor.limit()
        others = [executor.submit(crashes.sleep_long), other_view.submit(crashes.sleep_long)]
        running = view.submit(crashes.sleep_long)
        wait_until_running(running, *others)
        pending = view.submit(crashes.value)
        getattr(view, name)()
        view.shutdown()
        assert running.cancelled()
        assert pending.cancelled()
        with pytest.raises(RuntimeError, match="after shutdown"):
            view.submit(crashes.value)
        assert all(other.running() for other in others)
        for other in others:
            other.cancel()
        assert executor.submit(crashes.value).result(PATIENCE) == 42


def test_shutdown_of_a_view_waits_from_another_thread_too() -> None:
    """Two threads may each wait for their own view."""
    with LimitedProcessExecutor(2, wall_time=20) as executor:
        done: list[bool] = []

        def use() -> None:
            with executor.limit() as view:
                future = view.submit(time.sleep, 0.1)
            done.append(future.done())

        threads = [threading.Thread(target=use) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert done == [True, True]


def limit_strictly() -> str:
    """In a task under a `processes` limit: what a strict executor says to such a limit."""
    with LimitedProcessExecutor(1, strict=True) as executor:
        executor.limit(wall_time=5)
        try:
            executor.limit(wall_time=5).limit(processes=1)
        except ValueError as error:
            return str(error)
    return "taken"


@requires("seccomp")
def test_view_of_a_strict_executor_refuses_what_is_soft() -> None:
    """The kernel allows one gate in a tree, so inside one a limit of processes is counted."""
    with LimitedProcessExecutor(1, processes=20, wall_time=30) as executor:
        said = executor.submit(limit_strictly).result(PATIENCE)
    assert said.startswith("strict=True, but processes is soft")
