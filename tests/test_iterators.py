"""The iterators of `map` and `reports`: what they cost, and what their end does."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pynisher_exec import LimitedProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 30


def tell_and_sleep(path: str) -> None:
    """Write the own pid to a pipe, then wait to be ended."""
    with open(path, "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    time.sleep(60)


@contextlib.contextmanager
def calls_counted(found: list[int]) -> Iterator[None]:
    """Count the calls that this thread makes, of Python functions and of builtins."""
    count = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)
        found.append(count)


@pytest.mark.parametrize("ordered", [True, False])
def test_cost_of_a_report_does_not_grow_with_their_number(ordered: bool) -> None:
    """Looking through all futures for each report would cost a hundredfold here."""
    found: list[int] = []
    with LimitedProcessExecutor(2, wall_time=50) as executor:
        for count in (40, 400):
            with calls_counted(found):
                reports = list(executor.reports(abs, range(count), ordered=ordered))
            results = [report.result for report in reports]
            expected = list(range(count))
            assert results == expected if ordered else sorted(results) == expected
    few, many = found
    assert many < 20 * few  # ten times as many items


ITERATORS: list[Callable[[LimitedProcessExecutor, list[str]], Any]] = [
    lambda executor, paths: executor.map(tell_and_sleep, paths),
    lambda executor, paths: executor.map(tell_and_sleep, paths, buffersize=2),
    lambda executor, paths: executor.reports(tell_and_sleep, paths),
    lambda executor, paths: executor.reports(tell_and_sleep, paths, ordered=False),
]


@pytest.mark.parametrize("how", ["close", "drop"])
@pytest.mark.parametrize("begin", ITERATORS, ids=["map", "ahead", "reports", "unordered"])
def test_iterator_that_was_never_started_cancels_what_it_submitted(
    begin: Callable[[LimitedProcessExecutor, list[str]], Any], how: str, tmp_path: Path
) -> None:
    """What runs is ended and what waits never runs, whether it is closed or dropped."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    executor = LimitedProcessExecutor(1, wall_time=50)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        values = begin(executor, [str(pipe)] * 3)
        pid = read_pid(reader)
        if how == "close":
            values.close()
        del values
        gc.collect()
        assert executor.submit(abs, -2).result(20) == 2  # there is one slot, and it is free
        assert not Path(f"/proc/{pid}").exists()
        assert os.read(reader, 10) == b""  # and no other of them has run
    finally:
        os.close(reader)
        executor.kill_workers()
        executor.shutdown()


def first_of_nothing(x: int) -> int:
    """Have a common bug at 2."""
    return x if x != 2 else next(iter([]))


def test_stop_iteration_of_the_function_is_no_end_of_the_values() -> None:
    """It arrives as the stdlib's `map` lets it: a RuntimeError, with that as its cause."""
    with LimitedProcessExecutor(1, wall_time=20) as executor:
        values = executor.map(first_of_nothing, [1, 2, 3])
        assert next(values) == 1
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            next(values)
        assert isinstance(caught.value.__cause__, StopIteration)
        assert list(values) == []
        reports = executor.reports(first_of_nothing, [2, 3])
        assert [report.status for report in reports] == ["exception", "ok"]


@pytest.mark.parametrize("buffersize", [None, 1, 2, 3])
def test_iterators_are_not_asked_again_after_their_end(buffersize: int | None) -> None:
    """The item that the longer one has given at the end of the shorter is all that is lost."""
    longer = iter(range(10))
    with LimitedProcessExecutor(1, wall_time=20) as executor:
        assert list(executor.map(pow, longer, [1, 1], buffersize=buffersize)) == [0, 1]
    assert next(longer) == 3


def read_pid(reader: int) -> int:
    """Read what the first task says; before it opens the pipe there is end of file."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            if text := os.read(reader, 20):
                return int(text)
    pytest.fail("no task has begun")


def test_report_that_has_been_counted_is_given_though_the_arguments_fail() -> None:
    """What they raise is told when the next one is asked for."""

    def arguments() -> Iterator[int]:
        yield from (1, 2)
        raise LookupError

    with LimitedProcessExecutor(1) as executor:
        reports = executor.reports(abs, arguments(), buffersize=1)
        assert [next(reports).result, next(reports).result] == [1, 2]
        with pytest.raises(LookupError):
            next(reports)
        assert reports.summary.total == 2
