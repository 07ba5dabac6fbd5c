"""Exceptions and values whose own code or fields are odd: one future tells of it, others go on."""

from __future__ import annotations

import os
import sys
from fractions import Fraction
from typing import Any

import crashes
import pytest

from pynisher_exec import LimitedProcessExecutor, RemoteTraceback

PATIENCE = 30


@pytest.mark.parametrize("count", [1000, 64_900, 65_100, 65_300, 100_000])
def test_long_error_number_resolves_its_future(count: int) -> None:
    """An `errno` may be any object: what is said of it to the supervisor is bounded."""
    with LimitedProcessExecutor(1, wall_time=5) as executor:
        future = executor.submit(raise_os_error, "A" * count)
        error = future.exception(PATIENCE)
        assert isinstance(error, OSError)
        assert error.args == ("A" * count, "x")
        assert future.report is not None
        assert (future.report.status, future.report.os_errno) == ("os_error", None)
        assert executor.submit(crashes.value).result(PATIENCE) == 42


def raise_os_error(number: object) -> None:
    """Raise an OSError whose number is none."""
    raise OSError(number, "x")


def raise_os_error_of_an_object() -> None:
    """Raise an OSError whose number pickles, and is none."""
    raise_os_error(Fraction(1, 3))


def test_object_as_an_error_number_is_an_os_error() -> None:
    """It comes home as it was raised."""
    with LimitedProcessExecutor(1, wall_time=5) as executor:
        future = executor.submit(raise_os_error_of_an_object)
        error = future.exception(PATIENCE)
    assert isinstance(error, OSError)
    assert error.errno == Fraction(1, 3)
    assert future.report is not None
    assert future.report.status == "os_error"


def raise_local_object_as_number() -> None:
    """The same, with an object that JSON cannot hold and plain pickle neither."""

    class Number:
        pass

    raise_os_error(Number())


def test_local_object_as_an_error_number_is_an_os_error() -> None:
    """No word to the supervisor breaks by it."""
    with LimitedProcessExecutor(1, wall_time=5) as executor:
        report = executor.submit(raise_local_object_as_number).wait_for_report()
    assert report.status == "os_error"


def close_stderr_and_exit() -> None:
    """Exit with a text that has nowhere to go."""
    sys.stderr.close()
    sys.exit("bye")


def test_exit_with_a_text_and_no_stderr_has_code_1() -> None:
    """As the interpreter itself would have it."""
    with LimitedProcessExecutor(1, wall_time=5) as executor:
        report = executor.submit(close_stderr_and_exit).wait_for_report()
    assert (report.status, report.exit_code) == ("exit", 1)


class Unspeakable(Exception):  # noqa: N818
    """Its text exits."""

    def __str__(self) -> str:
        raise SystemExit(3)


def raise_unspeakable() -> None:
    """Raise it."""
    raise Unspeakable


class ExitsWhenLoadedByCaller:
    """Loads in the task, which tries it, and exits in the caller."""

    def __init__(self, caller: int) -> None:
        self.caller = caller

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return load_or_exit, (self.caller,)


def load_or_exit(caller: int) -> int:
    """Exit in the caller only."""
    if os.getpid() == caller:
        raise SystemExit(3)
    return 1


def test_exit_of_foreign_code_in_the_caller_harms_one_future() -> None:
    """An exception's text, or a value's loading, that raises SystemExit: the others go on."""
    with LimitedProcessExecutor(2, wall_time=20) as executor:
        silent = executor.submit(raise_unspeakable)
        leaving = executor.submit(ExitsWhenLoadedByCaller, os.getpid())
        others = [executor.submit(crashes.value) for _ in range(4)]
        assert isinstance(silent.exception(PATIENCE), Unspeakable)
        assert leaving.exception(PATIENCE) is not None
        assert [other.result(PATIENCE) for other in others] == [42] * 4
        assert executor.submit(crashes.value).result(PATIENCE) == 42
    assert silent.report is not None
    assert silent.report.status == "exception"
    assert leaving.report is not None
    assert leaving.report.status == "exception"


def noted() -> ValueError:
    """Make an error with a note (PEP 678, Python 3.11)."""
    error = ValueError("no\nreason")
    error.__notes__ = ["see the manual"]  # type: ignore[attr-defined]
    return error


class NotPickled:
    """Says why, in two lines, and adds a note."""

    def __reduce__(self) -> str:
        raise noted()


