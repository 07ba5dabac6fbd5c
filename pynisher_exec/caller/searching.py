"""What every executor here does with many items: `map`, `reports`, and an end after Ctrl-C."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar

from pynisher_exec.caller import arguments
from pynisher_exec.caller.ahead import Reports, Results
from pynisher_exec.limits import duration

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Iterator
    from types import TracebackType

    from pynisher_exec.caller.future import LimitedFuture
    from pynisher_exec.searches.follower import Follower

__all__ = ["SearchExecutor"]

T = TypeVar("T")


class SearchExecutor(Executor):
    """An executor whose futures carry reports; `submit` and three ways to end are the heir's."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> LimitedFuture[T]:
        """Submit a call."""
        raise NotImplementedError

    def kill_workers(self) -> None:
        """End all tasks."""
        raise NotImplementedError

    @property
    def max_workers(self) -> int:
        """How many tasks run at once; 0: none yet."""
        raise NotImplementedError

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> Iterator[T]:
        """Yield `fn`'s values in the order of its arguments, as `concurrent.futures` does.

        Each item is a task of its own under its own limits, whatever `chunksize` says.
        `buffersize` bounds how many tasks are submitted ahead of the value being waited for.
        `progress` shows how far it is, see `reports`.
        Raises the first failure met; closing the iterator, or its failure, cancels what still runs.
        """
        if chunksize < 1:
            msg = "chunksize must be >= 1."
            raise ValueError(msg)
        arguments.check_buffersize(buffersize)
        deadline = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables) if iterables else iter(())  # noqa: B905  (the stdlib's rule: shortest)
        follower = self._follower(fn, iterables, progress=progress)
        return Results(self, fn, calls, buffersize, deadline, follower)

    def reports(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        ordered: bool = True,
        buffersize: int | None = None,
        progress: bool = False,
        record: str | os.PathLike[str] | None = None,
        key: Callable[..., object] | None = None,
        resume: bool = False,
        retry: Collection[str] = (),
        deadline: float | str | None = None,
    ) -> Reports:
        """Yield one `Report` for each item, failures included: in order, or as they are done.

        Closing the iterator early cancels its own tasks that have not ended. Its `summary` counts
        those that have been taken by status; a notebook shows it as a table.

        progress: show a bar on stderr, or in a notebook (extra `progress`): what is done, what runs
            and how tasks ended. Where stderr is no terminal: a line every half minute.
        record: path of an SQLite file that gets each report as its task ends, and before it is
            yielded; made where there is none, see `pynisher_exec.searches.record`. What is in it
            survives the kill of this process. Cancelled tasks are not recorded.
        resume: leave out the items that are in the record already. `retry`: statuses ("wall_time")
            whose items are run again all the same, cancelled ones always are.
        key: what an item is known by in the record, from its arguments; a string, or what JSON
            takes. Without it the function's name with its arguments, where JSON can hold these.
        deadline: seconds from now, or "90min", for the whole search: then no task is begun any
            more, and what runs is cancelled; the reports say so.

        Raises ValueError for what has no key or does not go together, ImportError without tqdm, and
        `RecordError` where the record is not ours or cannot be written, also while it goes on.
        """
        arguments.check_buffersize(buffersize)
        calls = zip(*iterables) if iterables else iter(())  # noqa: B905  (as in `map`)
        follower = self._follower(
            fn,
            iterables,
            progress=progress,
            record=record,
            key=key,
            resume=resume,
            retry=retry or (),
            deadline=None if deadline is None else duration("deadline", deadline),
        )
        return Reports(self, fn, calls, buffersize, ordered=ordered, follower=follower)

    def _follower(
        self, fn: Callable[..., Any], iterables: tuple[Iterable[Any], ...], **wishes: Any
    ) -> Follower | None:
        if not any(
            value is not None and value != () and value is not False for value in wishes.values()
        ):
            return None
        # sqlite3 takes milliseconds to import.
        from pynisher_exec.searches.follower import Wishes, follow  # noqa: PLC0415

        return follow(fn, iterables, Wishes(**wishes), self.max_workers or None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for all tasks; after Ctrl-C, in the block or in this wait, end them."""
        try:
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                self.kill_workers()
            self.shutdown(wait=True)
        except KeyboardInterrupt:
            self.kill_workers()
            self.shutdown(wait=True)
            raise
