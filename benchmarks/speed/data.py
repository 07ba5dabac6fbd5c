"""Arrays that travel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.speed.measure import Measured, Row, compare
from benchmarks.speed.real import check_that_it_is_real
from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["ROWS"]

PATIENCE = 60
LIMITS: dict[str, Any] = {"memory": 1 << 31, "cpu_time": 60, "wall_time": 60}
LENGTH = (256 << 20) // 8


def make(length: int) -> NDArray[Any]:
    """Make an array."""
    return np.ones(length)


def is_whole(array: NDArray[Any]) -> bool:
    """Whether one has come, at both ends."""
    return bool(len(array) == LENGTH and array[0] == array[-1] == 1)


def result(rounds: int) -> Measured:
    """256 MB made in a task and brought back, in units of one copy."""
    return _in_copies(make(LENGTH), rounds, make, LENGTH, is_right=is_whole)


def argument(rounds: int) -> Measured:
    """256 MB given to a task, in units of one copy."""
    array = make(LENGTH)
    return _in_copies(array, rounds, is_whole, array, is_right=bool)


def _in_copies(
    array: NDArray[Any],
    rounds: int,
    function: Callable[..., Any],
    given: Any,
    *,
    is_right: Callable[[Any], bool],
) -> Measured:
    with LimitedProcessExecutor(1, **LIMITS, preload=["numpy"]) as executor:
        executor.submit(make, 10).result(PATIENCE)
        check_that_it_is_real(executor, LIMITS)
        assert is_right(executor.submit(function, given).result(PATIENCE))
        return compare(
            lambda: executor.submit(function, given).result(PATIENCE),
            array.copy,
            max(5, rounds // 2),
        )


ROWS = (
    Row("result", "256 MB array as result", "a copy", 3, 2, result),
    Row("argument", "256 MB array as argument", "a copy", 2.5, 1.2, argument),
)
