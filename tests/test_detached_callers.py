"""Callers that lack what most have: standard streams, a directory, descriptors, a free lock."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from test_places import run_script

from pynisher_exec import decorator, limited, shutdown

if TYPE_CHECKING:
    from pathlib import Path

STREAMLESS = """
import json, os, sys
from pynisher_exec import LimitedProcessExecutor

for number in {closed}:
    os.close(number)

def write():
    print("printed")
    os.write(1, b"raw\\n")
    return os.fstat(0) and 5

found = []
with LimitedProcessExecutor(1, wall_time=20, context={context!r}) as executor:
    for view in (executor, executor.limit(capture_output=True)):
        report = view.submit(write).wait_for_report()
        words = sorted((report.stdout or "").split())
        found.append((report.status, report.result, words, report.message))
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
"""


@pytest.mark.parametrize(
    ("context", "way"),
    [
        (None, "shell"),
        (None, "script"),
        ("fork", "shell"),
        ("fork", "script"),
        (
            "loky",
            "script",
        ),  # not by the shell: loky itself flushes `sys.stderr`, which is None then
    ],
)
def test_caller_without_standard_streams(context: str | None, way: str, tmp_path: Path) -> None:
    """Its tasks' output goes nowhere, unless it is captured.

    A shell may have closed them before the interpreter began, or the script itself.
    """
    script, answer = tmp_path / "script.py", tmp_path / "answer"
    closed = "()" if way == "shell" else "(0, 1, 2)"
    script.write_text(STREAMLESS.format(context=context, closed=closed))
    command = shlex.join([sys.executable, str(script), str(answer)])
    command = f"exec {command}" + (" <&- >&- 2>&-" if way == "shell" else "")
    subprocess.run(
        ["sh", "-c", command], check=False, timeout=40, stdin=subprocess.DEVNULL, close_fds=True
    )
    assert json.loads(answer.read_text()) == [
        ["ok", 5, [], ""],
        ["ok", 5, ["printed", "raw"], ""],
    ]


DIRECTORYLESS = """
import os, sys
from pynisher_exec import LimitedProcessExecutor

here = os.getcwd()
os.mkdir("doomed")
os.chdir("doomed")
os.rmdir(os.path.join(here, "doomed"))
with LimitedProcessExecutor(1, wall_time=20, context={context!r}) as executor:
    future = executor.submit(abs, -1)
    error = future.exception(30)
    print(type(error).__name__, future.report.status)
    print(error)
    os.chdir(here)
    print(executor.submit(abs, -1).result(30))
"""


@pytest.mark.parametrize("context", [None, "loky", "spawn"])
def test_caller_whose_directory_is_gone(
    context: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the reason, also where the way of starting asks for the directory first."""
    monkeypatch.chdir(tmp_path)
    done = run_script(DIRECTORYLESS.format(context=context))
    lines = done.stdout.splitlines()
    assert lines[0].endswith(" startup"), done.stdout + done.stderr
    assert "directory" in lines[1]
    assert lines[-1] == "1"
    assert done.returncode == 0


DESCRIPTORLESS = """
import gc, os, resource
from pynisher_exec import LimitedProcessExecutor

def count():
    return len(os.listdir("/proc/self/fd"))

LimitedProcessExecutor(1).shutdown()
gc.collect()
before = count()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
for free in range(8):
    fill = []
    while True:
        try:
            fill.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            break
    for descriptor in fill[:free]:
        os.close(descriptor)
    executors = []
    for _ in range(4):
        try:
            executors.append(LimitedProcessExecutor(1))
        except OSError as error:
            print(free, "refused")
    for executor in executors:
        executor.shutdown()
    for descriptor in fill[free:]:
        os.close(descriptor)
    gc.collect()
    print(free, count() - before)
"""


def test_construction_that_fails_leaks_no_descriptor() -> None:
    """However many were free."""
    done = run_script(DESCRIPTORLESS)
    lines = done.stdout.splitlines()
    assert done.stderr == ""
    assert "0 refused" in lines
    assert [line for line in lines if "refused" not in line] == [f"{free} 0" for free in range(8)]


DESCRIPTORLESS_AT_THE_DISPATCH = """
import os, resource, time
from pynisher_exec import LimitedProcessExecutor
with LimitedProcessExecutor(1, wall_time=20) as executor:
    executor.submit(abs, -1).result()
    slots = executor._pool._monitor._slots
    deadline = time.monotonic() + 20
    while slots.has_any("busy", "starting") and time.monotonic() < deadline:
        time.sleep(0.01)
    os.close(1)  # what a task shall have instead needs a descriptor
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, before[1]))
    future = executor.submit(abs, -2)
    error = future.exception(20)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    os.write(2, f"{future.report.status} {error} | {executor.submit(abs, -3).result()}".encode())
"""


def test_call_that_could_not_be_sent_says_why() -> None:
    """And harms no other."""
    done = run_script(DESCRIPTORLESS_AT_THE_DISPATCH)
    reason = "[Errno 24] Too many open files: '/dev/null'"
    assert done.stderr == f"startup the call could not be sent to its task: {reason} | 3"


def test_fork_while_a_thread_holds_the_lock_of_limited() -> None:
    """`limited` works in the child, though the thread that holds the lock is not there."""
    safe = limited(abs, wall_time=20)
    assert safe(-1) == 1
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with decorator._lock:
            held.set()
            release.wait(40)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(40)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(20)  # what waits for that lock waits for ever
            code = 0 if safe(-2) == 2 else 2
            shutdown()
        finally:
            os._exit(code)
    release.set()
    thread.join()
    assert os.waitpid(pid, 0)[1] == 0
    assert safe(-3) == 3
