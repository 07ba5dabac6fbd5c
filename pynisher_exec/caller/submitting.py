"""What executors have in common with the views that `limit` gives: tasks go to one pool."""

from __future__ import annotations

import time
import weakref
from concurrent.futures import Executor
from concurrent.futures import wait as wait_for
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pynisher_exec.caller import arguments
from pynisher_exec.caller.account import never_started
from pynisher_exec.caller.ahead import Reports, Results
from pynisher_exec.caller.future import LimitedFuture
from pynisher_exec.caller.item import Item, refuse_unfit
from pynisher_exec.caller.shared import Shared
from pynisher_exec.limits import UNSET, Limits, Unset, duration
from pynisher_exec.report import Status
from pynisher_exec.task.private_tmp import new_path
from pynisher_exec.task.run import Call
from pynisher_exec.task.surroundings import snapshot

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Iterator
    from types import TracebackType
    from typing import ParamSpec

    from pynisher_exec.caller.pool import Pool
    from pynisher_exec.searches.follower import Follower

    P = ParamSpec("P")

__all__ = ["LimitedExecutor"]

T = TypeVar("T")


class LimitedExecutor(Executor):
    """What executors and their views have in common: tasks go to a pool, under given limits."""

    def __init__(
        self,
        pool: Pool,
        limits: Limits,
        capture: int,
        initializer: tuple[Callable[..., object], tuple[Any, ...]] | None = None,
        strict: Callable[[Limits], None] | None = None,
        *,
        private_tmp: bool = False,
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._capture = capture
        self._initializer = initializer
        self._strict = strict
        self._private_tmp = private_tmp
        self._refusal = arguments.refusal(limits, pool.max_memory)
        self._shut = False

    @property
    def max_workers(self) -> int:
        """How many tasks run at once, of this executor and all its views together."""
        assert self._pool.most_at_once is not None  # noqa: S101  (each executor's pool has a bound)
        return self._pool.most_at_once

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> LimitedFuture[T]:
        """Have `fn(*args, **kwargs)` run in a process of its own, under this executor's limits.

        The future raises what the function raised, or one of the `TaskError`s, and carries the
        `Report`. A call that is unfit (a coroutine or generator function), cannot be pickled or
        never fits into `max_memory` fails its own future. RuntimeError after `shutdown`.
        """
        if self._shut:
            msg = "cannot schedule new futures after shutdown"
            raise RuntimeError(msg)
        future: LimitedFuture[T] = LimitedFuture()
        item = Item(
            future,
            Call(fn, args, kwargs),
            self._limits,
            self._capture,
            self._initializer,
            private_tmp=new_path() if self._private_tmp else "",
            owner=self._pool.token,
            surroundings=snapshot(self._pool.threads),
        )
        try:
            refuse_unfit(fn)
        except TypeError as error:
            self._pool.check_open()
            future.set_exception(error)
            return future
        if self._refusal:
            self._pool.check_open()
            answer = never_started(self._refusal, None, Status.REFUSED)
            future.conclude(answer.report, answer.error, cancelled=False)
            return future
        if self._pool.max_memory is not None:  # others may wait for this one's turn
            future.add_done_callback(partial(_look_again, weakref.ref(self._pool)))
        self._pool.submit(item)
        self._note(future)
        return future

    def _note(self, future: LimitedFuture[Any]) -> None:
        """A task has been submitted here."""

    def limit(
        self,
        *,
        memory: int | str | Unset | None = UNSET,
        cpu_time: float | str | Unset | None = UNSET,
        wall_time: float | str | Unset | None = UNSET,
        processes: int | Unset | None = UNSET,
        grace_period: float | str | Unset | None = UNSET,
        open_files: int | Unset | None = UNSET,
        file_size: int | str | Unset | None = UNSET,
        core_size: int | str | Unset | None = UNSET,
        capture_output: bool | int | str | Unset = UNSET,
    ) -> LimitedExecutor:
        """Give an executor over the same slots with other limits; what is left out is inherited.

        None removes a limit. Its `shutdown` concerns only what went through the view. ValueError
        where this executor is strict and a limit is less than hard.
        """
        limits = self._limits.changed(
            memory=memory,
            cpu_time=cpu_time,
            wall_time=wall_time,
            processes=processes,
            grace_period=grace_period,
            open_files=open_files,
            file_size=file_size,
            core_size=core_size,
        )
        capture = self._capture
        if not isinstance(capture_output, Unset):
            capture = arguments.capture_bound(capture_output)
        if self._strict is not None:
            self._strict(limits)
        return _View(self, limits, capture)

    def share(self, thing: object) -> Shared:
        """Give an object to this executor once, for all of its tasks to read.

        The handle stands for it wherever an argument stands in calls to this executor and its
        views: `submit(train, handle, config)`, in a list or an attribute, too. The task gets the
        object as it was now, in a fresh process as ever. Arrays (numpy, pandas, scipy.sparse, what
        pickles with buffers out of band) are neither pickled nor copied for each task: all have the
        same memory, and what one writes there is copied for it. All else is loaded in each task.
        `memory` charges what is written, and not what is read.

        The memory is freed once the handle has gone, see `Shared.close`, and no call needs it.
        Raises what pickling raises, OSError where there is no memory or descriptor for it, and
        ValueError with `context="fork"`, where tasks inherit all objects: pass it as it is.
        """
        if self._pool.forks:
            msg = "tasks of context 'fork' inherit the caller's objects: pass it as an argument"
            raise ValueError(msg)
        return Shared(self._pool.token, thing)

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
            retry=retry,
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

        return follow(fn, iterables, Wishes(**wishes), self._pool.most_at_once)

    def terminate_workers(self) -> None:
        """End running tasks by SIGTERM, after 5 s by SIGKILL; cancel pending ones; shut down.

        Does not wait, as in Python 3.14: `shutdown` does.
        """
        self._shut = True
        self._pool.close(cancel_queued=True, force="gently")

    def kill_workers(self) -> None:
        """End running tasks at once; cancel pending ones; shut down. Does not wait."""
        self._shut = True
        self._pool.close(cancel_queued=True, force="kill")

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


def _look_again(pool: weakref.ref[Pool], _: LimitedFuture[Any]) -> None:
    """A done future keeps its callbacks, and shall keep no pool."""
    known = pool()
    if known is not None:
        known.look_again()


class _View(LimitedExecutor):
    """Other limits, same slots. Keeps the executor that it came from alive.

    Shutting it down or ending its workers concerns what was submitted here alone.
    """

    def __init__(self, parent: LimitedExecutor, limits: Limits, capture: int) -> None:
        super().__init__(
            parent._pool,  # noqa: SLF001
            limits,
            capture,
            parent._initializer,  # noqa: SLF001
            parent._strict,  # noqa: SLF001
            private_tmp=parent._private_tmp,  # noqa: SLF001
        )
        self._parent = parent
        self._mine: set[LimitedFuture[Any]] = set()

    def _note(self, future: LimitedFuture[Any]) -> None:
        self._mine.add(future)
        future.add_done_callback(self._mine.discard)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks here; wait for those there are, unless told not to, or cancel pending.

        The executor that it came from goes on. As that one's does, it never waits in a callback.
        """
        self._shut = True
        mine = list(self._mine)
        if cancel_futures:
            for future in mine:
                future.cancel_if_pending()
        if wait and not self._pool.serves_here:
            wait_for(mine)

    def terminate_workers(self) -> None:
        """As `kill_workers`: a view has no workers of its own to be told of it first."""
        self.kill_workers()

    def kill_workers(self) -> None:
        """Cancel what was submitted here, and end what of it runs; take no more. Does not wait."""
        self._shut = True
        for future in list(self._mine):
            future.cancel()
