"""A joblib backend whose every call runs in a process of its own, under limits.

    import pynisher_exec.joblib
    with joblib.parallel_config("limited", n_jobs=4, memory="2GiB", wall_time=60, grace_period=5):
        GridSearchCV(...).fit(X, y)

Importing this registers it. It takes the limits and options of `LimitedProcessExecutor`, here or as
`joblib.Parallel(backend="limited", memory=...)` (from joblib 1.5 on), and two of its own:

on_kill: "raise", what joblib's own backends come to; or "error_score": a fit of a scikit-learn
    search or cross-validation that had to be killed gets the search's `error_score`, as one that
    raises does, and the search goes on. By scikit-learn's own function for that, which is private:
    with a version that has none like it, ValueError.
reports: the list that gets the `Report` of each call, in the order of their ends.

Calls one after the other that want the same share a template, which has imported by then what they
need; it waits for the next one until `pynisher_exec.shutdown()`, as that of `limited` does.

What runs in the caller itself has no limits: the refit of a search, and whatever is not passed to
`joblib.Parallel`. With `n_jobs=1` joblib would run all there, so it is told of two, and one works.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from pynisher_exec.caller.executor import LimitedProcessExecutor
from pynisher_exec.decorator import LINGER, at_shutdown
from pynisher_exec.errors import TaskError

try:
    import joblib
    from joblib.parallel import FallbackToBackend, ParallelBackendBase, SequentialBackend
except ImportError as problem:
    _MESSAGE = "pynisher_exec.joblib needs joblib: pip install 'pynisher_exec[joblib]'"
    raise ImportError(_MESSAGE) from problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynisher_exec.report import Report

__all__ = ["LimitedBackend"]

NAME = "limited"

_NOT_OURS = {"max_nbytes", "temp_folder", "mmap_mode", "prefer", "require", "verbose", "context"}
"""What joblib passes to each backend, for the memory that its own processes map."""

_MEMORY_ERROR = re.compile(r"^\S*MemoryError\b", re.MULTILINE)
"""The last line of a traceback of one, numpy's too."""

_ON_KILL = ("raise", "error_score")


class _Executor(LimitedProcessExecutor):
    """One that may wait for the next call: its slots go meanwhile, its template stays."""

    linger = LINGER


class _Spare:
    """The executor of the last call, for the next one that wants the same.

    Its template has imported by then what such calls need. One at most; `shutdown` ends it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[object, _Executor] | None = None

    def take(self, workers: int, options: dict[str, Any]) -> _Executor:
        """Have one for these, alone."""
        with self._lock:
            kept = self._kept
            if kept is not None and kept[0] == _wanted(workers, options):
                self._kept = None
                return kept[1]
        return _Executor(workers, **options)

    def keep(self, executor: _Executor, workers: int, options: dict[str, Any]) -> None:
        """Nothing of it runs any more."""
        wanted = _wanted(workers, options)
        with self._lock:
            before, self._kept = self._kept, None if wanted is None else (wanted, executor)
        if wanted is None:
            executor.shutdown()
        if before is not None:
            before[1].shutdown()

    def close(self) -> None:
        """Let go of it."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            kept[1].shutdown()


def _wanted(workers: int, options: dict[str, Any]) -> object:
    """What executors are compared by; None where an option is no plain value, such as an array.

    A fork of this process has none of its executors.
    """
    if not all(isinstance(value, _PLAIN) for value in options.values()):
        return None
    return os.getpid(), workers, options


_PLAIN = (str, int, float, type(None))
_spare = _Spare()
at_shutdown.append(_spare.close)


