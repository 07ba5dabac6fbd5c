"""`limited`: the same limits for one function, in any process, thread or engine's worker.

All limited functions of a process share hidden executors, one for each way of starting, whose
slots grow with the calls that run at once and are given up when idle.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from pynisher_exec.caller.account import never_started
from pynisher_exec.caller.arguments import capture_bound, take_context
from pynisher_exec.caller.future import AwaitedFuture, LimitedFuture
from pynisher_exec.caller.inbox import ClosedError
from pynisher_exec.caller.item import Item
from pynisher_exec.caller.pool import Pool, PoolOptions, all_pools
from pynisher_exec.caller.support import LIMITS
from pynisher_exec.errors import UnpicklableError
from pynisher_exec.limits import Limits
from pynisher_exec.report import Report, Status
from pynisher_exec.task.private_tmp import new_path
from pynisher_exec.task.run import Call
from pynisher_exec.wrapper import Wrapper

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext

__all__ = ["Limited", "at_shutdown", "call_hidden", "limited", "shutdown"]

P = ParamSpec("P")
T = TypeVar("T")

LINGER = 5.0
"""Seconds after which an idle slot of a hidden executor is given up."""

at_shutdown: list[Callable[[], None]] = []
"""What others keep for their next call is let go of by these."""

_lock = threading.RLock()  # a signal handler may call a limited function in the midst of this
_pools: dict[object, Pool] = {}


def _begin_anew() -> None:
    """In a fork of this process: the pools are the parent's, whose thread may have the lock."""
    global _lock  # noqa: PLW0603  (the old one may never be free)
    _lock = threading.RLock()
    _pools.clear()


os.register_at_fork(after_in_child=_begin_anew)


_KNOWN = (*LIMITS, "capture_output", "private_tmp", "context")


def _refuse_unknown(given: dict[str, Any]) -> None:
    for name in given:
        if name not in _KNOWN:
            msg = f"limited(): {name!r} is no limit; there are {', '.join(_KNOWN)}"
            raise TypeError(msg)


def submit_hidden(item: Item, context: BaseContext | None) -> None:
    """Start a call at once, in the hidden executor for a way of starting; a fork has its own."""
    name = None if context is None else context.get_start_method()
    with _lock:  # `shutdown` closes a pool before or after this, never in between
        pool = _pools.get(name)
        if pool is None or not pool.is_open:
            options = PoolOptions(max_workers=None, context=context, linger=LINGER)
            pool = _pools[name] = Pool(options)
        try:
            pool.submit(item)
        except ClosedError:  # the interpreter ends, and has closed it since
            submit_hidden(item, context)
            return
        if all_pools.has_come:  # this call comes from a thread that goes on: who else closes it?
            pool.close()


def call_hidden(item: Item, context: BaseContext | None) -> Report:
    """Do a call and give its report; pickled and loaded in this very thread.

    A context pickles by itself, in the monitor's thread.
    """
    try:
        if context is None:
            item.pack()
    except UnpicklableError as error:
        return never_started(str(error), error, Status.EXCEPTION).report
    try:
        submit_hidden(item, context)
        return item.future.wait_for_report()
    finally:
        item.future.cancel()  # after Ctrl-C: nobody waits for it any more


def shutdown() -> None:
    """End the hidden executors once their calls are done; the next call starts new ones."""
    with _lock:
        pools = list(_pools.values())
        _pools.clear()
        for pool in pools:
            pool.close()
    for pool in pools:
        pool.join()
    for close in at_shutdown:
        close()


class Limited(Wrapper, Generic[P, T]):
    """A function whose every call runs in a process of its own under limits; made by `limited`.

    It pickles with its limits, so an engine may carry it to its workers.
    """

    def __init__(self, function: Callable[P, T], limits: dict[str, Any]) -> None:
        super().__init__(function)
        self._given = limits
        given = dict(limits)
        _refuse_unknown(given)
        self._context = take_context(given.pop("context", None))
        self._capture = capture_bound(given.pop("capture_output", False))
        self._private_tmp = bool(given.pop("private_tmp", False))
        given.setdefault("startup_time", 60.0)
        self._limits = Limits(**given)

    def by_value(self) -> tuple[Any, ...]:
        """See `Wrapper`."""
        return Limited, (self.func, self._given)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function, wait, and return its value or raise what happened."""
        report = self.report(*args, **kwargs)
        try:
            if report.exception is not None:
                raise report.exception
            value: T = report.result
            return value
        finally:
            del report  # it holds the exception, whose traceback holds this frame

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> LimitedFuture[T]:
        """Start a call and give its future."""
        future: LimitedFuture[T] = LimitedFuture()
        submit_hidden(self._item(future, Call(self.func, args, kwargs)), self._context)
        return future

    def report(self, /, *args: P.args, **kwargs: P.kwargs) -> Report:
        """Call the function and give the whole account, whatever happened; raises nothing of it."""
        item = self._item(AwaitedFuture(), Call(self.func, args, kwargs))
        return call_hidden(item, self._context)

    def _item(self, future: LimitedFuture[Any], call: Call) -> Item:
        path = new_path() if self._private_tmp else ""
        return Item(future, call, self._limits, self._capture, private_tmp=path)

    def __repr__(self) -> str:
        limits = ", ".join(f"{name}={value!r}" for name, value in self._given.items())
        return f"limited({self.func!r}, {limits})"


@overload
def limited(fn: Callable[P, T], /, **limits: Any) -> Limited[P, T]: ...
@overload
def limited(**limits: Any) -> Callable[[Callable[P, T]], Limited[P, T]]: ...


def limited(fn: Any = None, /, **limits: Any) -> Any:
    """Give a function whose every call runs in a process of its own, under limits.

    Takes the limits of `LimitedProcessExecutor` (`memory`, `cpu_time`, `wall_time`, `processes`,
    `grace_period`, `open_files`, `file_size`, `core_size`, `startup_time`), `capture_output`,
    `private_tmp` and `context`; also as a decorator, `@limited(memory="2GiB")`. A call returns the
    value or raises what happened, as `future.result()` does; `.report(...)` gives the `Report`
    instead. ValueError or TypeError at once for what is no limit.
    """
    if fn is None:
        return functools.partial(limited, **limits) if limits else limited
    if not callable(fn):
        msg = f"limited({fn!r}): the first argument must be a function; limits go by name"
        raise TypeError(msg)
    return Limited(fn, limits)
