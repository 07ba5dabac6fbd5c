"""The thread that writes down and shows the ends of one search's tasks.

A thread of its own, since a disk that is full or slow, or a terminal that stands still, must not
hold up the one that resolves futures, nor wait for the loop that takes the reports.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Sized
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pynisher_exec.report import Status
from pynisher_exec.searches.keys import Keyed, name_of_function
from pynisher_exec.searches.progress import Painter, Progress
from pynisher_exec.searches.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from pynisher_exec.report import Report

__all__ = ["Follower", "Future", "Wishes", "follow"]

AT_ONCE = 500
"""Ends that one transaction holds at most."""

MOST_LOOKED_AT = 1000
"""Tasks that are looked at to count those that run, which are the first ones."""


class Future(Protocol):
    """What a search waits for."""

    @property
    def report(self) -> Report | None:
        """What there is to be told, at the end."""

    def wait_for_report(self) -> Report:
        """Wait for that, and have all of it."""

    def running(self) -> bool:
        """Whether it has begun."""

    def done(self) -> bool:
        """Whether it has ended."""

    def cancel(self) -> bool:
        """End it."""

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Have it called at the end."""


class Wishes(NamedTuple):
    """What is to be done beside running a search; see `LimitedExecutor.reports`."""

    progress: bool = False
    record: str | os.PathLike[str] | None = None
    key: Callable[..., object] | None = None
    resume: bool = False
    retry: Collection[str] = ()
    deadline: float | None = None

    def check(self) -> None:
        """ValueError for what does not go together, or is no status."""
        if self.record is None and (self.key is not None or self.resume or self.retry):
            msg = "key=, resume= and retry= say what to do with a record: pass record= as well"
            raise ValueError(msg)
        if self.key is not None and not callable(self.key):
            msg = f"key={self.key!r} is no function of an item"  # type: ignore[unreachable]
            raise TypeError(msg)
        if self.retry and not self.resume:
            msg = "retry= says what a resumed search runs again: pass resume=True as well"
            raise ValueError(msg)
        known = [status.value for status in Status]
        if isinstance(self.retry, str) or not set(self.retry).issubset(known):
            meant = "" if self.retry not in known else f", such as {{{self.retry!r}}}"
            msg = f"retry={self.retry!r} is no set of statuses{meant}; they are {', '.join(known)}"
            raise ValueError(msg)


def follow(
    fn: Callable[..., Any], items: Iterable[Iterable[Any]], wishes: Wishes, slots: int | None
) -> Follower | None:
    """Make what follows a search; None where nothing of that is wanted."""
    wishes.check()
    if not (wishes.progress or wishes.record is not None or wishes.deadline is not None):
        return None
    name = name_of_function(fn)
    keyed = Keyed(fn, wishes.key) if wishes.record is not None else None
    record = Record(wishes.record, name, slots) if wishes.record is not None else None
    try:
        progress = Progress(_total(items), name.rpartition(".")[2]) if wishes.progress else None
        return Follower(progress, record, keyed, wishes)
    except BaseException:
        if record is not None:
            record.close(ended=True)
        raise


def _total(items: Iterable[Iterable[Any]]) -> int | None:
    """How many calls there will be, where all arguments come from what has a length."""
    total = min(map(_length, items), default=0)
    return None if math.isinf(total) else int(total)


def _length(items: Iterable[Any]) -> float:
    try:
        return len(items) if isinstance(items, Sized) else math.inf
    except TypeError:  # it wraps what has none
        return math.inf


_log = logging.getLogger("pynisher_exec")

_living: weakref.WeakSet[Follower] = weakref.WeakSet()

_of_parents: list[Follower] = []
"""In a fork, for good: SQLite forbids it to close a connection that its parent has opened."""


@atexit.register
def _close_all() -> None:
    """The interpreter ends; by now all tasks have, and what they came to is to be written."""
    for follower in list(_living):
        with contextlib.suppress(Exception):  # one that cannot keeps no other from it
            follower.close(ended=False)


