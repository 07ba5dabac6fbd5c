"""Ending what a task has started by way of multiprocessing and of the executors built upon it.

All children go with the task that started them. What else is run of multiprocessing's exit handling
depends on whether the process goes as well: one that serves another call keeps what works by its
threads alone (thread pools, the feeders of queues), which a later call may find and use.
"""

from __future__ import annotations

import multiprocessing.process
import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threading import Thread

__all__ = ["end"]

PATIENCE = 1.0
"""Seconds for the threads behind pools and executors to see that their workers have gone."""

_EXECUTORS = (
    "concurrent.futures.process",
    "loky.process_executor",
    "joblib.externals.loky.process_executor",
)

_OF_THREADS = ("Pool._terminate_pool", "Queue._finalize_close", "Queue._finalize_join")
"""Exit handlers of thread pools (those of other pools are gone by then) and of queues. They would
end threads behind objects that go on saying that all is well: whoever used one would hang."""


def end(*, again: bool) -> bool:
    """End children, and what would start more; run the exit handlers, some of them if `again`.

    Whether all that is settled: if not, a later call in this process could meet what is still going
    to break. The caller bounds the time, for a queue that nobody reads.
    """
    util: Any = sys.modules.get("multiprocessing.util")
    if util is None:
        return True
    try:
        threads = [*_stop_pools(util), *_shut_executors()]
        _kill_children()
        _join(threads)
        for child in _kill_children():  # those that such a thread has started meanwhile, too
            child.join()
        if again:
            _run_handlers(util)
        else:
            util._exit_function()  # noqa: SLF001  (what a multiprocessing child runs at its end)
    except Exception:  # noqa: BLE001  (the function may have tampered with any of it)
        return False
    return not any(thread.is_alive() for thread in threads)


def _stop_pools(util: Any) -> list[Thread]:
    """Have pools of processes start no more workers; give the threads that did.

    Not by their own handler: it waits for a lock that an idle worker holds, for ever once that has
    been killed, and leaves a pool that takes calls and never answers.
    """
    module: Any = sys.modules.get("multiprocessing.pool")
    threads = []
    for finalizer in list(util._finalizer_registry.values()) if module else ():  # noqa: SLF001
        reference = getattr(finalizer, "_weakref", None)
        pool = None if reference is None else reference()
        if isinstance(pool, module.Pool) and not isinstance(pool, module.ThreadPool):
            handler: Any = pool._worker_handler  # noqa: SLF001
            pool._state = handler._state = module.TERMINATE  # noqa: SLF001
            pool._change_notifier.put(None)  # noqa: SLF001
            finalizer.cancel()
            threads.append(handler)
    return threads


def _shut_executors() -> list[Thread]:
    """Have executors take no more calls; give the threads that watch their workers.

    Until such a thread has seen its workers die, an executor would take a call and then fail it:
    loky has one for all, which a later call would be given.
    """
    threads = []
    for name in _EXECUTORS:
        for thread in list(getattr(sys.modules.get(name), "_threads_wakeups", ())):
            executor = thread.executor_reference()
            if executor is not None:
                executor.shutdown(wait=False)
            threads.append(thread)
    return threads


def _kill_children() -> list[Any]:
    """Kill all: who joins one would wait for it. loky's lack the method for that."""
    children: list[Any] = multiprocessing.process.active_children()
    for child in children:
        with suppress(ProcessLookupError):  # a thread has reaped it
            os.kill(child.pid, signal.SIGKILL)
    return children


def _join(threads: list[Thread]) -> None:
    until = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _run_handlers(util: Any) -> None:
    """Run what `_exit_function` does, but for handlers of threads; it forgets all others, too.

    Those without a priority are of objects, not of the exit, and run when these go.
    """
    registry = util._finalizer_registry  # noqa: SLF001
    for key in sorted((key for key in list(registry) if key[0] is not None), reverse=True):
        finalizer = registry.get(key)
        name = getattr(getattr(finalizer, "_callback", None), "__qualname__", "")
        if finalizer is not None and name not in _OF_THREADS:
            with suppress(Exception):  # as there: the others run all the same
                finalizer()