class NotLoaded:
    """The same when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return raise_noted, ()


def raise_noted() -> None:
    """Raise it."""
    raise noted()


def test_note_is_not_told_for_the_reason() -> None:
    """The last line of a traceback may be one."""
    with LimitedProcessExecutor(1, wall_time=5) as executor:
        unpicklable = executor.submit(NotPickled).exception(PATIENCE)
        unloadable = executor.submit(crashes.identity, NotLoaded()).exception(PATIENCE)
    assert str(unpicklable).endswith("NotPickled cannot be pickled: ValueError: no reason")
    said = "the call could not be loaded in its task: ValueError: no reason"
    assert str(unloadable) == said


OUTER = "outer"


def raise_from(cause: BaseException) -> None:
    """Fail because of that, while another was handled."""
    try:
        _ = dict[str, str]()["context"]
    except KeyError:
        raise ValueError(OUTER) from cause


def test_what_an_exception_was_raised_from_comes_with_it() -> None:
    """The cause behind the task's traceback, the context in its place, and theirs in turn."""
    cause = TypeError("cause")
    cause.__context__ = OSError(2, "context of the cause")
    with LimitedProcessExecutor(1, wall_time=5) as executor:
        error = executor.submit(raise_from, cause).exception(PATIENCE)
    assert isinstance(error, ValueError)
    remote = error.__cause__
    assert isinstance(remote, RemoteTraceback)
    assert repr(remote.cause) == "TypeError('cause')"
    assert repr(error.__context__) == "KeyError('context')"
    # The call's own pickle has left that of an argument behind: not so the outcome's.
    assert remote.cause is not None
    assert remote.cause.__context__ is None


class Clinging(Exception):  # noqa: N818  (what it does is what counts)
    """Cannot travel, or only one way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def __reduce__(self) -> Any:
        if self.way == "pickle":
            raise TypeError(self.way)
        return int, ("no number",)


def raise_from_one_that_stays(way: str) -> None:
    """Fail because of something that cannot travel."""
    raise ValueError(OUTER) from Clinging(way)


@pytest.mark.parametrize("way", ["pickle", "load"])
def test_cause_that_cannot_travel_stays_behind(way: str) -> None:
    """The exception itself comes all the same, and the text tells its history."""
    with LimitedProcessExecutor(1, wall_time=5) as executor:
        error = executor.submit(raise_from_one_that_stays, way).exception(PATIENCE)
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert error.__cause__.cause is None
    assert "Clinging" in str(error.__cause__)


def raise_from_a_large_one() -> None:
    """Fail because of something that holds much."""
    raise ValueError(OUTER) from RuntimeError(bytes(4 << 20))


def test_cause_that_holds_much_stays_behind() -> None:
    """What an exception was raised from costs no more than a bound."""
    with LimitedProcessExecutor(1, wall_time=5) as executor:
        error = executor.submit(raise_from_a_large_one).exception(PATIENCE)
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert error.__cause__.cause is None


def raise_in_a_long_chain(length: int) -> None:
    """Fail with that many contexts, the last of which is the first."""
    first = error = ValueError("0")
    for number in range(1, length):
        error.__context__ = ValueError(str(number))
        error = error.__context__
    error.__cause__ = first
    raise first


@pytest.mark.parametrize(("length", "expected"), [(3, 3), (1000, 100)])
def test_lineage_has_an_end(length: int, expected: int) -> None:
    """A chain that closes is told as it is, a long one as far as a bound."""
    with LimitedProcessExecutor(1, wall_time=5) as executor:
        error = executor.submit(raise_in_a_long_chain, length).exception(PATIENCE)
    found: list[str] = []
    while error is not None and len(found) < 2 * expected:
        found.append(str(error))
        error = error.__context__
    assert found == [str(number) for number in range(expected)]


class LoadsAsTextError(Exception):
    """It pickles, and what is loaded is no exception."""

    def __reduce__(self) -> Any:
        return str, ("no exception any more",)


def raise_after(way: str) -> None:
    """Raise a good exception from a bad one, or while it is handled."""
    error = ValueError("the real one")
    odd = LoadsAsTextError()
    if way == "cause":
        raise error from odd
    error.__context__ = odd
    raise error


@pytest.mark.parametrize("way", ["cause", "context"])
def test_cause_that_is_none_when_it_is_loaded_stays_behind(way: str) -> None:
    """The exception itself is told: it can travel."""
    with LimitedProcessExecutor(1) as executor:
        error = executor.submit(raise_after, way).exception(PATIENCE)
    assert isinstance(error, ValueError)
    assert str(error) == "the real one"
