"""Tasks that break what they can reach: one future fails, and nobody waits for ever."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import crashes
import pytest
from capabilities import requires
from conftest import wait_until

from pynisher_exec import LimitedProcessExecutor, PynisherError, TimeoutException

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 40
PTRACE_SEIZE = 0x4206


def sockets() -> list[int]:
    """Return the descriptors of this process that are sockets."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                found.append(fd)
    return found


def write_everywhere(data: bytes) -> str:
    """Send bytes of our own to supervisor and caller, then return as if nothing had been."""
    for fd in sockets():
        with contextlib.suppress(OSError):
            os.write(fd, data)
    return "done"


def close_everything() -> str:
    """Close all descriptors, and open a file on their numbers."""
    os.closerange(3, 1000)
    for _ in range(20):
        os.open("/dev/null", os.O_WRONLY)
    return "done"


def close_and_reuse(path: str) -> str:
    """The numbers of the library's own descriptors are a file of the user's now."""
    os.closerange(3, 1000)
    for _ in range(20):
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return "secret"


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"PXF1" + struct.pack("!IQ", 1, 1 << 62),
        b"PXF1" + struct.pack("!I", 1 << 31),
        b'{"kind":"returned"}',
        b'{"kind":"running","at":"x"}',
        b"[" * 5000,
        b"\0" * 100_000,
    ],
    ids=["text", "2^62 bytes", "many segments", "word", "wrong field", "deep", "long"],
)
def test_forged_bytes_fail_one_future(data: bytes) -> None:
    """The stream is no frame any more: `transfer`; the executor and its other tasks go on."""
    with LimitedProcessExecutor(2, wall_time=20) as executor:
        forged = executor.submit(write_everywhere, data)
        others = [executor.submit(crashes.value) for _ in range(4)]
        error = forged.exception(PATIENCE)
        assert [other.result(PATIENCE) for other in others] == [42] * 4
        assert executor.submit(crashes.value).result(PATIENCE) == 42
    assert isinstance(error, PynisherError)
    assert forged.report is not None
    assert forged.report.status == "transfer"


def test_closed_descriptors_fail_one_future(tmp_path: Path) -> None:
    """Without its lines a task cannot say that it returned; no byte goes into a user's file."""
    path = tmp_path / "own"
    with LimitedProcessExecutor(2, wall_time=20) as executor:
        for future in (
            executor.submit(close_everything),
            executor.submit(close_and_reuse, str(path)),
        ):
            assert future.exception(PATIENCE) is not None
            assert future.report is not None
            assert future.report.status in ("exit", "transfer")
        assert executor.submit(crashes.value).result(PATIENCE) == 42
    assert path.read_bytes() == b""


class ForgesWhenLoaded:
    """Says while it is loaded that its function has ended already."""

    def __reduce__(self) -> tuple[object, ...]:
        return write_everywhere, (b'{"kind":"outcome"}',)


def say_running(more: str, path: str | None = None) -> str:
    """Tell the supervisor that the function starts; with descriptors of a file, as many as go."""
    files = [] if path is None else [os.open(path, os.O_RDONLY | os.O_CREAT) for _ in range(4)]
    for fd in sockets():
        with socket.socket(fileno=os.dup(fd)) as line:
            if line.type == socket.SOCK_SEQPACKET:
                socket.send_fds(line, [f'{{"kind":"running"{more}}}'.encode()], files)
    for file in files:
        os.close(file)
    return "said"


class SaysRunningWhenLoaded:
    """Says so before its function starts: this is the one that is believed."""

    def __init__(self, *said: str) -> None:
        self.said = said

    def __reduce__(self) -> tuple[object, ...]:
        return say_running, self.said


def tell_supervisor(_: object) -> int:
    """Return its pid."""
    return os.getppid()


def open_in(pid: int) -> list[str]:
    """Return what a process has open; but for what it closes while we look."""
    found = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(file.readlink()))
    return found


