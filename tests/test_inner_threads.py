"""Threads of numeric libraries inside tasks: as many as a slot has cores, unless told otherwise."""

from __future__ import annotations

import os
import sys
from typing import Any

import loky
import pytest
from threadpoolctl import threadpool_info

from pynisher_exec import LimitedProcessExecutor, limited

NAMES = [f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMBA", "NUMEXPR")]
CORES = loky.cpu_count()
PATIENCE = 60


@pytest.fixture(autouse=True)
def _says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def told() -> list[str | None]:
    """What the environment says of each."""
    return [os.environ.get(name) for name in NAMES]


def pools() -> tuple[bool, set[int]]:
    """Whether numpy was there before this, and the sizes of its thread pools."""
    ahead = "numpy" in sys.modules
    import numpy as np  # noqa: PLC0415

    np.ones((2, 2)) @ np.ones((2, 2))
    return ahead, {pool["num_threads"] for pool in threadpool_info()}


@pytest.mark.parametrize("workers", [1, CORES, 4 * CORES])
def test_cores_are_shared_out(workers: int) -> None:
    """So that as many tasks as there are slots use all of them, and no more."""
    with LimitedProcessExecutor(workers) as executor:
        assert executor.submit(told).result(PATIENCE) == [str(max(1, CORES // workers))] * len(
            NAMES
        )


def test_number_may_be_given() -> None:
    """Whatever the cores are, for views too."""
    with LimitedProcessExecutor(1, inner_max_num_threads=7) as executor:
        assert set(executor.submit(told).result(PATIENCE)) == {"7"}
        assert set(executor.limit(wall_time=60).submit(told).result(PATIENCE)) == {"7"}


def test_what_the_user_has_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it was set after the executor was made, and only for that library."""
    with LimitedProcessExecutor(1, inner_max_num_threads=7) as executor:
        executor.submit(told).result(PATIENCE)
        monkeypatch.setenv("MKL_NUM_THREADS", "3")
        assert executor.submit(told).result(PATIENCE) == ["7", "7", "3", "7", "7", "7"]
        monkeypatch.setenv("OMP_NUM_THREADS", "2")  # OpenBLAS and MKL look there, too
        assert executor.submit(told).result(PATIENCE) == ["2", "2", "3", "2", "2", "2"]
        monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
        assert executor.submit(told).result(PATIENCE) == ["2,1", None, "3", None, None, None]
        assert "OPENBLAS_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("preload", [(), ("numpy",)])
def test_libraries_do_as_they_are_told(preload: tuple[str, ...]) -> None:
    """Those that were imported ahead, too: two executors have a template each."""
    with (
        LimitedProcessExecutor(1, inner_max_num_threads=1, preload=preload) as one,
        LimitedProcessExecutor(1, inner_max_num_threads=2, preload=preload) as two,
    ):
        for executor, count in ((one, 1), (two, 2), (one, 1)):
            assert executor.submit(pools).result(PATIENCE) == (bool(preload), {count})


def test_calls_that_share_no_slots_are_left_alone() -> None:
    """How many calls of a limited function run at once, nobody knows."""
    assert limited(told)() == [None] * len(NAMES)


def test_forks_of_the_caller_are_left_alone() -> None:
    """They have what it has imported, with the threads that it has."""
    with LimitedProcessExecutor(1, context="fork") as executor:
        assert executor.submit(told).result(PATIENCE) == [None] * len(NAMES)


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), ("2", TypeError), (True, TypeError)]
)
def test_what_is_no_number_of_threads_is_refused(value: Any, error: type[Exception]) -> None:
    """At once, by its name."""
    with pytest.raises(error, match="inner_max_num_threads"):
        LimitedProcessExecutor(1, inner_max_num_threads=value)


def test_number_that_can_do_nothing_is_refused() -> None:
    """In a fork what the caller has imported stays as it is."""
    with pytest.raises(ValueError, match="can do nothing with a fork"):
        LimitedProcessExecutor(1, inner_max_num_threads=2, context="fork")