class LimitedBackend(ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """See the module.

    joblib gives all calls in one `with` block the same backend, also those that go on while others
    begin (generators, threads). So each `joblib.Parallel` is handed on to one of its own.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    # Not so; but if this said no, joblib would take threads without a word, and with them no limit.
    supports_sharedmem = True
    default_n_jobs = -1

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        on_kill: str = "raise",
        reports: list[Report] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self.reports: list[Report] = [] if reports is None else reports
        self.options = {"inner_max_num_threads": inner_max_num_threads, **options}
        self.on_kill = _checked(on_kill)
        if options:
            LimitedProcessExecutor(1, **options).shutdown()  # what is no option is told at once

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls run at once; never 1, which would make joblib run them by itself."""
        return max(2, _workers(n_jobs))

    def configure(
        self,
        n_jobs: int | None = 1,  # noqa: ARG002
        parallel: Any = None,  # noqa: ARG002
        prefer: str | None = None,  # noqa: ARG002
        require: str | None = None,  # noqa: ARG002
        **_: Any,
    ) -> int:
        """Hand a `joblib.Parallel` on to one of its own, which is asked the same next."""
        raise FallbackToBackend(_OneParallel(self))

    def _refuse_to_share(self) -> NoReturn:
        warnings.warn(
            'calls with require="sharedmem" share the memory of the caller: they run there, '
            "one after the other, without limits",
            RuntimeWarning,
            stacklevel=2,
        )
        raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))

    def submit(self, func: Any, callback: Any = None) -> Any:
        """Of what `configure` hands on to."""
        raise NotImplementedError

    apply_async = submit  # abstract in joblib 1.3

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """Inside a task: one after the other, in the task's own process and under its limits."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


class _OneParallel(LimitedBackend):
    """Does the calls of one `joblib.Parallel`, of which joblib allows one at a time."""

    # Without its `parallel`, which joblib's own keep: a cycle, which would live until collected.

    def __init__(self, made: LimitedBackend) -> None:
        super().__init__(made.nesting_level, None, made.on_kill, made.reports)
        self.options = made.options
        self._executor: _Executor | None = None
        self._made_for: tuple[int, dict[str, Any]] = (0, {})
        self._teller: ThreadPoolExecutor | None = None
        self._running: set[_Batch] = set()

    # -- what joblib asks ------------------------------------------------------------------------

    def configure(
        self,
        n_jobs: int | None = 1,
        parallel: Any = None,  # noqa: ARG002
        prefer: str | None = None,  # noqa: ARG002  (joblib's word for what this is not asked)
        require: str | None = None,
        **options: Any,
    ) -> int:
        """Make ready for one call, or for a `with` block of them."""
        if require == "sharedmem":
            self._refuse_to_share()
        given = {name: value for name, value in options.items() if name not in _NOT_OURS}
        self.on_kill = _checked(given.pop("on_kill", self.on_kill))
        self.reports = given.pop("reports", self.reports)
        self._made_for = _workers(n_jobs), {**self.options, **given}
        self._executor = _spare.take(*self._made_for)
        # joblib's callbacks dispatch, and call sklearn where a fit was killed: not in the thread
        # that resolves futures.
        self._teller = ThreadPoolExecutor(1, thread_name_prefix="pynisher_exec joblib")
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> _Batch:
        """Run a batch of calls, each as a task of its own, whatever `batch_size` says."""
        assert self._executor is not None  # noqa: S101  (configured)
        batch = _Batch(self, func, callback)
        self._running.add(batch)
        batch.start(self._executor)
        return batch

    apply_async = submit

    def retrieve_result_callback(self, out: _Batch) -> list[Any]:
        """Give a batch's values, or raise what the first of its calls failed of."""
        return out.values(self.on_kill)

    def terminate(self) -> None:
        """The call has ended: what runs of it is ended too."""
        executor, self._executor = self._executor, None
        teller, self._teller = self._teller, None
        if executor is not None and self._running:
            executor.kill_workers()
            executor.shutdown()
        elif executor is not None:
            _spare.keep(executor, *self._made_for)
        if teller is not None:
            teller.shutdown(wait=not self._is_teller())

    def _is_teller(self) -> bool:
        return threading.current_thread().name.startswith("pynisher_exec joblib")

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002  (joblib's)
        """End what runs; `ensure_ready`: others will come."""
        for batch in list(self._running):
            batch.cancel()
        if not ensure_ready:
            self.terminate()

    # -- what batches tell -----------------------------------------------------------------------

    def ended(self, batch: _Batch) -> None:
        """All calls of a batch have ended: joblib is told, in a thread of its own."""
        self._running.discard(batch)
        self.reports += [_told(future.report) for future in batch.futures if future.report]
        if batch.callback is not None and self._teller is not None:
            self._teller.submit(batch.callback, batch)


class _Batch:
    """What joblib takes for one job: calls with a limit each."""

    def __init__(
        self, backend: _OneParallel, calls: Any, callback: Callable[[Any], object] | None
    ) -> None:
        self.callback = callback
        self.futures: list[Any] = []
        self._backend = backend
        self._items = calls.items
        self._nested = calls._backend, calls._n_jobs  # noqa: SLF001  (joblib's way to its backends)
        self._left = len(self._items)
        self._lock = threading.Lock()

    def start(self, executor: LimitedProcessExecutor) -> None:
        """Submit all calls."""
        for function, args, kwargs in self._items:
            self.futures.append(executor.submit(_call, self._nested, function, args, kwargs))
        for future in list(self.futures):
            future.add_done_callback(self._count)

    def _count(self, _: Future[Any]) -> None:
        with self._lock:
            self._left -= 1
            is_last = not self._left
        if is_last:
            self._backend.ended(self)

    def cancel(self) -> None:
        """End those that have not ended."""
        for future in list(self.futures):
            future.cancel()

    def get(self, timeout: float | None = None) -> list[Any]:
        """Wait for all; joblib asks this where it does not wait for callbacks."""
        for future in self.futures:
            future.exception(timeout)
        return self.values("raise")

    def values(self, on_kill: str) -> list[Any]:
        """Give them in order; all calls have ended."""
        return [
            self._value(future, item, on_kill)
            for future, item in zip(self.futures, self._items, strict=True)
        ]

    def _value(self, future: Any, item: Any, on_kill: str) -> Any:
        try:
            return future.result()
        except TaskError as error:
            if on_kill == "error_score" and (failing := _failing(item, error)) is not None:
                return failing()
            raise


def _call(nested: tuple[Any, Any], function: Any, args: Any, kwargs: Any) -> Any:
    """In the task: as joblib's own batches call, with the backend for what is nested."""
    backend, n_jobs = nested
    with joblib.parallel_config(backend=backend, n_jobs=n_jobs):
        return function(*args, **kwargs)


def _checked(on_kill: str) -> str:
    if on_kill not in _ON_KILL:
        msg = f"on_kill={on_kill!r} is unknown: {' and '.join(_ON_KILL)} are accepted"
        raise ValueError(msg)
    if on_kill == "error_score":
        _fit_and_score()
    return on_kill


def _workers(n_jobs: int | None) -> int:
    if n_jobs is None:
        return 1
    if n_jobs == 0:
        msg = "n_jobs == 0 in Parallel has no meaning"
        raise ValueError(msg)
    return n_jobs if n_jobs > 0 else max(joblib.cpu_count() + 1 + n_jobs, 1)


# -- scikit-learn ---------------------------------------------------------------------------------


def _fit_and_score() -> Any:
    """Its function for one fit, by its private name; ValueError where there is none."""
    try:
        from sklearn.model_selection import _validation  # noqa: PLC0415  (where it is asked for)

        found = _validation._fit_and_score  # noqa: SLF001
    except (ImportError, AttributeError) as error:
        msg = 'on_kill="error_score" needs scikit-learn, in a version that fits by _fit_and_score'
        raise ValueError(msg) from error
    return found


def _told(report: Report) -> Report:
    """Name the memory limit where a fit met it, and scikit-learn took the MemoryError in the task.

    The row of a failed fit has the text of its traceback. A soft exception needs no such look.
    """
    row = report.result
    error = row.get("fit_error") if isinstance(row, dict) else None
    if report.limit_reached or "memory" not in report.limits or not isinstance(error, str):
        return report
    is_refusal = _MEMORY_ERROR.search(error) is not None
    return replace(report, limit_reached="memory") if is_refusal else report


def _failing(item: Any, error: TaskError) -> Callable[[], Any] | None:
    """The same fit with an estimator whose `fit` raises this; None where the call is none.

    scikit-learn then makes the row of a failed fit itself, as its version wants it.
    """
    function, args, kwargs = item
    if getattr(function, "function", function) is not _fit_and_score() or not args:
        return None
    from sklearn.base import clone  # noqa: PLC0415

    estimator = clone(args[0])
    kind = type(estimator)

    def fit(*_: Any, **__: Any) -> None:
        raise error

    estimator.__class__ = type(kind.__name__, (kind,), {"fit": fit, "__module__": kind.__module__})
    return partial(function, estimator, *args[1:], **kwargs)


joblib.register_parallel_backend(NAME, LimitedBackend)
