"""What the tasks of `causes` and `endings` do, each bounded by what it asks for."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pynisher_exec import TimeoutException

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


class Oddity(Exception):  # noqa: N818 - it is named for what it is
    """Cannot be loaded: it is made with two arguments and pickles as if with one."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def echo(data: bytes) -> bytes:
    """Give back what came."""
    return data


def fail(number: int) -> None:
    """Raise with a number that the caller knows."""
    raise ValueError(number)


def fail_oddly() -> None:
    """Raise what cannot be loaded."""
    first = "one"
    raise Oddity(first, "two")


def fail_to_open() -> None:
    """Raise the kernel's own error."""
    os.open("/nowhere/at/all", os.O_RDONLY)


def crash() -> None:
    """Read at address 0."""
    ctypes.string_at(0)


def kill_itself(number: int) -> None:
    """End by a signal."""
    os.kill(os.getpid(), number)
    time.sleep(60)


def hog(size: int) -> int:
    """Ask for memory."""
    return len(bytearray(size))


def burn() -> None:
    """Use CPU time for ever."""
    while True:
        pass


def burn_in_c() -> None:
    """Use CPU time where no signal handler runs."""
    sum(range(10**11))


def burn_in_children() -> None:
    """Have two children use CPU time."""
    for _ in range(2):
        if os.fork() == 0:
            burn()
    time.sleep(60)


def burn_in_an_orphan() -> None:
    """Have a process use CPU time whose parent has gone."""
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            burn()
        os._exit(0)
    os.wait()
    time.sleep(60)


def hog_shared(size: int) -> None:
    """Touch memory that no rlimit counts."""
    memory = mmap.mmap(-1, size)
    memory.write(bytes(size))
    time.sleep(60)


def hog_in_children(size: int) -> None:
    """Have four children hold a part each."""
    for _ in range(4):
        if os.fork() == 0:
            held = bytearray(b"x") * (size // 4)
            time.sleep(60)
            del held
    time.sleep(60)


def hog_in_a_program(size: int) -> None:
    """Have another program hold memory."""
    code = (
        "import mmap, time\n"
        f"held = mmap.mmap(-1, {size})\n"  # no rlimit refuses that
        f"while held.tell() < {size}: held.write(bytes(1 << 20))\n"
        "time.sleep(60)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    time.sleep(60)


def raise_memory_error() -> NoReturn:
    """As a library does whose own allocator has refused."""
    raise MemoryError


def fork_too_often(*, swallow: bool) -> str:
    """Start more sleepers than there may be."""
    try:
        for _ in range(10):
            if os.fork() == 0:
                time.sleep(60)
    except OSError:
        if not swallow:
            raise
    return "done"


def find_nothing_to_read() -> None:
    """Meet EAGAIN where no process was to be started."""
    reading, _ = os.pipe2(os.O_NONBLOCK)
    os.read(reading, 1)


def exit_politely(code: int) -> None:
    """By the exception."""
    sys.exit(code)


def exit_in_c(code: int) -> None:
    """Behind the interpreter's back."""
    ctypes.CDLL(None).exit(code)


def stop_itself() -> None:
    """By SIGSTOP."""
    os.kill(os.getpid(), signal.SIGSTOP)


def ignore_signals() -> None:
    """All that can be."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(60)


def hog_and_burn(size: int, seconds: float) -> None:
    """Grow so that memory and CPU time reach their limits at about the same moment."""
    held = []
    pieces = 50
    while True:
        held.append(bytearray(b"x") * (size // pieces))
        end = time.process_time() + seconds / pieces
        while time.process_time() < end:
            pass


def hog_slowly(size: int, seconds: float) -> None:
    """Grow so that memory and wall time reach their limits at about the same moment."""
    held = []
    pieces = 50
    while True:
        held.append(bytearray(b"x") * (size // pieces))
        time.sleep(seconds / pieces)


def then(seconds: float, how: str) -> str:
    """Sleep for as long as about the limit, then return or raise."""
    time.sleep(seconds)
    if how == "raise":
        raise ValueError(how)
    return how


def tell_and(how: str, seconds: float, path: str) -> None:
    """Sleep for as long as about the limit, then end some way, or sleep on to be ended.

    Tells its pid, and when it began by two clocks; in a second line when it is about to end.
    """
    began, clock = time.monotonic(), time.time()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{os.getpid()} {began} {clock}\n".encode())
    time.sleep(60 if how == "wait" else max(0.0, seconds - (time.monotonic() - began)))
    # Nobody shall come between the telling and the end: a busy machine has made 20 ms of it.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    os.write(file, str(time.monotonic()).encode())
    match how:
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            crash()


def send_much(seconds: float) -> bytes:
    """Return a large value at about the limit."""
    time.sleep(seconds)
    return bytes(64 * MIB)


def return_much(seconds: float) -> bytes:
    """Return at a moment what takes longer to be pickled than the limit is away."""
    began = time.monotonic()
    value = bytes(352 * MIB)
    time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    return value


def after(path: str, seconds: float, function: Callable[[], object]) -> object:
    """Tell that it has begun, wait, then call."""
    Path(path).touch()
    time.sleep(seconds)
    return function()


def swallow_and(how: str) -> str:
    """Catch the soft exception, then go on, return or raise."""
    try:
        time.sleep(60)
    except TimeoutException:
        if how == "raise":
            raise ValueError(how) from None
    if how == "sleep":
        time.sleep(60)
    return how


def burn_until_told() -> str:
    """Return when the soft signal comes."""
    with contextlib.suppress(BaseException):
        burn()
    return "told"


def survive_a_child(number: int) -> int:
    """Lose a child to a signal, and return."""
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), number)
        time.sleep(60)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fail_by_a_child() -> None:
    """Raise because a program was killed."""
    subprocess.run(["/bin/sh", "-c", "kill -9 $$"], check=True)


class Unloadable:
    """Cannot be made in the task."""

    def __reduce__(self) -> tuple[object, ...]:
        return fail, (7,)


class Untravelling:
    """Ends the process that pickles or loads it."""

    def __init__(self, when: str) -> None:
        self._when = when

    def __reduce__(self) -> tuple[object, ...]:
        if self._when == "pickled":
            os.abort()
        return os.abort, ()


def open_too_many() -> None:
    """Take descriptors until there is none."""
    while True:
        os.open(os.devnull, os.O_RDONLY)


def write_too_much() -> None:
    """Have a file grow until it must not."""
    with tempfile.TemporaryFile(buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def take(_: object) -> None:
    """Take anything."""
