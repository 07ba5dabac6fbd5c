"""How many processes an executor has for so many workers, and how many tasks they run at once."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import child_pids, descendant_pids, name_of, wait_until

from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Iterable

PATIENCE = 40


def span(seconds: float) -> tuple[float, float]:
    """When it began, and when it ended."""
    began = time.monotonic()
    time.sleep(seconds)
    return began, time.monotonic()


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """How many of them overlap at most."""
    events = sorted(event for began, ended in spans for event in ((began, 1), (ended, -1)))
    now = most = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return most


def templates() -> list[int]:
    """Give the processes that fork supervisors."""
    return [pid for pid in descendant_pids() if name_of(pid) == "limit-template"]


def programs() -> list[int]:
    """Give processes that have begun a program of their own: until then vfork(2) keeps ours."""
    own = Path("/proc/self/cmdline").read_bytes()
    below = [(pid, Path(f"/proc/{pid}/cmdline")) for pid in descendant_pids()]
    return [pid for pid, path in below if path.exists() and path.read_bytes() != own]


def slots() -> int:
    """Count supervisors. Not by their name, which a fresh fork of one has as well."""
    return sum(len(child_pids(template)) for template in templates())


def test_one_call_starts_one_slot() -> None:
    """What is needed for calls that come later is not started before them."""
    with LimitedProcessExecutor(1) as executor:
        assert executor.submit(abs, -1).result(PATIENCE) == 1
        assert slots() == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_one_more_slot_than_workers_prepares_and_no_more_tasks_run(workers: int) -> None:
    """While one task runs the next process is forked, and still they run one after the other."""
    with LimitedProcessExecutor(workers) as executor:
        spans = list(executor.map(span, repeat(0.01, 30), timeout=PATIENCE))
        assert slots() == workers + 1
    assert most_at_once(spans) <= workers


def test_slot_beyond_the_workers_is_let_go_once_nothing_waits() -> None:
    """Its two processes take memory for nothing then; the others stay, ready for what comes."""
    with LimitedProcessExecutor(2) as executor:
        spans = list(executor.map(span, repeat(0.01, 30), timeout=PATIENCE))
        assert slots() == 3
        wait_until(lambda: slots() == 2, PATIENCE)
        assert len(list(executor._pool._monitor._slots)) == 2
        spans += executor.map(span, repeat(0.01, 30), timeout=PATIENCE)
    assert most_at_once(spans) <= 2


@pytest.mark.parametrize("options", [{"max_tasks_per_child": None}, {"context": "fork"}])
def test_no_slot_is_added_where_it_would_be_of_no_use(options: dict[str, Any]) -> None:
    """A process that is kept needs no successor; one of a context is started for its very call."""
    with LimitedProcessExecutor(2, **options) as executor:
        futures = [executor.submit(span, 0.01) for _ in range(20)]
        most = 0
        for future in futures:
            future.result(PATIENCE)
            most = max(most, slots())
    assert most <= 2


@pytest.mark.skipif(os.getuid() == 0, reason="no limit of processes holds for root")
def test_a_slot_that_cannot_be_added_costs_no_task() -> None:
    """Where the template may fork no more, all goes on with what there is."""
    with LimitedProcessExecutor(1) as executor:
        assert executor.submit(abs, -1).result(PATIENCE) == 1
        (template,) = templates()
        resource.prlimit(template, resource.RLIMIT_NPROC, (1, 1))
        values = [executor.submit(abs, -n).result(PATIENCE) for n in range(5)]
        assert slots() == 1
    assert values == list(range(5))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_template_that_is_struck_as_it_starts_costs_no_call(number: signal.Signals) -> None:
    """Four slots wait for it, and the calls behind them are charged with one failure, not four."""
    there = {*programs()}  # a resource tracker of this process, maybe
    with LimitedProcessExecutor(4, startup_time=2, preload=[]) as executor:
        futures = [executor.submit(abs, -n) for n in range(8)]
        (template,) = wait_until(lambda: {*programs()} - there)
        os.kill(template, signal.SIGSTOP)
        wait_until(lambda: len(list(executor._pool._monitor._slots)) == 4, PATIENCE)
        os.kill(template, number)
        assert [future.result(PATIENCE) for future in futures] == list(range(8))


def times_slept(thread: threading.Thread) -> int:
    """How often a thread has waited for something so far (proc(5), status)."""
    text = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(text.split("voluntary_ctxt_switches:")[1].split()[0])


def test_calls_that_must_wait_wake_nobody() -> None:
    """The monitor thread sleeps while thousands are queued behind as many as can run."""
    with LimitedProcessExecutor(1) as executor:
        blocking = executor.submit(time.sleep, 600)
        wait_until(blocking.running)
        (monitor,) = (each for each in threading.enumerate() if "monitor" in each.name)
        few = [executor.submit(span, 0) for _ in range(10)]
        time.sleep(0.2)  # not for a state, but so that it may do what these have woken it for
        before = times_slept(monitor)
        many = [executor.submit(span, 0) for _ in range(2000)]
        assert times_slept(monitor) - before < 200
        blocking.cancel()
        for future in few + many[:20]:
            future.result(PATIENCE)
        executor.kill_workers()


def test_calls_queued_before_there_are_slots_all_get_one() -> None:
    """Nobody is woken for the last of them, and yet as many run at once as there are workers."""
    with LimitedProcessExecutor(3) as executor:
        futures = [executor.submit(span, 0.2) for _ in range(30)]
        spans = [future.result(PATIENCE) for future in futures]
    assert most_at_once(spans) == 3
