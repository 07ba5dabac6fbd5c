"""What the tests of `enforce_limits` run: functions and objects that are cheap to import.

Every task that runs one imports this module: no pytest here, and nothing decorated.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pynisher_exec import CpuTimeoutException, TimeoutException

if TYPE_CHECKING:
    from collections.abc import Callable


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what it was called with."""
    return args, kwargs


def add(first: int, second: int = 2, *, third: int = 3) -> int:
    """Add three numbers."""
    return first + second + third


def raise_it(error: BaseException) -> NoReturn:
    """Raise what is given."""
    raise error


def raise_oom() -> NoReturn:
    """Raise as an allocation that was refused does."""
    raise MemoryError


def write(text: str, then: float = 0) -> str:
    """Print to both streams, then sleep."""
    print(text)  # noqa: T201
    print(text, file=sys.stderr)  # noqa: T201
    time.sleep(then)
    return text


def faults(then: float = 0) -> int:
    """How many pages this process had to be given one by one; stay a while after that."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    time.sleep(then)
    return found


PAGES = 2000
_things = [bytearray(resource.getpagesize()) for _ in range(PAGES)]


def refer() -> int:
    """How many pages had to be given for as many objects to be referred to, for a moment."""
    before = faults()
    for thing in _things:
        thing[0] = 1
    return faults() - before


def open_files() -> list[str]:
    """What the descriptors of this process are open on."""
    places = list(Path("/proc/self/fd").iterdir())
    return [str(place.readlink()) for place in places if place.is_symlink()]


def burn_for(seconds: float) -> float:
    """Use CPU time."""
    while time.process_time() < seconds:
        pass
    return time.process_time()


def burn_on() -> NoReturn:
    """Swallow the soft signal, once, and go on."""
    with contextlib.suppress(CpuTimeoutException):
        burn_for(60)
    while True:
        pass


def sleep_on() -> None:
    """Swallow the soft signal, and go on."""
    try:
        time.sleep(60)
    except TimeoutException:
        time.sleep(60)


def make_bytes(count: int) -> bytes:
    """Return that many."""
    return bytes(count)


def hold(count: int) -> int:
    """Hold that many bytes."""
    return len(bytearray(count))


def fork_children(count: int) -> int:
    """Fork that many at once; return the number that could be."""
    keep, release = os.pipe()
    made = []
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                os.close(release)
                os.read(keep, 1)
                os._exit(0)
            made.append(pid)
    finally:
        os.close(release)
        for pid in made:
            os.waitpid(pid, 0)
    return len(made)


def put(queue: Any, thing: object) -> None:
    """Put into a queue."""
    queue.put(thing)


def take_lock(lock: Any) -> bool:
    """Take it and let it go."""
    with lock:
        return True


def write_line(file: Any, line: str) -> int:
    """Write to a file that is open."""
    file.write(line)
    file.flush()
    return os.getpid()


def log_line() -> str:
    """Log, which takes the locks of the logging module."""
    logging.getLogger("held").warning("from the task")
    return "logged"


def size_of(thing: Any) -> int:
    """Return its length."""
    return len(thing)


def type_of(thing: object) -> str:
    """Return its type's name."""
    return type(thing).__name__


def make(kind: Callable[[], Any]) -> Any:
    """Return what this makes."""
    return kind()


class RefusesRepr:
    """Large, and must not be printed."""

    def __init__(self) -> None:
        self.data = bytes(50_000_000)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        msg = "the repr was built"
        raise AssertionError(msg)


class RefusesReprFloat(float):
    """A float that must not be printed."""

    def __repr__(self) -> str:
        msg = "the repr was built"
        raise AssertionError(msg)


class NotesOrder:
    """Notes in `compared` that it was compared."""

    compared = 0

    def __lt__(self, other: object) -> bool:
        NotesOrder.compared += 1
        return False


array = type("array", (), {"__module__": __name__})
"""A class that bears the name of the stdlib's."""


def make_large_int() -> int:
    """Return a number whose repr the interpreter refuses to build."""
    return 1 << 50_000


class Adder:
    """An object that is called."""

    def __init__(self, base: int) -> None:
        self.base = base

    def __call__(self, x: int, *, y: int = 0) -> int:
        """Add."""
        return self.base + x + y


class Proxy:
    """Has an attribute of any name, another proxy; adds one when it is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Proxy()

    def __call__(self, x: int) -> int:
        """Add one."""
        return x + 1


MIXED = 8
"""How many endings `end_somehow` has."""


def end_somehow(n: int) -> str:
    """End in the n-th of many ways."""
    match n % MIXED:
        case 0:
            return f"value {n}"
        case 1:
            msg = f"reason {n}"
            raise ValueError(msg)
        case 2:
            raise OSError(1000 + n, "reason")
        case 3:
            os._exit(n % 200)
        case 4:
            os.kill(os.getpid(), signal.SIGKILL)
            return "survived"
        case 5:
            raise MemoryError
        case 6:
            sys.exit(n % 200)
        case _:
            time.sleep(60)
            return "slept"
