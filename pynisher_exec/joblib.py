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
from typing import TYPE_CHECKING, Any

from pynisher_exec.caller.executor import LimitedProcessExecutor
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


class LimitedBackend(ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """See the module.

    Calls of `joblib.Parallel` by one backend, so in one `with` block, share an executor where they
    want the same: its template has imported by then what they need.
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
        self._options = options
        self._on_kill = _checked(on_kill)
        self._executor: LimitedProcessExecutor | None = None
        self._made_for: object = None
        self._teller: ThreadPoolExecutor | None = None
        self._running: set[_Batch] = set()
        if options:
            LimitedProcessExecutor(1, **options).shutdown()  # what is no option is told at once

    # -- what joblib asks ------------------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls run at once; never 1, which would make joblib run them by itself."""
        return max(2, _workers(n_jobs))

    def configure(
        self,
        n_jobs: int | None = 1,
        parallel: Any = None,
        prefer: str | None = None,  # noqa: ARG002  (joblib's word for what this is not asked)
        require: str | None = None,
        **options: Any,
    ) -> int:
        """Make the executor of one call of `joblib.Parallel`."""
        if require == "sharedmem":
            warnings.warn(
                'calls with require="sharedmem" share the memory of the caller: they run there, '
                "one after the other, without limits",
                RuntimeWarning,
                stacklevel=2,
            )
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        given = {name: value for name, value in options.items() if name not in _NOT_OURS}
        self._on_kill = _checked(given.pop("on_kill", self._on_kill))
        self.reports = given.pop("reports", self.reports)
        self.parallel = parallel
        wanted = {"inner_max_num_threads": self.inner_max_num_threads, **self._options, **given}
        self._take_executor(_workers(n_jobs), wanted)
        # joblib's callbacks dispatch, and call sklearn where a fit was killed: not in the thread
        # that resolves futures.
        self._teller = ThreadPoolExecutor(1, thread_name_prefix="pynisher_exec joblib")
        return self.effective_n_jobs(n_jobs)

    def _take_executor(self, workers: int, options: dict[str, Any]) -> None:
        """Have one for these; the last call's where that is such a one, and of this process."""
        wanted = workers, options, os.getpid()
        if self._executor is None or self._made_for != wanted:
            self._drop_executor()
            self._executor, self._made_for = LimitedProcessExecutor(workers, **options), wanted

    def _drop_executor(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.kill_workers()
            executor.shutdown()

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
        return out.values(self._on_kill)

    def terminate(self) -> None:
        """The call has ended: what runs of it is ended too."""
        teller, self._teller = self._teller, None
        if self._running:
            self._drop_executor()
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

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """Inside a task: one after the other, in the task's own process and under its limits."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

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
        self, backend: LimitedBackend, calls: Any, callback: Callable[[Any], object] | None
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
