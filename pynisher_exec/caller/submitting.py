"""What executors have in common with the views that `limit` gives: tasks go to one pool."""

from __future__ import annotations

import weakref
from concurrent.futures import wait as wait_for
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pynisher_exec.caller import arguments
from pynisher_exec.caller.account import never_started
from pynisher_exec.caller.future import LimitedFuture
from pynisher_exec.caller.item import Item, refuse_unfit
from pynisher_exec.caller.searching import SearchExecutor
from pynisher_exec.caller.shared import Shared
from pynisher_exec.limits import UNSET, Limits, Unset
from pynisher_exec.report import Status
from pynisher_exec.task.private_tmp import new_path
from pynisher_exec.task.run import Call
from pynisher_exec.task.surroundings import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec

    from pynisher_exec.caller.pool import Pool

    P = ParamSpec("P")

__all__ = ["LimitedExecutor"]

T = TypeVar("T")


class LimitedExecutor(SearchExecutor):
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
        ValueError with `context="fork"`, where tasks inherit all objects: pass it as it is. What
        `submit` raises after a shutdown, and in a fork of this process.
        """
        if self._pool.forks:
            msg = "tasks of context 'fork' inherit the caller's objects: pass it as an argument"
            raise ValueError(msg)
        self._pool.check_open()
        return Shared(self._pool.token, thing)

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
