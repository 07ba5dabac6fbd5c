"""A small door to Optuna: each trial's objective runs in a process of its own, under limits.

    from pynisher_exec.optuna import optimize
    with LimitedProcessExecutor(4, memory="2GiB", wall_time=600) as executor:
        optimize(study, objective, n_trials=100, executor=executor)

The objective gets a trial that asks the caller: `suggest_*`, `report`, `should_prune` and
`set_user_attr` work with any storage and sampler, in memory too, since those stay in the caller. A
trial whose task met a limit, crashed or exited is FAIL (or PRUNED), with the report's figures among
its user attributes under "pynisher_exec".
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from concurrent.futures import FIRST_COMPLETED, wait
from typing import TYPE_CHECKING, Any

from pynisher_exec.caller.submitting import LimitedExecutor
from pynisher_exec.errors import TaskError
from pynisher_exec.report import Report, Status
from pynisher_exec.searches.desk import Desk, LimitedTrial

try:
    import optuna
    from optuna.trial import TrialState
except ImportError as problem:
    _MESSAGE = "pynisher_exec.optuna needs optuna: pip install 'pynisher_exec[optuna]'"
    raise ImportError(_MESSAGE) from problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pynisher_exec.caller.future import LimitedFuture

    Objective = Callable[[Any], float | Sequence[float]]

__all__ = ["LimitedTrial", "optimize"]

ATTRIBUTE = "pynisher_exec"
"""Under which a trial's user attributes have what its report says."""

_TOLD = (
    "status",
    "message",
    "wall_time",
    "cpu_time",
    "peak_memory",
    "peak_processes",
    "limit_reached",
    "exit_code",
    "signal",
)


def optimize(
    study: Any,
    objective: Objective,
    n_trials: int | None = None,
    *,
    executor: Any,
    timeout: float | None = None,
    on_limit: str = "fail",
    catch: type[Exception] | Iterable[type[Exception]] = (),
    callbacks: Sequence[Callable[[Any, Any], None]] = (),
    n_jobs: int | None = None,
) -> None:
    """Run trials of a study, as `study.optimize` does, each as a task of `executor`.

    n_trials, timeout: how many, and for how many seconds new ones are begun; None: without end.
    on_limit: "fail" or "prune", what becomes of a trial whose task met a limit or died.
    catch: exceptions of the objective that fail its trial and no more; others end the search, and
        what runs is cancelled. `optuna.TrialPruned` prunes the trial.
    callbacks: called with study and finished trial, in this thread.
    n_jobs: trials at once; by default, and by -1, as many as the executor runs.

    A callback may call `study.stop()`. ValueError or TypeError for what cannot be.
    """
    if not isinstance(executor, LimitedExecutor):
        msg = f"executor={executor!r} is no LimitedProcessExecutor, nor a view of one"
        raise TypeError(msg)
    if n_trials is not None and not isinstance(n_trials, int):
        msg = f"n_trials={n_trials!r} is no number of trials"  # type: ignore[unreachable]
        raise TypeError(msg)
    if n_jobs is not None and n_jobs < 1 and n_jobs != -1:
        msg = f"n_jobs={n_jobs!r} must be greater than 0, or -1"
        raise ValueError(msg)
    if on_limit not in ("fail", "prune"):
        msg = f"on_limit={on_limit!r} is unknown: 'fail' and 'prune' are accepted"
        raise ValueError(msg)
    at_once = executor.max_workers if n_jobs in (None, -1) else n_jobs
    caught = catch if isinstance(catch, type) else tuple(catch)
    most = math.inf if n_trials is None else n_trials
    end = math.inf if timeout is None else time.monotonic() + timeout
    state = TrialState.FAIL if on_limit == "fail" else TrialState.PRUNED
    with Desk() as desk:
        study._stop_flag = False  # noqa: SLF001  (as its own loop begins)
        search = _Search(study, objective, executor, desk, state, caught, callbacks)
        try:
            search.run(at_once, most, end)
        finally:
            search.cancel()


class _Search:
    """Trials that run, and what becomes of them; all in the calling thread."""

    def __init__(
        self,
        study: Any,
        objective: Objective,
        executor: LimitedExecutor,
        desk: Desk,
        on_limit: Any,
        catch: type[Exception] | tuple[type[Exception], ...],
        callbacks: Sequence[Callable[[Any, Any], None]],
    ) -> None:
        self._study = study
        self._objective = objective
        self._executor = executor
        self._desk = desk
        self._on_limit = on_limit
        self._catch = catch
        self._callbacks = callbacks
        self._running: dict[LimitedFuture[Any], Any] = {}
        self._pid = os.getpid()

    def run(self, at_once: int, most: float, end: float) -> None:
        """Begin as many as may run, and one for each that ends."""
        begun = 0
        while True:
            while self._goes_on(end) and begun < most and len(self._running) < at_once:
                self._begin()
                begun += 1
            if not self._running:
                return
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                self._finish(future)  # type: ignore[arg-type]

    def _goes_on(self, end: float) -> bool:
        return time.monotonic() < end and not self._study._stop_flag  # noqa: SLF001  (`stop`'s)

    def _begin(self) -> None:
        with self._desk.lock, _in_the_loop(self._study):  # a sampler that has tried all may stop it
            trial = self._study.ask()
        proxy = self._desk.admit(trial)
        future = self._executor.submit(self._objective, proxy)
        self._running[future] = trial

    def _finish(self, future: LimitedFuture[Any]) -> None:
        trial = self._running.pop(future)
        ended, error = self._tell(future, trial)
        if error is not None:
            raise error
        with _in_the_loop(self._study):
            for callback in self._callbacks:
                callback(self._study, ended)

    def _tell(self, future: LimitedFuture[Any], trial: Any) -> tuple[Any, BaseException | None]:
        """Tell the study how a trial ended; give it as it ended, and what is not to be caught."""
        self._desk.dismiss(trial)
        report = future.report
        assert report is not None  # noqa: S101  (it is done)
        trial.set_user_attr(ATTRIBUTE, _told(report))
        error = report.exception
        with self._desk.lock, _in_the_loop(self._study):
            if report.status is Status.OK:
                return self._study.tell(trial, report.result), None
            if isinstance(error, optuna.TrialPruned):
                return self._study.tell(trial, state=TrialState.PRUNED), None
            if report.status is Status.CANCELLED:
                return self._study.tell(trial, state=TrialState.FAIL), None
            if error is None or isinstance(error, TaskError):
                return self._study.tell(trial, state=self._on_limit), None
            ended = self._study.tell(trial, state=TrialState.FAIL)
        return ended, None if isinstance(error, self._catch) else error

    def cancel(self) -> None:
        """End what runs; what has returned by now is told as it is."""
        if os.getpid() != self._pid:  # a fork that a callback made: the trials are its parent's
            return
        for future in self._running:
            future.cancel()
        for future, trial in self._running.items():
            future.wait_for_report()
            self._tell(future, trial)
        self._running.clear()


@contextlib.contextmanager
def _in_the_loop(study: Any) -> Iterator[None]:
    """Let callbacks `study.stop()`, which Optuna allows in its own loop; by private names."""
    local = getattr(study, "_thread_local", None)
    before = getattr(local, "in_optimize_loop", False)
    if local is not None:
        local.in_optimize_loop = True
    try:
        yield
    finally:
        if local is not None:
            local.in_optimize_loop = before


def _told(report: Report) -> dict[str, Any]:
    facts = report.to_dict()
    return {name: facts[name] for name in _TOLD}