class Follower:
    """Follows one search. `keyed` and `record` go together."""

    def __init__(
        self,
        progress: Progress | None,
        record: Record | None,
        keyed: Keyed | None,
        wishes: Wishes,
    ) -> None:
        self._progress = progress
        self._record = record
        self._keyed = keyed
        self._again = {Status.CANCELLED.value, *wishes.retry}
        self._known = record.last_statuses() if record is not None and wishes.resume else {}
        self._deadline = math.inf
        if wishes.deadline is not None:
            self._deadline = time.monotonic() + wishes.deadline
        self.is_over = False  # the deadline has passed
        self._open: dict[Future, tuple[str, tuple[Any, ...]]] = {}
        self._ended: SimpleQueue[Future | None] = SimpleQueue()
        self._written = threading.Condition()
        self._waiting: set[Future] = set()  # written, and not taken yet
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._has_ended = self._is_told = False
        self._pid = os.getpid()
        _living.add(self)
        # At last: nothing that raises comes after its thread has begun.
        self._painter = None if progress is None else Painter(progress, self._running)

    def wanted(self, calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Give those that are to be run, with their keys: not what is in a record that is resumed.

        Ends at the deadline. Raises what `Keyed.of` raises.
        """
        for args in calls:
            key = "" if self._keyed is None else self._keyed.of(args)
            status = self._known.get(key)
            if status is None or status in self._again:
                if self.is_over:
                    return
                yield key, args
            elif self._progress is not None:
                self._progress.skip()

    def add(self, future: Future, key: str, args: tuple[Any, ...]) -> None:
        """A call has been submitted."""
        self._open[future] = key, args
        if self.is_over:  # since it was asked whether this one may still begin
            future.cancel()
        if self._thread is None:
            thread = threading.Thread(target=self._follow, name="pynisher_exec search", daemon=True)
            thread.start()
            self._thread = thread
        future.add_done_callback(self._ended.put)

    def wait_for(self, future: Future) -> None:
        """Wait until its end has been written down. RecordError where nothing can be any more."""
        if self._record is None:
            return
        with self._written:
            while future not in self._waiting:
                if self._error is not None:
                    self._is_told = True
                    raise self._error
                self._written.wait()
            self._waiting.remove(future)

    def close(self, *, ended: bool) -> None:
        """Write what has ended; `ended`: the search has come to its end.

        The thread itself lets go of the record: this may be called in it, in the midst of a write,
        by a collection; and whoever interrupts this has it go on all the same.
        """
        if os.getpid() != self._pid:  # a fork: the search, and its connection, are its parent's
            _of_parents.append(self)
            return
        self._has_ended |= ended
        if self._thread is None:
            self._let_go()
            return
        self._ended.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _let_go(self) -> None:
        painter, self._painter = self._painter, None
        if painter is not None:
            painter.close()
        record, self._record = self._record, None
        if record is not None:
            record.close(ended=self._has_ended and self._error is None)

    # -- the thread ------------------------------------------------------------------------------

    def _follow(self) -> None:
        goes_on = True
        while goes_on:
            batch = self._next_batch()
            goes_on = None not in batch
            self._take([future for future in batch if future is not None])
            if not self.is_over and time.monotonic() >= self._deadline:
                self.is_over = True
                for future in list(self._open):
                    future.cancel()
        try:
            self._let_go()
        except Exception as error:  # noqa: BLE001  (a full disk, mostly: it is told below)
            self._error = self._error or error
        if self._error is not None and not self._is_told:
            _log.warning("the search's last ends are not in its record: %s", self._error)

    def _next_batch(self) -> list[Future | None]:
        """What has ended; after a while also nothing."""
        batch: list[Future | None] = []
        wait = math.inf if self.is_over else max(0.0, self._deadline - time.monotonic())
        try:
            batch.append(self._ended.get(timeout=None if math.isinf(wait) else wait))
            while batch[-1] is not None and len(batch) < AT_ONCE:
                batch.append(self._ended.get_nowait())
        except Empty:
            pass
        return batch

    def _take(self, futures: list[Future]) -> None:
        ends = []
        for future in futures:
            key, args = self._open.pop(future)
            report = self._report_of(future)
            ends.append((key, args, report))
        kept = [end for end in ends if end[2].status is not Status.CANCELLED]
        try:
            if self._record is not None and kept and self._error is None:
                self._record.write(kept)
        except Exception as error:  # noqa: BLE001  (whoever takes the reports is told)
            self._error = error
        with self._written:
            if self._error is None and self._record is not None:
                self._waiting.update(futures)
            self._written.notify_all()
        if self._progress is not None:
            for _, _, report in ends:
                self._progress.end(report.status)

    def _report_of(self, future: Future) -> Report:
        """It is done; for a record with its value, wherever that is."""
        report = future.report if self._record is None else future.wait_for_report()
        assert report is not None  # noqa: S101  (it is done)
        return report

    def _running(self) -> int:
        """The first ones run: looked at until some wait."""
        count = 0
        for future in itertools.islice(list(self._open), MOST_LOOKED_AT):
            if future.running():
                count += 1
            elif not future.done():
                break
        return count
