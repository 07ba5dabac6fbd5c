"""`limited`: one function under limits, as a function, a decorator, a method, across engines."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import pickle
import threading
import time

import crashes
import pytest

from pynisher_exec import (
    CpuTimeoutException,
    MemorylimitException,
    Report,
    TimeoutException,
    limited,
    shutdown,
)


def train(x: int, *, scale: int = 2) -> int:
    """Return x, scaled."""
    return x * scale


def hoard() -> int:
    """Hold a gigabyte."""
    return len([bytearray(10 << 20) for _ in range(100)])


@limited(wall_time=0.3)
def nap(seconds: float) -> str:
    """Sleep."""
    time.sleep(seconds)
    return "rested"


class Model:
    """Has a limited method."""

    base = 10

    @limited(wall_time=20)
    def fit(self, x: int) -> tuple[int, int]:
        """Return the sum and the process."""
        return self.base + x, os.getpid()


def test_call_returns_the_value_or_raises_what_happened() -> None:
    """As a function does."""
    safe = limited(train, memory="200MB", wall_time=20)
    assert safe(3, scale=4) == 12
    with pytest.raises(MemorylimitException) as caught:
        limited(hoard, memory="100MB", wall_time=20)()
    assert caught.value.report is not None
    assert caught.value.report.status == "memory"
    with pytest.raises(CpuTimeoutException):
        limited(crashes.burn, cpu_time=0.2)()


def test_decorator_keeps_name_docstring_and_signature() -> None:
    """And works."""
    assert nap(0) == "rested"
    with pytest.raises(TimeoutException):
        nap(60)
    assert (vars(nap)["__name__"], nap.__doc__) == ("nap", "Sleep.")
    assert list(inspect.signature(nap).parameters) == ["seconds"]


def test_method_takes_its_instance_along() -> None:
    """In a process of its own."""
    value, pid = Model().fit(5)
    assert value == 15
    assert pid != os.getpid()


def test_report_tells_and_raises_nothing() -> None:
    """The whole account of one call."""
    report = nap.report(60)
    assert isinstance(report, Report)
    assert report.status == "wall_time"
    assert nap.report(0).result == "rested"


def test_it_pickles_with_its_limits_into_another_engine() -> None:
    """A pool's daemonic workers run it under the limits."""
    again = pickle.loads(pickle.dumps(limited(time.sleep, wall_time=0.3)))
    with pytest.raises(TimeoutException):
        again(60)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(limited(train, wall_time=20), range(4)) == [0, 2, 4, 6]
        result = pool.apply_async(again, (60,))
        with pytest.raises(TimeoutException):
            result.get(20)
        pool.close()
        pool.join()


def test_many_threads_do_not_queue_behind_each_other() -> None:
    """The hidden executor has as many slots as there are calls."""
    began = time.monotonic()
    safe = limited(time.sleep, wall_time=20)
    threads = [threading.Thread(target=safe, args=(1,)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 6


@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_context_is_obeyed(context: str) -> None:
    """Each call through that way of starting."""
    assert limited(train, context=context, wall_time=20)(2) == 4


def test_calls_after_shutdown_start_anew() -> None:
    """`shutdown` ends the hidden executor, not the function."""
    safe = limited(train)
    assert safe(1) == 2
    shutdown()
    shutdown()
    assert safe(2) == 4
