"""Ctrl-Z, stopped processes of ours, a caller that dies meanwhile; entries of a caller's state.

The group of a caller started here is no orphan (setpgid(2)): SIGTSTP stops it, as in a shell.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import descendant_pids, name_of, wait_until, wait_until_stopped
from test_places import run_script, wait_until_gone

from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from conftest import Mark

PATIENCE = 30

CALLER = """
import subprocess, sys, time
from pynisher_exec import LimitedProcessExecutor

def leave_a_daemon():
    subprocess.Popen(["setsid", "sleep", "40"])
    print("up", flush=True)
    time.sleep(40)

if __name__ == "__main__":
    with LimitedProcessExecutor(2, startup_time={startup_time}) as executor:
        {body}
"""


@pytest.fixture
def callers() -> Iterator[Any]:
    """Starts callers in process groups of their own, and reaps them."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str, startup_time: float = 20) -> subprocess.Popen[str]:
        code = CALLER.format(body=body, startup_time=startup_time)
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            preexec_fn=os.setpgrp,  # noqa: PLW1509 - `process_group` came with Python 3.11
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_for_child(pid: int, name: str = "") -> int:
    """Give the pid of a process below this one, when there is one of that name."""
    return wait_until(
        lambda: [each for each in descendant_pids(pid) if not name or name_of(each) == name]
    )[0]


def stop_group(process: subprocess.Popen[str]) -> None:
    """As Ctrl-Z does, and wait until the caller has stopped."""
    os.killpg(process.pid, signal.SIGTSTP)
    assert os.waitid(os.P_PID, process.pid, os.WSTOPPED) is not None


def test_ctrl_z_while_the_template_starts_keeps_no_task_from_running(callers: Any) -> None:
    """The signal reaches the template as well; what ends the stop, once it has left, does not."""
    caller = callers("print(executor.submit(abs, -3).result())")
    template = wait_for_child(caller.pid)
    stop_group(caller)
    # As long as it is in that group the signal waits for its turn.
    wait_until(lambda: os.getpgid(template) != caller.pid)
    os.killpg(caller.pid, signal.SIGCONT)
    assert caller.stdout.readline() == "3\n"


@pytest.mark.parametrize("name", ["limit-slot", "limit-template"])
def test_nothing_is_left_of_a_dead_caller_whose_helper_was_stopped(
    callers: Any, name: str, marked: Mark
) -> None:
    """The kernel then sends SIGHUP to the helpers' whole group, which must not end them."""
    caller = callers("[executor.submit(leave_a_daemon) for _ in range(2)]")
    assert [caller.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
    helper = wait_for_child(caller.pid, name)
    os.kill(helper, signal.SIGSTOP)
    wait_until_stopped(helper)
    caller.kill()
    wait_until_gone(marked, 20)


def test_time_in_which_the_caller_is_stopped_fails_no_start(callers: Any) -> None:
    """What came meanwhile is heard before a deadline is judged."""
    caller = callers("print(executor.submit(abs, -3).result())", startup_time=1)
    wait_for_child(caller.pid, "limit-slot")
    stop_group(caller)
    time.sleep(1.2)  # longer than `startup_time`
    os.killpg(caller.pid, signal.SIGCONT)
    assert caller.stdout.readline() == "3\n"


def test_call_that_a_stopped_child_does_not_take_is_sent_to_another() -> None:
    """A child that waits may be stopped by anybody."""
    with LimitedProcessExecutor(1, startup_time=1) as executor:
        first = executor.submit(os.getpid).result(PATIENCE)
        assert first not in descendant_pids()
        os.kill(wait_for_child(os.getpid(), "limit-task"), signal.SIGSTOP)
        assert executor.submit(abs, -3).result(PATIENCE) == 3


def test_entry_of_sys_path_that_is_no_string_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python itself passes over it."""
    monkeypatch.setattr(sys, "path", [*sys.path, Path("/nowhere")])
    with LimitedProcessExecutor(1) as executor:
        assert executor.submit(abs, -3).result(PATIENCE) == 3


def test_umask_that_cannot_be_read_is_taken_for_the_strictest() -> None:
    """No descriptor is free to ask /proc with."""
    done = run_script("""
        import os, resource
        from pynisher_exec.kernel import proc
        os.umask(0o027)
        print(oct(proc.umask()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        print(oct(proc.umask()))
    """)
    assert done.stdout.split() == ["0o27", "0o77"], done.stderr
