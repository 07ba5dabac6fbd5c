"""The check that runs after every test is itself held to what it promises, in pytest runs apart."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from conftest import child_pids, pids_with, stat_fields, wait_until

import pynisher_exec

if TYPE_CHECKING:
    import pytest

pytest_plugins = ["pytester"]

LEAKS = """
import os, subprocess, threading
import pytest
kept = []

@pytest.fixture(scope="session")
def patience():
    return 0.2

def test_child():
    kept.append(subprocess.Popen(["sleep", "61"]))

def test_after_child():
    pass

def test_zombie():
    kept.append(subprocess.Popen(["true"]))
    os.waitid(os.P_PID, kept[-1].pid, os.WEXITED | os.WNOWAIT)

def test_after_zombie():
    pass

def test_orphan():
    subprocess.run(["sh", "-c", "setsid sleep 62 & true"], check=True)

def test_after_orphan():
    pass

def test_descriptor():
    os.pipe()

def test_after_descriptor():
    pass

def test_thread():
    threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()

def test_after_thread():
    pass
"""

SHOWN = {
    "child": "*process * (state S, child of *): sleep 61",
    "zombie": "*process * (state Z, child of *): true",
    "orphan": "*process * (state S, child of *): sleep 62",
    "descriptor": "*descriptor *: pipe:*",
    "thread": "*thread forgotten",
}

CLEAN = """
import subprocess, tempfile, threading

def test_clean():
    subprocess.run(["true"], check=True)
    thread = threading.Thread(target=print)
    thread.start()
    thread.join()
    with tempfile.TemporaryFile():
        pass

def test_late():
    child = subprocess.Popen(["sleep", "0.3"])
    threading.Thread(target=child.wait).start()

def test_helpers_of_the_interpreter():
    import multiprocessing, loky.backend.resource_tracker
    from multiprocessing import resource_tracker
    resource_tracker.ensure_running()
    loky.backend.resource_tracker.ensure_running()
    process = multiprocessing.get_context("forkserver").Process(target=print)
    process.start()
    process.join()
    process.close()
"""


def run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, text: str, *options: str
) -> pytest.RunResult:
    """Run these tests under the conftest of this folder, which is loaded as a plugin."""
    folders = (Path(__file__).parent, Path(pynisher_exec.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
    pytester.makepyfile(test_inner=text)
    return pytester.runpytest_subprocess("-p", "conftest", *options, timeout=50)


def test_names_what_is_left_over(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that leaves something behind fails, it is named, and the next test starts clean."""
    result = run(pytester, monkeypatch, LEAKS, "-q")
    result.assert_outcomes(passed=2 * len(SHOWN), errors=len(SHOWN))
    for kind, line in SHOWN.items():
        result.stdout.fnmatch_lines([f"*ERROR at teardown of test_{kind}*", "left over:", line])


def test_passes_what_is_clean(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tidied up, goes by itself in time or belongs to the interpreter fails nothing."""
    run(pytester, monkeypatch, CLEAN, "-q").assert_outcomes(passed=3)


def test_prints_what_is_tested(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run names the package it tests, and counts the tests that a capability was missing for."""
    text = """
import capabilities, pytest
@pytest.mark.skipif(True, reason="needs perf: EPERM")
def test_one(): pass
"""
    result = run(pytester, monkeypatch, text)
    result.stdout.fnmatch_lines(
        [f"tested: {pynisher_exec.__file__}", "1 skipped: this machine has no perf"]
    )


EXECS = """
import os, signal, sys
signal.alarm(50)
os.execv(sys.executable, sys.orig_argv)
"""
LEADERLESS = """
import ctypes, signal, threading, time
signal.alarm(50)
threading.Thread(target=time.sleep, args=(50,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_process_that_starts_a_program_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment is not there for a moment, at each of its thousands of starts."""
    mark = secrets.token_hex(8)
    monkeypatch.setenv("PYNISHER_EXEC_TEST_LOOK", mark)
    with subprocess.Popen([sys.executable, "-S", "-c", EXECS]) as process:
        try:
            looks = [pids_with("PYNISHER_EXEC_TEST_LOOK", mark) for _ in range(300)]
        finally:
            process.kill()
    assert looks == [[process.pid]] * 300


def test_process_whose_main_thread_has_ended_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks like a zombie, and another thread of it goes on."""
    mark = secrets.token_hex(8)
    monkeypatch.setenv("PYNISHER_EXEC_TEST_LOOK", mark)
    with subprocess.Popen([sys.executable, "-S", "-c", LEADERLESS]) as process:
        try:
            wait_until(lambda: stat_fields(process.pid)[0] == "Z")
            assert process.pid in child_pids(os.getpid())
            assert pids_with("PYNISHER_EXEC_TEST_LOOK", mark) == [process.pid]
        finally:
            process.kill()
