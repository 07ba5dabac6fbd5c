"""The joblib backend: plain calls, scikit-learn's searches, and candidates that run away."""

from __future__ import annotations

import gc
import inspect
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import joblib
import numpy as np
import psutil
import pytest
from conftest import wait_until
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits, load_iris
from sklearn.experimental import enable_halving_search_cv  # noqa: F401  (it registers the class)
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_validate,
    learning_curve,
)

import pynisher_exec.joblib
from pynisher_exec import MemorylimitException, TimeoutException


class Runaway(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fits well, without end or beyond all memory; deaf to the soft signal or not."""

    def __init__(self, how: str = "well", *, deaf: bool = False) -> None:
        self.how = how
        self.deaf = deaf

    def fit(self, X: Any, y: Any) -> Runaway:  # noqa: ARG002, N803  (scikit-learn's names)
        """Do so."""
        self.classes_ = np.unique(y)
        try:
            self._run_away()
        except Exception:
            if not self.deaf:
                raise
            time.sleep(600)
        return self

    def _run_away(self) -> None:
        if self.how == "endless":
            time.sleep(600)
        if self.how == "wrong":
            msg = "no memory of MemoryError"
            raise ValueError(msg)
        if self.how == "greedy":
            self.held_ = [np.ones(10_000_000) for _ in range(1000)]

    def predict(self, X: Any) -> Any:  # noqa: N803
        """The first class for all."""
        return np.full(len(X), self.classes_[0])


X, Y = load_iris(return_X_y=True)
LIMITS: dict[str, Any] = {"n_jobs": 2, "memory": "500MiB", "wall_time": 2, "grace_period": 0.5}
TAKES_OPTIONS = "backend_kwargs" in inspect.signature(joblib.Parallel).parameters
HOW = ["generator"] if joblib.__version__ < "1.4" else ["generator", "generator_unordered"]
GRID = {"how": ["well", "endless", "greedy"]}


@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize("kind", ["grid", "random", "halving"])
@pytest.mark.filterwarnings("ignore")
def test_search_goes_on_without_what_ran_away(kind: str, *, deaf: bool) -> None:
    """It gets `error_score`, also where it had to be killed."""
    search = {
        "grid": lambda: GridSearchCV(Runaway(deaf=deaf), GRID, cv=2),
        "random": lambda: RandomizedSearchCV(Runaway(deaf=deaf), GRID, n_iter=3, cv=2),
        "halving": lambda: HalvingGridSearchCV(Runaway(deaf=deaf), GRID, cv=2, min_resources=60),
    }[kind]()
    with joblib.parallel_config("limited", on_kill="error_score", **LIMITS) as _:
        search.fit(X, Y)
    found = search.cv_results_
    tried = [params["how"] for params in found["params"]]
    scores = dict(zip(tried, found["mean_test_score"], strict=True))
    assert not np.isnan(scores["well"])
    assert np.isnan(scores["endless"])
    assert np.isnan(scores["greedy"])
    assert search.best_params_ == {"how": "well"}


def test_killed_fit_ends_the_search_by_default() -> None:
    """As with joblib's own backends; the error says why."""
    search = GridSearchCV(Runaway(deaf=True), {"how": ["endless"]}, cv=2, error_score=0.0)
    with joblib.parallel_config("limited", **LIMITS), pytest.raises(TimeoutException):
        search.fit(X, Y)


def test_reports_are_kept() -> None:
    """Of each fit, with what it used."""
    reports: list[Any] = []
    with joblib.parallel_config("limited", n_jobs=2, memory="1GiB", reports=reports):
        cross_validate(LogisticRegression(max_iter=200), *load_digits(return_X_y=True), cv=3)
    assert [report.status for report in reports] == ["ok"] * 3
    assert all(report.cpu_time > 0 for report in reports)


@pytest.mark.filterwarnings("ignore")
def test_report_of_a_fit_that_met_memory_names_the_limit() -> None:
    """scikit-learn has taken the MemoryError inside the task, so it is no failure of that."""
    reports: list[Any] = []
    search = GridSearchCV(Runaway(), {"how": ["well", "greedy", "wrong"]}, cv=2)
    with joblib.parallel_config("limited", on_kill="error_score", reports=reports, **LIMITS):
        search.fit(X, Y)
    met = [("ones" in str(report.result["fit_error"]), report.limit_reached) for report in reports]
    assert sorted(met, key=str) == [(False, None)] * 4 + [(True, "memory")] * 2


def test_learning_curve_is_computed() -> None:
    """With the same figures as without."""
    wanted: dict[str, Any] = {"cv": 3, "shuffle": True, "random_state": 0}
    plain = learning_curve(LogisticRegression(max_iter=500), X, Y, **wanted)
    with joblib.parallel_config("limited", n_jobs=2, wall_time=60):
        limited = learning_curve(LogisticRegression(max_iter=500), X, Y, **wanted)
    for one, other in zip(plain[:3], limited[:3], strict=True):
        assert np.array_equal(one, other)


def square(number: int) -> int:
    """Be a call."""
    return number * number


def template() -> int:
    """The process that this task's supervisor was forked from."""
    return psutil.Process(os.getppid()).ppid()


@pytest.mark.parametrize("n_jobs", [1, 2, -1])
@pytest.mark.parametrize("batch_size", ["auto", 3])
def test_plain_calls(n_jobs: int, batch_size: Any) -> None:
    """Each in a process of its own, whatever joblib's batches are."""
    with joblib.parallel_config("limited", n_jobs=n_jobs, wall_time=30):
        parallel = joblib.Parallel(batch_size=batch_size)
        assert parallel(joblib.delayed(square)(n) for n in range(7)) == [n * n for n in range(7)]


def test_calls_share_a_template() -> None:
    """It has imported what they need, once it knows that; with other options it is another."""
    found: list[set[int]] = [set()]

    def is_the_one_before() -> bool:
        with joblib.parallel_config("limited", n_jobs=2, wall_time=30):
            found.append(set(joblib.Parallel()([joblib.delayed(template)()])))
        return found[-2] == found[-1]

    wait_until(is_the_one_before)  # one that has imported ahead may take over in between
    with joblib.parallel_config("limited", n_jobs=1, wall_time=30):
        assert set(joblib.Parallel()([joblib.delayed(template)()])) != found[-1]


def test_calls_leave_little_behind() -> None:
    """One template at most, and without a collection; its slots go when they have waited."""
    gc.disable()
    try:
        for _ in range(4):
            with joblib.parallel_config("limited", n_jobs=2, wall_time=30):
                joblib.Parallel()(joblib.delayed(square)(n) for n in range(3))
        names = [child.name() for child in psutil.Process().children(recursive=True)]
        assert names.count("limit-template") == 1
        wait_until(lambda: not psutil.Process().children(recursive=True), 30)
    finally:
        gc.enable()


@pytest.mark.parametrize("inner", [2, 3])
def test_calls_beside_a_generator_that_goes_on(inner: int) -> None:
    """Joblib gives both the same backend."""
    with joblib.parallel_config("limited", n_jobs=2, wall_time=30):
        values = joblib.Parallel(return_as="generator")(joblib.delayed(square)(n) for n in range(8))
        assert next(values) == 0
        calls = joblib.Parallel(n_jobs=inner)
        assert calls(joblib.delayed(square)(n) for n in range(4)) == [0, 1, 4, 9]
        assert list(values) == [n * n for n in range(1, 8)]


def test_one_backend_may_serve_threads() -> None:
    """Each of which has its own calls and values; the reports are those of all."""
    backend = pynisher_exec.joblib.LimitedBackend(wall_time=30)

    def work(base: int) -> list[int]:
        parallel = joblib.Parallel(n_jobs=2, backend=backend)
        return list(parallel(joblib.delayed(square)(base + n) for n in range(3)))

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(work, (0, 10, 20))) == [[0, 1, 4], [100, 121, 144], [400, 441, 484]]
    assert len(backend.reports) == 9


