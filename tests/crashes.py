"""What the tasks of the crash table do, each bounded by what it asks for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn

from pynisher_exec import CpuTimeoutException, TimeoutException

PIECE = 10 << 20


def value() -> int:
    return 42


def work_until_told() -> str:
    try:
        # The loop in a function of its own: the jump back is no part of the `try` that it stands
        # in (3.11 on), so a handler that happens to run there raises past it.
        burn()
    except CpuTimeoutException:
        return "best so far"
    return "never"


def sleep_until_told() -> str:
    try:
        time.sleep(60)
    except TimeoutException:
        return "best so far"
    return "slept"


def raise_value_error() -> NoReturn:
    msg = "reason"
    raise ValueError(msg)


def open_nothing() -> None:
    os.open("/nonexistent/file", os.O_RDONLY)


def hoard() -> None:
    pieces: list[bytearray] = []
    while len(pieces) * PIECE < 1 << 30:
        pieces.append(bytearray(PIECE))


def hold(count: int) -> None:
    """Allocate in C, beyond the reach of RLIMIT_DATA: shared anonymous memory."""
    import mmap  # noqa: PLC0415

    memory = mmap.mmap(-1, count)
    memory.write(b"x" * count)
    time.sleep(60)


def hoard_with_children() -> None:
    for _ in range(4):
        if os.fork() == 0:
            piece = bytearray(60 << 20)
            time.sleep(60)
            del piece
            os._exit(0)
    time.sleep(60)


def raise_memory_error() -> NoReturn:
    raise MemoryError


def burn() -> None:
    while True:
        pass


def burn_in_c() -> None:
    sum(range(10**11))


def burn_in_children() -> None:
    for _ in range(2):
        if os.fork() == 0:
            burn()
    time.sleep(60)


def burn_in_orphan() -> None:
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            burn()
        os._exit(0)
    os.wait()
    time.sleep(60)


def burn_disowned() -> None:
    """Children whose CPU time nobody reaps, one after the other."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(20):
        if os.fork() == 0:
            deadline = time.process_time() + 0.1
            while time.process_time() < deadline:
                pass
            os._exit(0)
        with contextlib.suppress(ChildProcessError):  # what wait says of disowned children
            os.wait()
    time.sleep(60)


def sleep_long() -> None:
    time.sleep(60)


def sleep_in_c() -> None:
    while True:  # a signal ends one sleep, and its handler may run as late as after the return
        ctypes.CDLL(None).sleep(60)


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def ignore_everything() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(60)


def start_sleepers(count: int) -> None:
    for _ in range(count):
        subprocess.Popen(["sleep", "60"])


def segfault() -> None:
    ctypes.string_at(0)


def kill_itself(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def exit_at_once(code: int) -> None:
    os._exit(code)


def exit_politely(code: int) -> None:
    sys.exit(code)


def exit_in_c(code: int) -> None:
    ctypes.CDLL(None).exit(code)


def return_lock() -> Any:
    return threading.Lock()


class TwoArguments(Exception):  # noqa: N818
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)
        self.second = second


def raise_two_arguments() -> NoReturn:
    msg = "first"
    raise TwoArguments(msg, "second")


class AbortsWhenPickled:
    def __reduce__(self) -> Any:
        os.abort()


class HangsWhenPickled:
    def __reduce__(self) -> Any:
        time.sleep(60)
        return int, ()


class AbortsWhenLoaded:
    def __reduce__(self) -> Any:
        return os.abort, ()


class FailsWhenLoaded:
    def __reduce__(self) -> Any:
        return fail_to_load, ()


class HangsWhenLoaded:
    def __reduce__(self) -> Any:
        return time.sleep, (60,)


def fail_to_load() -> NoReturn:
    msg = "not here"
    raise LookupError(msg)


def make(kind: type) -> Any:
    return kind()


def identity(thing: Any) -> Any:
    """Return what came."""
    return thing


def take(thing: Any) -> None:
    del thing


def return_twice() -> str:
    return "parent" if os.fork() else "child"


def raise_in_initializer() -> NoReturn:
    msg = "no licence"
    raise LookupError(msg)


def daemonize(mark: str, then: str) -> str:
    """Leave a daemon behind, in a session of its own, ignoring SIGTERM; then end some way."""
    ready, tell = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.set_inheritable(tell, True)
            code = "import os, sys, time; os.write(int(sys.argv[1]), b'x'); time.sleep(60)"
            os.execve(  # noqa: S606
                sys.executable,
                [sys.executable, "-S", "-c", code, str(tell)],
                {**os.environ, "CRASH_MARK": mark},
            )
        os._exit(0)
    os.wait()
    os.read(ready, 1)
    if then == "raise":
        raise_value_error()
    if then == "sleep":
        time.sleep(60)
    if then == "abort":
        os.abort()
    return "done"
