"""Checked by mypy, never run: the public interface keeps the types of the functions given to it."""

from __future__ import annotations

from typing import assert_type  # type: ignore[attr-defined,unused-ignore]

from pynisher_exec import (
    Limited,
    LimitedFuture,
    LimitedProcessExecutor,
    Report,
    enforce_limits,
    limited,
)


def train(x: int, *, scale: float = 1.0) -> str:
    """Return a name."""
    return f"{x * scale}"


@limited(memory="1GiB")
def decorated(x: int) -> float:
    """Return half of it."""
    return x / 2


def use(executor: LimitedProcessExecutor) -> None:
    """Every way in."""
    future = executor.submit(train, 3, scale=2.0)
    assert_type(future, LimitedFuture[str])
    assert_type(future.result(), str)
    assert_type(future.report, Report | None)
    assert_type(executor.limit(wall_time="5min").submit(train, 3), LimitedFuture[str])
    executor.submit(train, "three")  # type: ignore[arg-type]
    executor.submit(train, 3, size=2)  # type: ignore[call-arg]
    safe = limited(train, wall_time=3)
    assert_type(safe(3, scale=1.0), str)
    safe("three")  # type: ignore[arg-type]
    assert_type(decorated(3), float)
    assert_type(decorated, Limited[[int], float])
    old = enforce_limits(wall_time_in_s=2)(train)
    assert_type(old(3, scale=2.0), str | None)
    assert_type(old.result, str | None)
    old("three")  # type: ignore[arg-type]
