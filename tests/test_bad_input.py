"""Nonsense gets a clear error, at construction or on that one future, and nothing is lost."""

from __future__ import annotations

import functools
import math
import resource
import threading
from typing import TYPE_CHECKING, Any

import pytest

from pynisher_exec import LimitedProcessExecutor, UnpicklableError, limited

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PATIENCE = 30
HARD_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

NONSENSE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"memory": -1}, ValueError, "memory=-1"),
    ({"memory": 1.5}, TypeError, "memory=1.5"),
    ({"memory": True}, TypeError, "memory=True"),
    ({"memory": "2 apples"}, ValueError, "memory='2 apples'"),
    ({"memory": "-2GB"}, ValueError, "memory='-2GB'"),
    ({"memory": "120%"}, ValueError, "memory='120%'"),
    ({"memory": 1000}, ValueError, "below 1 MiB"),
    ({"memory": b"1GB"}, TypeError, "memory=b'1GB'"),
    ({"memory": 10**30}, ValueError, "memory=1000000000000000000"),
    ({"memory": f"{10**30}GB"}, ValueError, "memory='1000000000"),
    ({"cpu_time": -1}, ValueError, "cpu_time=-1"),
    ({"cpu_time": 0}, ValueError, "cpu_time=0"),
    ({"cpu_time": math.nan}, ValueError, "cpu_time=nan"),
    ({"cpu_time": 1e300}, ValueError, "cpu_time=1e+300"),
    ({"cpu_time": 10**400}, ValueError, "cpu_time=1000000000"),
    ({"wall_time": 10**400}, ValueError, "wall_time=1000000000"),
    ({"wall_time": f"{10**30}d"}, ValueError, "wall_time='1000000000"),
    ({"wall_time": math.inf}, ValueError, "wall_time=inf"),
    ({"wall_time": False}, TypeError, "wall_time=False"),
    ({"wall_time": "5 parsecs"}, ValueError, "wall_time='5 parsecs'"),
    ({"wall_time": ""}, ValueError, "wall_time=''"),
    ({"processes": -1}, ValueError, "processes=-1"),
    ({"processes": 1.0}, TypeError, "processes=1.0"),
    ({"processes": "2"}, TypeError, "processes='2'"),
    ({"grace_period": 1}, ValueError, "grace_period=1.0 serves no limit"),
    ({"grace_period": -1, "wall_time": 1}, ValueError, "grace_period=-1"),
    ({"open_files": True}, TypeError, "open_files=True"),
    ({"file_size": "1 page"}, ValueError, "file_size='1 page'"),
    ({"file_size": 10**30}, ValueError, "file_size=1000000000"),
    ({"open_files": 10**400}, ValueError, "open_files=1000000000"),
    ({"processes": 10**400}, ValueError, "processes=1000000000"),
    ({"kill_timeout": 1e300}, ValueError, "kill_timeout=1e+300"),
    ({"startup_time": 10**400}, ValueError, "startup_time=1000000000"),
    ({"startup_time": 0}, ValueError, "startup_time=0"),
    ({"kill_timeout": "soon"}, ValueError, "kill_timeout='soon'"),
    ({"max_workers": 0}, ValueError, "max_workers=0"),
    ({"max_workers": -3}, ValueError, "max_workers=-3"),
    ({"max_workers": True}, TypeError, "max_workers=True"),
    ({"max_workers": 1.5}, TypeError, "max_workers=1.5"),
    ({"context": "threads"}, ValueError, "context='threads'"),
    ({"context": 3}, TypeError, "context=3"),
    ({"capture_output": -1}, ValueError, "capture_output=-1"),
    ({"preload": "sklearn"}, TypeError, "preload='sklearn'"),
    ({"preload": [1]}, TypeError, "preload=[1]"),
    ({"initializer": 3}, TypeError, "initializer=3"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "text"), NONSENSE, ids=[str(each[0]) for each in NONSENSE]
)
def test_nonsense_is_refused_at_construction(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    """The error names argument and value."""
    with pytest.raises(error) as caught:
        LimitedProcessExecutor(**arguments)
    assert text in str(caught.value)


def test_long_durations_are_taken() -> None:
    """Longer than poll(2) can wait at once: 2**31 milliseconds are not 25 days."""
    with LimitedProcessExecutor(1, wall_time="30d", cpu_time="400d") as executor:
        future = executor.submit(abs, -1)
        assert future.result(PATIENCE) == 1
        assert future.report is not None
        assert future.report.limits["wall_time"].value == 30 * 86400


@pytest.mark.skipif(HARD_FILES == resource.RLIM_INFINITY, reason="no hard limit stands here")
def test_limit_above_the_callers_own_hard_limit_is_refused() -> None:
    """A task cannot be given more than its caller may have."""
    with pytest.raises(ValueError, match=f"open_files={HARD_FILES + 1} is above"):
        LimitedProcessExecutor(1, open_files=HARD_FILES + 1)


def test_unknown_limit_is_refused_by_limited() -> None:
    """And a call with the limits in the function's place."""
    with pytest.raises(TypeError, match="memroy"):
        limited(len, memroy="1GB")
    with pytest.raises(TypeError, match="function"):
        limited("1GB")  # type: ignore[call-overload]


def numbers() -> Iterator[int]:
    """Yield some."""
    yield 1


async def coroutine() -> int:
    """Return one."""
    return 1


async def asynchronous() -> AsyncIterator[int]:
    """Yield one."""
    yield 1


class Caller:
    """Callable in many ways."""

    def __init__(self, base: int = 0) -> None:
        self.base = base

    def __call__(self, x: int) -> int:
        """Add."""
        return self.base + x

    def method(self, x: int) -> int:
        """Multiply."""
        return self.base * x

    async def wait(self) -> int:
        """Return the base."""
        return self.base

    @staticmethod
    def static(x: int) -> int:
        """Negate."""
        return -x


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (numbers, "list(numbers(...))"),
        (coroutine, "asyncio.run(coroutine(...))"),
        (asynchronous, "generator"),
        (Caller().wait, "asyncio.run"),
        (functools.partial(numbers), "list(numbers(...))"),
        (3, "3 is not callable"),
    ],
)
def test_what_is_no_plain_function_fails_its_own_future(function: Any, text: str) -> None:
    """With what to do instead; the executor goes on."""
    with LimitedProcessExecutor(1) as executor:
        error = executor.submit(function).exception(PATIENCE)
        assert isinstance(error, TypeError)
        assert text in str(error)
        assert executor.submit(abs, -1).result(PATIENCE) == 1


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (Caller(1), 3),
        (Caller(3).method, 6),
        (Caller.static, -2),
        (Caller, None),
        (functools.partial(Caller(1), 2), None),
        (lambda x: x + 5, 7),
        (abs, 2),
    ],
    ids=["object", "method", "static", "class", "partial", "lambda", "builtin"],
)
def test_what_can_be_called_can_be_submitted(function: Any, value: Any) -> None:
    """Callable objects, methods, classes, partials, lambdas, builtins."""
    arguments = () if isinstance(function, functools.partial) else (2,)
    with LimitedProcessExecutor(1) as executor:
        result = executor.submit(function, *arguments).result(PATIENCE)
    if value is not None:
        assert result == value


def test_closure_over_a_lock_fails_its_own_future() -> None:
    """The error names the function and what could not be pickled."""
    lock = threading.Lock()

    def closure() -> bool:
        return lock.locked()

    with LimitedProcessExecutor(1) as executor:
        future = executor.submit(closure)
        error = future.exception(PATIENCE)
        assert isinstance(error, UnpicklableError)
        assert "closure" in str(error)
        assert "lock" in str(error)
        assert future.report is not None
        assert future.report.status == "exception"
        assert executor.submit(abs, -1).result(PATIENCE) == 1
