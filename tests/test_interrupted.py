"""Ctrl-C while a script waits for its tasks: they end, and the interrupt goes on."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

import crashes
import pytest
from test_places import run_script, wait_until_gone

from pynisher_exec import LimitedProcessExecutor, decorator, limited, shutdown

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Mark

# The interrupt comes when the main thread waits in `Pool.join`: its stack says so, and the kernel
# that it sleeps. CPython looks for signals before it sleeps: one that comes when the thread has let
# the interpreter lock go, but does not sleep yet, wakes nobody.
HEAD = """
import os, signal, subprocess, sys, threading, time
from pynisher_exec import LimitedProcessExecutor

def stubborn():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    subprocess.Popen(["setsid", "sleep", "40"])
    os.write(1, b"up\\n")
    time.sleep(40)

def waits(frame):
    names = []
    while frame is not None:
        names.append((os.path.basename(frame.f_code.co_filename), frame.f_code.co_name))
        frame = frame.f_back
    return ("pool.py", "join") in names and names[0][0] == "threading.py"

def sleeps(thread):
    with open(f"/proc/self/task/{thread.native_id}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"

def interrupt():
    main = threading.main_thread()
    while not (waits(sys._current_frames()[main.ident]) and sleeps(main)):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()

def begin(executor):
    futures = [executor.submit(stubborn) for _ in range(2)]
    while not futures[0].running():
        time.sleep(0.001)
    return futures
"""

AT_THE_END_OF_THE_BLOCK = """
with LimitedProcessExecutor(1) as executor:
    begin(executor)
"""

CAUGHT = """
try:
    with LimitedProcessExecutor(1) as executor:
        futures = begin(executor)
except KeyboardInterrupt:
    print([future.cancelled() for future in futures])
    with LimitedProcessExecutor(1) as executor:
        print(executor.submit(abs, -1).result(20))
"""

AT_THE_EXIT = """
executor = LimitedProcessExecutor(1)
begin(executor)
"""


@pytest.mark.parametrize("body", [AT_THE_END_OF_THE_BLOCK, AT_THE_EXIT], ids=["block", "exit"])
def test_ctrl_c_while_the_script_waits_ends_its_tasks(body: str, marked: Mark) -> None:
    """At the end of a with block, and at the interpreter's own."""
    done = run_script(HEAD + body, timeout=25)
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode in (0, 1, -signal.SIGINT)  # 0: at the exit Python only tells of it
    wait_until_gone(marked, 5)


def test_caught_ctrl_c_has_ended_the_tasks(marked: Mark) -> None:
    """Whoever catches it goes on without them."""
    done = run_script(HEAD + CAUGHT, timeout=25)
    assert done.stdout.splitlines()[-2:] == ["[True, True]", "1"], done.stderr
    assert done.returncode == 0
    wait_until_gone(marked, 5)


def once(function: Callable[..., object], *, before: bool) -> Callable[..., object]:
    """The same function, which is interrupted at its first call, just before it or just after."""
    strikes = [KeyboardInterrupt()]

    def interrupted(*args: object) -> object:
        if before and strikes:
            raise strikes.pop()
        value = function(*args)
        if strikes:
            raise strikes.pop()
        return value

    return interrupted


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("where", ["mask", "start"])
def test_interrupted_first_submit_is_made_good_by_the_next(
    monkeypatch: pytest.MonkeyPatch, where: str, *, before: bool
) -> None:
    """The monitor thread runs, or does not: never a thread that is waited for and not there."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with LimitedProcessExecutor(1) as executor, monkeypatch.context() as patched:
        if where == "mask":
            patched.setattr(signal, "pthread_sigmask", once(signal.pthread_sigmask, before=before))
        else:
            patched.setattr(threading.Thread, "start", once(threading.Thread.start, before=before))
        with pytest.raises(KeyboardInterrupt):
            executor.submit(crashes.value)
        patched.undo()
        assert executor.submit(crashes.value).result(30) == 42
        monitors = [each for each in threading.enumerate() if "monitor" in each.name]
        assert len(monitors) == 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_call_that_is_interrupted_as_it_is_submitted_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody has its future, and it may have no limit."""

    class Interrupting:
        @property
        def has_come(self) -> bool:
            raise KeyboardInterrupt

    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(decorator, "all_pools", Interrupting())
        with pytest.raises(KeyboardInterrupt):
            limited(time.sleep)(40)
    shutdown()
    assert time.monotonic() - began < 30
