"""`terminate_workers` and `kill_workers`: they return at once, and nothing runs after them."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import wait
from typing import TYPE_CHECKING

import crashes
import pytest
from conftest import wait_until_running
from test_places import run_script

from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 30


def ignore_sigterm(path: str) -> None:
    """Say by a pipe that SIGTERM is ignored, then wait to be ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(path, "w", encoding="ascii") as file:
        file.write("ignored")
    time.sleep(60)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_terminate_workers_returns_while_a_task_ignores_it(pipe: Path) -> None:
    """It does not wait for the five seconds until the kill; `shutdown` does."""
    executor = LimitedProcessExecutor(1, wall_time=50)
    future = executor.submit(ignore_sigterm, str(pipe))
    assert pipe.read_text() == "ignored"
    pending = executor.submit(crashes.value)
    executor.terminate_workers()
    assert not future.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(crashes.value)
    assert not wait([pending], PATIENCE).not_done
    assert pending.cancelled()
    assert not future.done()
    executor.kill_workers()  # a second word, and a stronger one
    executor.shutdown()
    assert future.cancelled()
    assert future.report is not None
    assert future.report.status == "cancelled"


@pytest.mark.parametrize("context", [None, "fork", "loky"])
@pytest.mark.parametrize("name", ["kill_workers", "terminate_workers"])
def test_ended_workers_cancel_their_futures(name: str, context: str | None) -> None:
    """Running and pending ones, whatever way tasks are started; `shutdown` waits for that."""
    executor = LimitedProcessExecutor(2, wall_time=50, context=context)
    futures = [executor.submit(crashes.sleep_long) for _ in range(3)]
    wait_until_running(*futures[:2])
    getattr(executor, name)()
    executor.shutdown()
    assert all(future.cancelled() for future in futures)
    assert all(future.report and future.report.status == "cancelled" for future in futures)


STARTING = """
import os, sys, time
from pynisher_exec import LimitedProcessExecutor

begun, tell = os.pipe()
held, release = os.pipe()
first = True

def hold_on():  # the first fork, which is the process that starts the task, is slow to start
    global first
    if first:
        first = False
        os.write(tell, b"x")
        os.read(held, 1)

os.register_at_fork(after_in_child=hold_on)

def run():
    open(sys.argv[1], "w").close()
    time.sleep(30)

executor = LimitedProcessExecutor(1, context="fork", wall_time=40)
future = executor.submit(run)
os.read(begun, 1)
executor.kill_workers()
print(future.done() and future.report.status)
os.write(release, b"x")
executor.shutdown()
print(future.cancelled(), future.report.status, os.path.exists(sys.argv[1]))
"""


def test_task_that_is_still_starting_never_runs_its_function(tmp_path: Path) -> None:
    """In a fork of the caller the call is there from the first moment, and is given up."""
    script = tmp_path / "script.py"
    script.write_text(STARTING)
    done = run_script("", str(script), str(tmp_path / "ran"), timeout=20)
    assert done.stdout.splitlines()[1:] == ["True cancelled False"], done.stderr
    assert done.returncode == 0
