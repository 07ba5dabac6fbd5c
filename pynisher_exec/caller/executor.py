"""`LimitedProcessExecutor`: the stdlib's contract over a pool, and a few words more."""

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
from pynisher_exec.caller.pool import Pool, PoolOptions
from pynisher_exec.caller.shared import Shared
from pynisher_exec.limits import UNSET, Limits, Unset
from pynisher_exec.report import Status
from pynisher_exec.task.private_tmp import new_path
from pynisher_exec.task.run import Call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from multiprocessing.context import BaseContext
    from types import TracebackType
    from typing import ParamSpec

    from pynisher_exec.report import Report

    P = ParamSpec("P")

__all__ = ["LimitedExecutor", "LimitedProcessExecutor"]

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
    ) -> Iterator[T]:
        """Yield `fn`'s values in the order of its arguments, as `concurrent.futures` does.

        Each item is a task of its own under its own limits, whatever `chunksize` says.
        `buffersize` bounds how many tasks are submitted ahead of the value being waited for.
        Raises the first failure met; closing the iterator, or its failure, cancels what still runs.
        """
        if chunksize < 1:
            msg = "chunksize must be >= 1."
            raise ValueError(msg)
        arguments.check_buffersize(buffersize)
        deadline = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables) if iterables else iter(())  # noqa: B905  (the stdlib's rule: shortest)
        return Results(self, fn, calls, buffersize, deadline)

    def reports(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        ordered: bool = True,
        buffersize: int | None = None,
    ) -> Iterator[Report]:
        """Yield one `Report` for each item, failures included: in order, or as they are done.

        Closing the iterator early cancels its own tasks that have not ended.
        """
        arguments.check_buffersize(buffersize)
        calls = zip(*iterables) if iterables else iter(())  # noqa: B905  (as in `map`)
        return Reports(self, fn, calls, buffersize, ordered=ordered)

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


class LimitedProcessExecutor(LimitedExecutor):
    """An executor whose every task runs in a fresh process of its own, under limits.

    Limits (None: none; each covers the task's whole tree of processes unless said otherwise)

    memory: bytes held beyond what the process held when the function started; an int, or a string
        such as "2GiB", "500MB", "50%" (of the machine's). ValueError below 1 MiB.
    cpu_time: CPU seconds of all processes together, ended and orphaned ones included.
    wall_time: seconds from the start of the function. Durations are numbers or "90s", "1h30min".
    processes: subprocesses alive at once, threads do not count; 0: none may be started.
    grace_period: seconds between the soft signal (an exception inside the function) and the kill,
        for `cpu_time` and `wall_time`. Without it the tree is killed at once.
    open_files, file_size, core_size: the rlimits RLIMIT_NOFILE, RLIMIT_FSIZE, RLIMIT_CORE of each
        process (setrlimit(2)).
    startup_time: seconds that loading a call may take (imports, unpickling, `initializer`).

    The rest

    max_workers: tasks that run at once; default `loky.cpu_count()`.
    max_memory: bytes, or a string as for `memory`, that the `memory` limits of all tasks that run
        add up to at most: a task waits until it fits, and none overtakes it. One that never fits,
        for want of a limit or because of it, fails at once with the status `refused`.
    kill_timeout: seconds after which a process that does not die makes its task `unkillable`.
    no_new_privs: set that flag in tasks (PR_SET_NO_NEW_PRIVS): sudo and ping do not work there. Of
        root's capabilities they do without CAP_SYS_RESOURCE, by which they could lift rlimits.
        Without it a normal user's `processes` limit is counted, not gated.
    capture_output: keep what is written to descriptors 1 and 2, True for 1 MiB a stream, or a
        bound in bytes; beyond it head and tail are kept.
    private_tmp: give each task a TMPDIR of its own, which is gone when its future resolves.
    preload: names of modules to import once, ahead of all tasks. None: what loading the first tasks
        was seen to import, of installed modules, and as far as forks stay safe after it; (): none.
    initializer, initargs: called in every task before its limits begin.
    max_tasks_per_child: how many tasks a process serves, one after the other; None: any number.
        More than 1 waives what a fresh process gives: a task finds the modules, their globals and
        the threads that earlier ones left, `processes` is counted instead of gated, and a task may
        lift its own rlimits; the limits count anew for each, and a process that met one is
        replaced. `initializer` is called once in each process (one of `__main__`, which travels
        with each call: before each), and nothing is imported ahead but what `preload` names.
        ValueError with `context` or `strict`.
    context: None, or how each task's processes are started: "loky", "spawn", "forkserver", "fork",
        or such a context object.
    strict: ValueError where a limit that is set is less than hard on this machine, see `supports`.

    Raises ValueError or TypeError at once for what is no limit, naming argument and value.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        max_memory: int | str | None = None,
        memory: int | str | None = None,
        cpu_time: float | str | None = None,
        wall_time: float | str | None = None,
        processes: int | None = None,
        grace_period: float | str | None = None,
        open_files: int | None = None,
        file_size: int | str | None = None,
        core_size: int | str | None = None,
        startup_time: float | str = 60.0,
        kill_timeout: float | str = 10.0,
        no_new_privs: bool = True,
        capture_output: bool | int | str = False,
        private_tmp: bool = False,
        preload: Sequence[str] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = 1,
        context: str | BaseContext | None = None,
        strict: bool = False,
    ) -> None:
        # Limits turns strings into numbers.
        limits = Limits(
            memory=memory,  # type: ignore[arg-type]
            cpu_time=cpu_time,  # type: ignore[arg-type]
            wall_time=wall_time,  # type: ignore[arg-type]
            processes=processes,
            grace_period=grace_period,  # type: ignore[arg-type]
            open_files=open_files,
            file_size=file_size,  # type: ignore[arg-type]
            core_size=core_size,  # type: ignore[arg-type]
            startup_time=startup_time,  # type: ignore[arg-type]
        )
        arguments.check_initializer(initializer)
        arguments.check_reuse(max_tasks_per_child, context, strict=strict)
        reuses = max_tasks_per_child != 1
        options = PoolOptions(
            max_workers=arguments.workers(max_workers),
            no_new_privs=bool(no_new_privs),
            kill_timeout=arguments.kill_timeout(kill_timeout),
            startup_time=limits.startup_time or 60.0,
            # A reused process keeps its imports, and would have to end for another template.
            preload=arguments.module_names(() if preload is None and reuses else preload),
            context=arguments.take_context(context),
            max_memory=arguments.memory_bound(max_memory),
            max_tasks=max_tasks_per_child,
        )
        refuse = partial(_refuse_soft, no_new_privs=options.no_new_privs) if strict else None
        if refuse is not None:
            refuse(limits)
        capture = arguments.capture_bound(capture_output)
        begin = None if initializer is None else (initializer, arguments.init_arguments(initargs))
        super().__init__(
            Pool(options), limits, capture, begin, refuse, private_tmp=bool(private_tmp)
        )
        weakref.finalize(self, Pool.close, self._pool).atexit = False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; wait for those there are, unless told not to, or cancel pending."""
        self._shut = True
        self._pool.close(cancel_queued=cancel_futures)
        if wait:
            self._pool.join()


def _refuse_soft(limits: Limits, *, no_new_privs: bool) -> None:
    from pynisher_exec.caller.support import refuse_less_than_hard  # noqa: PLC0415  (it probes)

    refuse_less_than_hard(limits, no_new_privs=no_new_privs)
