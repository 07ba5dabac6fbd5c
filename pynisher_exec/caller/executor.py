"""`LimitedProcessExecutor`: the stdlib's contract over a pool, and a few words more."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from pynisher_exec.caller import arguments
from pynisher_exec.caller.launch import is_fork
from pynisher_exec.caller.pool import Pool, PoolOptions
from pynisher_exec.caller.submitting import LimitedExecutor
from pynisher_exec.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.context import BaseContext

__all__ = ["LimitedProcessExecutor"]


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
    inner_max_num_threads: threads that BLAS, OpenMP and the like use in each task; None: the cores
        that there are divided by `max_workers`. By environment variables, so in what is imported
        ahead too; those that the caller has set win (`OMP_NUM_THREADS` for all). ValueError with
        the context "fork", where what the caller has imported stays as it is.
    context: None, or how each task's processes are started: "loky", "spawn", "forkserver", "fork",
        or such a context object.
    strict: ValueError where a limit that is set is less than hard on this machine, see `supports`.

    Raises ValueError or TypeError at once for what is no limit, naming argument and value.
    """

    linger: float | None = None
    """Seconds after which an idle slot is given up, for the heirs that want that."""

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
        inner_max_num_threads: int | None = None,
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
        workers = arguments.workers(max_workers)
        threads = arguments.inner_threads(inner_max_num_threads, workers)
        taken = arguments.take_context(context)
        forks = taken is not None and is_fork(taken)
        if forks and inner_max_num_threads is not None:
            msg = (
                f"inner_max_num_threads={inner_max_num_threads} can do nothing with a fork, where "
                "what the caller has imported stays as it is"
            )
            raise ValueError(msg)
        options = PoolOptions(
            max_workers=workers,
            no_new_privs=bool(no_new_privs),
            kill_timeout=arguments.kill_timeout(kill_timeout),
            startup_time=limits.startup_time or 60.0,
            # A reused process keeps its imports, and would have to end for another template.
            preload=arguments.module_names(() if preload is None and reuses else preload),
            context=taken,
            linger=self.linger,
            max_memory=arguments.memory_bound(max_memory),
            max_tasks=max_tasks_per_child,
            # A fork has what the caller has imported, and its environment as it is.
            threads=0 if forks else threads,
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
