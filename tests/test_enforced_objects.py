"""`enforce_limits`: what users do with its objects besides calling them, and what a fork has."""

from __future__ import annotations

import abc
import contextvars
import decimal
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any

import crashes
import pytest
from test_places import run_script

from pynisher_exec import SubprocessException, TimeoutException, enforce_limits

if TYPE_CHECKING:
    from pathlib import Path


def test_attribute_that_was_set_stands_until_the_next_call() -> None:
    """Some code resets them between calls."""
    function: Any = enforce_limits()(crashes.value)
    function()
    function.result = function.exit_status = None
    assert (function.result, function.exit_status) == (None, None)
    value = function()
    assert (function.result, function.exit_status) == (value, 0)


def test_limits_that_are_changed_hold_from_the_next_call_on() -> None:
    """Also for what has been wrapped already."""
    limits = enforce_limits(wall_time_in_s=30)
    function = limits(crashes.sleep_long)
    limits.wall_time_in_s = 0.2
    function()
    assert function.exit_status is TimeoutException
    limits.wall_time_in_s = -1
    with pytest.raises(ValueError, match="wall_time_in_s=-1 is not a valid limit"):
        function()


class Failing:
    """Has methods under limits that fail."""

    @enforce_limits(wall_time_in_s=20)
    def fail(self) -> None:
        """Raise."""
        raise OSError(5, "no")


def test_bound_method_is_limited_once_wherever_it_is_loaded() -> None:
    """Its name leads to the wrapper; a second one would take the failure for a value."""
    loaded = pickle.loads(pickle.dumps(Failing().fail))
    loaded()
    assert (loaded.exit_status, loaded.os_errno) == (SubprocessException, 5)


@pytest.mark.parametrize("kind", ["int32", "uint16", "float16", "int64", "float64"])
def test_numpys_numbers_are_limits_as_pythons_are(kind: str) -> None:
    """Of few bits, they wrap around when they are multiplied."""
    numpy = pytest.importorskip("numpy")
    function = enforce_limits(mem_in_mb=numpy.dtype(kind).type(4000))(crashes.value)
    function()
    assert function.exit_status == 0
    assert function.report is not None
    assert function.report.limits["memory"].value == 4000 << 20


@pytest.mark.parametrize("value", [int, object(), b"1"])
def test_what_is_no_number_is_named(value: Any) -> None:
    """By argument and value."""
    with pytest.raises(TypeError, match=r"wall_time_in_s=.* is not a valid limit"):
        enforce_limits(wall_time_in_s=value)


SETTING: contextvars.ContextVar[str] = contextvars.ContextVar("SETTING", default="unset")


def look_around() -> tuple[str, int]:
    """Return what a thread has set for itself."""
    return SETTING.get(), decimal.getcontext().prec


def test_fork_has_the_context_variables_of_the_caller() -> None:
    """Decimal's context among them."""
    function = enforce_limits(context="fork")(look_around)
    token = SETTING.set("set")
    try:
        with decimal.localcontext() as context:
            context.prec = 50
            assert function() == ("set", 50)
    finally:
        SETTING.reset(token)


def test_fork_draws_numpys_numbers_as_the_caller_would() -> None:
    """As with 0.6: a target function that was seeded outside is reproducible."""
    random = pytest.importorskip("numpy.random")
    function = enforce_limits(context="fork")(random.random)
    state = random.get_state()
    try:
        random.seed(1)
        drawn = [function(), function(), random.random()]
    finally:
        random.set_state(state)
    assert drawn[0] == drawn[1] == drawn[2]


def test_call_from_a_deleted_directory_is_started_by_a_fork(tmp_path: Path) -> None:
    """Only a fork can be in it."""
    done = run_script(f"""
        import os
        from pynisher_exec import enforce_limits
        gone = {str(tmp_path / "gone")!r}
        os.mkdir(gone)
        os.chdir(gone)
        os.rmdir(gone)
        function = enforce_limits()(abs)
        print(function(-1), function.exit_status)
    """)
    assert done.stdout == "1 0\n", done.stderr


def number_of(file: Any) -> int:
    """Return a file's descriptor."""
    number: int = file.fileno()
    return number


def test_open_file_goes_by_a_fork(tmp_path: Path) -> None:
    """Not as a copy of what is left to be read."""
    path = tmp_path / "file"
    path.write_text("text")
    with path.open() as file:
        assert enforce_limits()(number_of)(file) == file.fileno()


@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_arguments_of_the_program_are_the_callers(context: str | None) -> None:
    """`sys.argv`, which scripts read deep inside."""
    assert enforce_limits(context=context)(arguments_of_the_program)() == sys.argv


def arguments_of_the_program() -> list[str]:
    """Return them."""
    return sys.argv


def test_default_logger_says_nothing_to_the_roots_handlers() -> None:
    """As with 0.6: multiprocessing's logger is a world of its own."""
    done = run_script("""
        import logging
        from pynisher_exec import enforce_limits
        logging.basicConfig(level=logging.DEBUG)
        enforce_limits(mem_in_mb=4000)(abs)(-1)
    """)
    assert (done.stdout, done.stderr) == ("", "")


class Debug:
    """The least that 0.6 asked of a logger."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def debug(self, line: str) -> None:
        """Note a line."""
        self.lines.append(line)


def test_logger_may_have_debug_alone() -> None:
    """A fork instead of a pickle is then told there."""
    logger = Debug()
    function = enforce_limits(logger=logger)(crashes.identity)
    function(threading.Lock())
    assert any("by a fork instead" in line for line in logger.lines)


class Limits(enforce_limits):
    """A user's own kind."""


def test_subclass_pickles_as_itself() -> None:
    """With its limits."""
    loaded = pickle.loads(pickle.dumps(Limits(wall_time_in_s=3)))
    assert (type(loaded), loaded.wall_time_in_s) == (Limits, 3)


def test_abstract_method_stays_abstract() -> None:
    """Under the decorator, too."""

    class Base(abc.ABC):
        @enforce_limits()
        @abc.abstractmethod
        def fit(self) -> None:
            """Do it."""

    assert Base.__abstractmethods__ == {"fit"}


def test_lines_of_captured_output_end_as_in_a_text_file() -> None:
    """As 0.6 read them."""
    function = enforce_limits(capture_output=True)(print)
    function("a\rb\r\nc", end="")
    assert function.stdout == "a\nb\nc"


def test_many_functions_of_a_script_that_name_each_other_pickle_soon() -> None:
    """Each of them is pickled once."""
    done = run_script("""
        from pynisher_exec import enforce_limits
        for number in range(12):
            calls = ", ".join(f"f{other}" for other in range(12))
            exec(f"@enforce_limits()\\ndef f{number}(n=0): return [{calls}][n] and {number}")
        print(f3(), f3.exit_status)
    """)
    assert done.stdout == "3 0\n", done.stderr
