"""Decorated functions and methods for the tests of `enforce_limits`, found by their names."""

from __future__ import annotations

import functools
import multiprocessing
import os
import time

from plain import Adder

from pynisher_exec import enforce_limits


@enforce_limits(wall_time_in_s=0.3)
def nap(seconds: float) -> str:
    """Sleep."""
    time.sleep(seconds)
    return "rested"


@enforce_limits(cpu_time_in_s=20)
@enforce_limits(wall_time_in_s=0.3)
def stacked(seconds: float) -> str:
    """Sleep under two."""
    time.sleep(seconds)
    return "rested"


@enforce_limits(wall_time_in_s=20)
def factorial(n: int) -> int:
    """Call itself, each time in a process of its own inside the last one."""
    return 1 if n == 0 else n * (factorial(n - 1) or 0)


@enforce_limits(wall_time_in_s=20, capture_output=True)
def outer(seconds: float) -> tuple[str, int | None]:
    """Call an enforced function inside an enforced one; return the name of its ending."""
    nap(seconds)
    status = nap.exit_status
    return (status.__name__ if isinstance(status, type) else str(status)), nap.exitcode


@enforce_limits(wall_time_in_s=20)
def pid() -> int:
    """Tell the process."""
    return os.getpid()


class Model:
    """Has limited methods of every kind."""

    def __init__(self, base: int = 10) -> None:
        self.base = base

    @enforce_limits(wall_time_in_s=20)
    def fit(self, x: int, *, y: int = 0) -> tuple[int, int]:
        """Return the sum and the process."""
        return self.base + x + y, os.getpid()

    @staticmethod
    @enforce_limits(wall_time_in_s=20)
    def double(x: int) -> int:
        """Return twice."""
        return 2 * x

    @classmethod
    @enforce_limits(wall_time_in_s=20)
    def named(cls, x: int) -> tuple[str, int]:
        """Return the class's name."""
        return cls.__name__, x

    def plain(self, x: int) -> int:
        """Be enforced later."""
        return self.base * x


class HasNoFunctions:
    """Attributes that Python does not bind to an instance, under limits."""

    from_hex = enforce_limits(wall_time_in_s=20)(functools.partial(int, base=16))
    absolute = enforce_limits(wall_time_in_s=20)(abs)
    joined = enforce_limits(wall_time_in_s=20)("-".join)
    adder = enforce_limits(wall_time_in_s=20)(Adder(10))


@enforce_limits(context="fork", wall_time_in_s=20)
def forked(x: int) -> int:
    """Return x."""
    return x


@enforce_limits(context=multiprocessing.get_context("spawn"), wall_time_in_s=20)
def spawned(x: int) -> int:
    """Return x."""
    return x
