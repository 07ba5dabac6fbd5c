"""Looks at what is left: by a mark in the environment, at the moment when a future resolves."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import ENV_START, pids_with, stat_of, zombies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

__all__ = ["Looks", "Mark", "marked", "nobody_left"]

VARIABLE = "PYNISHER_EXEC_RELIABILITY"
LONGEST_LOOK = 10.0
"""Seconds after which a look that a resolved future should have had is missed."""


class Mark:
    """A value that no other process has. A program has it whose exec was given `environment`.

    All are of one length.
    """

    def __init__(self, value: str | None = None) -> None:
        self.value = value or secrets.token_hex(12)

    @classmethod
    def own(cls) -> Mark:
        """The one that this process was started with."""
        return cls(os.environ[VARIABLE])

    @property
    def environment(self) -> dict[str, str]:
        """What is around this process, with the mark."""
        return {**os.environ, VARIABLE: self.value}

    @contextlib.contextmanager
    def on_what_is_started(self) -> Iterator[None]:
        """Put it on all programs that this process starts meanwhile, and on their forks."""
        os.environ[VARIABLE] = self.value
        try:
            yield
        finally:
            del os.environ[VARIABLE]

    def put_on_this_process(self) -> None:
        """Put it in the place of the one that is there: on its forks, and on their programs.

        The kernel shows the memory in which a program found its environment; a fork copies it, and
        to change a variable does not change it.
        """
        name = f"{VARIABLE}=".encode()
        offset = Path("/proc/self/environ").read_bytes().index(name) + len(name)
        start = int(stat_of(os.getpid())[ENV_START])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start + offset)
            memory.write(self.value.encode())
        os.environ[VARIABLE] = self.value

    def scan(self, others: Iterable[str] = ()) -> list[int]:
        """Pids of those that have it, or one of others; a zombie has no environment any more."""
        return pids_with(VARIABLE, (self.value, *others))

    def wait_until_gone(self, patience: float) -> float:
        """Seconds for which any was seen; `patience` at most. A look takes its time, too."""
        began = seen = time.monotonic()
        while self.scan() and seen - began <= patience:
            seen = time.monotonic()
            time.sleep(0.002)
        return seen - began


def marked(mark: str, function: Callable[..., Any], *args: Any) -> Any:
    """In a task: be known by a mark from here on, with all that it starts."""
    Mark(mark).put_on_this_process()
    return function(*args)


def nobody_left(mark: Mark, _: object) -> Iterator[str]:
    """For `Looks`: say how many processes have the mark of a task whose future has resolved."""
    left = mark.scan()
    if left:
        yield f"{len(left)} alive when the future resolved"


class Looks:
    """What futures find when they resolve.

    A future logs and swallows what its callbacks raise: here that is a failure, and so is a look
    that never came.
    """

    def __init__(self) -> None:
        self.zombies: set[int] = set()
        """Those that were anywhere below this process at one of the moments."""
        self._failures: list[str] = []
        self._count = 0
        self._looked = threading.Condition()

    def at(self, future: Future[Any], look: Callable[[Any], Iterable[str]]) -> None:
        """Have `look` say what is wrong when the future, which it is given, has resolved."""
        future.add_done_callback(partial(self._look, look))

    def _look(self, look: Callable[[Any], Iterable[str]], future: Future[Any]) -> None:
        seen: list[int] = []
        try:
            seen = zombies()
            wrong = list(look(future))
        except Exception as error:  # noqa: BLE001 - whatever breaks a look is a failure
            wrong = [f"a look broke: {error!r}; {getattr(future, 'report', None)}"[:400]]
        with self._looked:
            self.zombies.update(seen)
            self._failures += wrong
            self._count += 1
            self._looked.notify_all()

    def failures(self, promised: int) -> list[str]:
        """What was wrong, once all the futures that were promised should have resolved.

        Whoever waits for a future may go on a moment before its callbacks are called.
        """
        with self._looked:
            self._looked.wait_for(lambda: self._count >= promised, LONGEST_LOOK)
            missing = [] if self._count == promised else [f"{self._count} looks for {promised}"]
            return self._failures + missing