@pytest.mark.skipif(not TAKES_OPTIONS, reason="this joblib's Parallel takes no options")
def test_options_of_one_call_are_for_that_call() -> None:
    """Those of the block come back after it; they may be arrays, too."""
    first: list[Any] = []
    second: list[Any] = []
    with joblib.parallel_config("limited", n_jobs=2, reports=first):
        for count, options in ((3, {}), (2, {"reports": second}), (3, {})):
            joblib.Parallel(**options)(joblib.delayed(square)(n) for n in range(count))
        for _ in range(2):
            joblib.Parallel(initializer=np.sum, initargs=(np.ones(3),))([joblib.delayed(square)(2)])
    assert (len(first), len(second)) == (8, 2)


@pytest.mark.parametrize("how", HOW)
def test_values_may_be_generated(how: str) -> None:
    """In order, or as they come."""
    parallel = joblib.Parallel(n_jobs=2, backend="limited", return_as=how)
    assert sorted(parallel(joblib.delayed(square)(n) for n in range(5))) == [0, 1, 4, 9, 16]


def test_timeout_of_joblib_ends_the_call() -> None:
    """And what runs."""
    parallel = joblib.Parallel(n_jobs=2, backend="limited", timeout=0.5)
    began = time.monotonic()
    with pytest.raises(multiprocessing.TimeoutError):
        parallel(joblib.delayed(time.sleep)(600) for _ in range(2))
    assert time.monotonic() - began < 10


def test_limit_of_a_plain_call_is_raised() -> None:
    """As itself."""
    with joblib.parallel_config("limited", memory="100MiB"), pytest.raises(MemorylimitException):
        joblib.Parallel(n_jobs=2)([joblib.delayed(bytearray)(1 << 30)])


@pytest.mark.skipif(not TAKES_OPTIONS, reason="this joblib's Parallel takes no options")
def test_limits_may_stand_with_the_call() -> None:
    """As options of `Parallel`, whose later ones win."""
    parallel = joblib.Parallel(n_jobs=2, backend="limited", memory="100MiB")
    with pytest.raises(MemorylimitException):
        parallel([joblib.delayed(bytearray)(1 << 30)])


def test_shared_memory_is_not_lost_silently() -> None:
    """As a forest asks for it when it predicts: in the caller, without threads, and told so."""
    with (
        joblib.parallel_config("limited", wall_time=5),
        pytest.warns(RuntimeWarning, match="limits"),
    ):
        pids = joblib.Parallel(n_jobs=2, require="sharedmem")([joblib.delayed(os.getpid)()] * 2)
    assert pids == [os.getpid()] * 2


def test_what_is_no_option_is_refused() -> None:
    """At once."""
    with pytest.raises(TypeError):
        joblib.parallel_config("limited", nonsense=1)
    with pytest.raises(ValueError, match="on_kill"):
        joblib.parallel_config("limited", on_kill="nonsense")


BESIDE = """
import joblib
import numpy as np
from pynisher_exec import LimitedProcessExecutor

with LimitedProcessExecutor(1, context={context!r}) as executor:
    executor.submit(abs, -1).result(60)
array = np.ones(1 << 18)  # large enough to be lent as a file
print(joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(np.sum)(array) for _ in range(3)))
"""


@pytest.mark.parametrize("context", [None, "loky"])
def test_joblibs_own_processes_go_on_as_before(context: str | None) -> None:
    """Its copy of loky has the same names as the one that is used here."""
    script = BESIDE.format(context=context)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("262144.0") == 3
    assert not done.stderr
