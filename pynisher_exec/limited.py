"""`limited`: the same limits for one function, in any process, thread or engine's worker.

All limited functions of a process share hidden executors, one for each way of starting, whose
slots grow with the calls that run at once and are given up when idle.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

from pynisher_exec.caller.executor import LimitedExecutor, capture_bound, take_context
from pynisher_exec.caller.pool import Pool, PoolOptions
from pynisher_exec.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext

    from pynisher_exec.caller.future import LimitedFuture
    from pynisher_exec.report import Report

__all__ = ["Limited", "hidden_pool", "limited", "shutdown"]

P = ParamSpec("P")
T = TypeVar("T")

LINGER = 5.0
"""Seconds after which an idle slot of a hidden executor is given up."""

_lock = threading.Lock()
_pools: dict[object, Pool] = {}


def hidden_pool(context: BaseContext | None) -> Pool:
    """Give the hidden executor's pool for a way of starting; a fork gets one of its own."""
    name = None if context is None else context.get_start_method()
    with _lock:
        pool = _pools.get(name)
        if pool is None or not pool.is_open:
            options = PoolOptions(max_workers=None, context=context, linger=LINGER)
            pool = _pools[name] = Pool(options)
        return pool


def shutdown() -> None:
    """End the hidden executors once their calls are done; the next call starts new ones."""
    with _lock:
        pools = list(_pools.values())
        _pools.clear()
    for pool in pools:
        pool.close()
    for pool in pools:
        pool.join()


class Limited(Generic[P, T]):
    """A function whose every call runs in a process of its own under limits; made by `limited`.

    It pickles with its limits, so an engine may carry it to its workers.
    """

    def __init__(self, function: Callable[P, T], limits: dict[str, Any]) -> None:
        self._function = function
        self._given = limits
        given = dict(limits)
        self._context = take_context(given.pop("context", None))
        self._capture = capture_bound(given.pop("capture_output", False))
        given.setdefault("startup_time", 60.0)
        self._limits = Limits(**given)
        functools.update_wrapper(self, function)

    def __reduce__(self) -> tuple[Any, ...]:
        return Limited, (self._function, self._given)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function, wait, and return its value or raise what happened."""
        future = self.submit(*args, **kwargs)
        try:
            return future.result()
        finally:
            future.cancel()  # after Ctrl-C: nobody waits for it any more

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> LimitedFuture[T]:
        """Start a call and give its future."""
        executor = LimitedExecutor(hidden_pool(self._context), self._limits, self._capture)
        return executor.submit(self._function, *args, **kwargs)

    def report(self, /, *args: P.args, **kwargs: P.kwargs) -> Report:
        """Call the function and give the whole account, whatever happened; raises nothing of it."""
        future = self.submit(*args, **kwargs)
        try:
            return future.wait_for_report()
        finally:
            future.cancel()

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Bind as a function does: a limited method takes its instance along."""
        return self if instance is None else functools.partial(cast("Any", self), instance)

    def __repr__(self) -> str:
        limits = ", ".join(f"{name}={value!r}" for name, value in self._given.items())
        return f"limited({self._function!r}, {limits})"


@overload
def limited(fn: Callable[P, T], /, **limits: Any) -> Limited[P, T]: ...
@overload
def limited(**limits: Any) -> Callable[[Callable[P, T]], Limited[P, T]]: ...


def limited(fn: Any = None, /, **limits: Any) -> Any:
    """Give a function whose every call runs in a process of its own, under limits.

    Takes the limits of `LimitedProcessExecutor` (`memory`, `cpu_time`, `wall_time`, `processes`,
    `grace_period`, `open_files`, `file_size`, `core_size`, `startup_time`), `capture_output` and
    `context`; also as a decorator, `@limited(memory="2GiB")`. A call returns the value or raises
    what happened, as `future.result()` does; `.report(...)` gives the `Report` instead. ValueError
    or TypeError at once for what is no limit.
    """
    if fn is None:
        return functools.partial(limited, **limits) if limits else limited
    if not callable(fn):
        msg = f"limited({fn!r}): the first argument must be a function; limits go by name"
        raise TypeError(msg)
    return Limited(fn, limits)