@pytest.mark.parametrize("options", [{}, {"processes": 4}], ids=["no gate", "gate"])
def test_descriptors_that_a_task_gives_away_fill_no_table(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Its supervisor, which serves many after it, closes what it has not asked for."""
    path = tmp_path / "given"
    with LimitedProcessExecutor(1, wall_time=20, **options) as executor:
        says = SaysRunningWhenLoaded("", str(path))
        supervisor = executor.submit(tell_supervisor, says).result(PATIENCE)
        assert path.exists()
        # A moment after the task's account, for which the caller shall not wait.
        wait_until(lambda: str(path) not in open_in(supervisor))


def test_texts_that_a_task_tells_fit_into_its_account_in_any_script() -> None:
    """They are cut to what the account has room for, which is counted in bytes."""
    says = SaysRunningWhenLoaded(',"imported":"' + "\u00e9" * 32_650 + '"')
    with LimitedProcessExecutor(1, wall_time=20) as executor:
        assert executor.submit(tell_supervisor, says).result(PATIENCE)
        assert executor.submit(crashes.value).result(PATIENCE) == 42


def sleep_whatever(_: object) -> None:
    """Take anything and sleep."""
    time.sleep(60)


def test_forged_word_while_loading_escapes_no_limit() -> None:
    """What a task says out of order is not believed: its clocks start with its function."""
    with LimitedProcessExecutor(1, wall_time=0.5) as executor:
        future = executor.submit(sleep_whatever, ForgesWhenLoaded())
        assert isinstance(future.exception(10), TimeoutException)


def tell_pid_and_sleep(path: str) -> None:
    """Write the own pid to a pipe, then wait to be ended."""
    with open(path, "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    time.sleep(60)


@contextlib.contextmanager
def traced_by_a_stopped_outsider(pid: int) -> Iterator[None]:
    """Nothing that is killed can end while its tracer does not let go (ptrace(2))."""
    ready, tell = os.pipe()
    tracer = os.fork()
    if tracer == 0:
        ptrace = ctypes.CDLL(None).ptrace
        ptrace.argtypes = [ctypes.c_long] * 4
        os.write(tell, b"y" if ptrace(PTRACE_SEIZE, pid, 0, 0) == 0 else b"n")
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.close(tell)
    try:
        if os.read(ready, 1) != b"y":
            pytest.skip("this machine does not let us trace a process")
        os.waitpid(tracer, os.WUNTRACED)
        yield
    finally:
        os.close(ready)
        os.kill(tracer, signal.SIGKILL)
        os.waitpid(tracer, 0)


def test_task_that_cannot_be_killed_is_told_with_its_pid(tmp_path: Path) -> None:
    """After `kill_timeout` the future says so, and the slot is replaced."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with LimitedProcessExecutor(1, wall_time=1, kill_timeout=0.5) as executor:
        future = executor.submit(tell_pid_and_sleep, str(pipe))
        pid = int(pipe.read_text())
        with traced_by_a_stopped_outsider(pid):
            error = future.exception(PATIENCE)
            assert isinstance(error, PynisherError)
            assert str(pid) in str(error)
            assert future.report is not None
            assert future.report.status == "unkillable"
            assert executor.submit(crashes.value).result(PATIENCE) == 42


def test_task_that_hangs_after_its_value_is_delivered_is_ended() -> None:
    """The value counts; a non-daemon thread and an exit handler that hangs end with the task."""

    def leave_threads() -> str:
        import threading  # noqa: PLC0415

        threading.Thread(target=time.sleep, args=(60,)).start()
        return "done"

    with LimitedProcessExecutor(1) as executor:
        assert executor.submit(leave_threads).result(10) == "done"


def test_large_values_and_arguments_arrive_whole() -> None:
    """Beyond what a socket holds, in both directions, many at once."""

    def double(data: bytes) -> bytes:
        return data + data

    with LimitedProcessExecutor(2, memory="200MB", wall_time=30) as executor:
        sizes = [0, 1, 1 << 16, 1 << 20, 20 << 20]
        futures = [executor.submit(double, os.urandom(1) * size) for size in sizes]
        assert [len(future.result(PATIENCE)) for future in futures] == [2 * size for size in sizes]


def test_value_that_memory_does_not_allow_to_send_is_a_memory_ending() -> None:
    """Pickling needs room as well; a task that has none left says so, and does not vanish."""

    def fill() -> list[int]:
        return list(range(10_000_000))

    with LimitedProcessExecutor(1, memory="400MB", wall_time=30) as executor:
        future = executor.submit(fill)
        error = future.exception(PATIENCE)
        assert future.report is not None
        assert error is None or future.report.status in ("memory", "exception")
        assert executor.submit(crashes.value).result(PATIENCE) == 42


def bomb() -> None:
    """Fork for two seconds at most."""
    until = time.monotonic() + 2
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            os.fork()


@requires("root")
def test_priority_of_the_supervisor_is_raised_for_no_longer_than_a_bomb_lasts() -> None:
    """The tasks to come inherit it."""
    with LimitedProcessExecutor(1, wall_time=0.3, kill_timeout=20) as executor:
        executor.submit(bomb).exception(PATIENCE)
        niceness = executor.submit(os.getpriority, os.PRIO_PROCESS, 0).result(PATIENCE)
    assert niceness == os.getpriority(os.PRIO_PROCESS, 0)


def pose_as_a_tracker() -> None:
    """Leave a process behind that has multiprocessing's resource tracker in its command line."""
    code = "import time; time.sleep(60)  # resource_tracker import main"
    subprocess.Popen([sys.executable, "-c", code])


def test_what_poses_as_a_resource_tracker_is_ended_a_little_later() -> None:
    """The real ones end by themselves, when they have tidied up."""
    with LimitedProcessExecutor(1) as executor:
        began = time.monotonic()
        executor.submit(pose_as_a_tracker).result(PATIENCE)
        assert time.monotonic() - began < 10
