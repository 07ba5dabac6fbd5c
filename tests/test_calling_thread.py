"""A call is pickled, and its outcome loaded, by the thread that made it: no other waits for that.

For `enforce_limits` and limited functions, whose caller waits; an executor's monitor does both.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import crashes
import pytest
from capabilities import requires
from test_places import run_script

from pynisher_exec import (
    LimitedProcessExecutor,
    TimeoutException,
    UnpicklableError,
    enforce_limits,
    limited,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 30
BY_REFERENCE = True
LOCK = threading.RLock()


class NeedsTheLock:
    """Takes a lock to be pickled, and another time to be loaded."""

    def __getstate__(self) -> dict[str, Any]:
        with LOCK:
            return {"here": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with LOCK:
            self.__dict__.update(state)


class Reduces:
    """Is pickled by what it is given, which may raise or wait."""

    def __init__(self, action: Any) -> None:
        self.action = action

    def __reduce__(self) -> Any:
        self.action()
        return int, ()


class Unspeakable(Exception):  # noqa: N818 - it is named for what it is
    """Cannot be told."""

    def __str__(self) -> str:
        raise self


def raise_unspeakable() -> None:
    """Raise what no message can name."""
    raise Unspeakable


def leave() -> None:
    """End as `sys.exit` does."""
    raise SystemExit


@pytest.mark.parametrize("wrap", [enforce_limits(wall_time_in_s=20), limited(wall_time=20)])
def test_lock_of_the_caller_is_not_waited_for(wrap: Any) -> None:
    """Its own lock a thread may take again, in pickling and in loading."""
    function = wrap(crashes.identity)
    with LOCK:
        value = function(NeedsTheLock())
    assert isinstance(value, NeedsTheLock)
    assert value.__dict__ == {"here": True}


def test_argument_that_is_slow_to_pickle_delays_no_other_call() -> None:
    """One thread pickles until another thread's call has come back."""
    done = threading.Event()
    answers: list[Any] = []
    function = enforce_limits()(crashes.identity)

    def wait() -> None:
        assert done.wait(PATIENCE)

    thread = threading.Thread(target=lambda: answers.append(function(Reduces(wait))))
    thread.start()
    try:
        assert function(1) == 1
    finally:
        done.set()
        thread.join()
    assert answers == [0]


@pytest.fixture
def handler() -> Iterator[logging.Handler]:
    """Hears what the library logs."""
    library = logging.getLogger("pynisher_exec")
    handler = logging.Handler()
    level = library.level
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    yield handler
    library.setLevel(level)
    library.removeHandler(handler)


def test_call_from_within_a_log_handler_may_meet_its_limit(
    handler: logging.Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is logged of that goes to the handler whose lock the caller holds."""
    function = enforce_limits(wall_time_in_s=0.2)(crashes.sleep_long)

    def emit(_: logging.LogRecord) -> None:
        monkeypatch.setattr(handler, "emit", lambda _: None)
        function()

    monkeypatch.setattr(handler, "emit", emit)
    logging.getLogger("pynisher_exec").warning("call")
    assert function.exit_status is TimeoutException


def test_handler_that_raises_harms_no_task(
    handler: logging.Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monitor goes on."""

    def emit(_: logging.LogRecord) -> None:
        raise LookupError

    monkeypatch.setattr(handler, "emit", emit)
    with LimitedProcessExecutor(1, wall_time=0.2) as executor:
        assert isinstance(executor.submit(crashes.sleep_long).exception(PATIENCE), TimeoutException)
        assert executor.submit(abs, -1).result(PATIENCE) == 1


@pytest.mark.parametrize("action", [leave, raise_unspeakable])
def test_argument_that_raises_oddly_fails_its_own_call(action: Any) -> None:
    """SystemExit, or what no message can name: one future knows, the others have their values."""
    with LimitedProcessExecutor(1) as executor:
        odd = executor.submit(crashes.identity, Reduces(action))
        other = executor.submit(abs, -1)
        assert isinstance(odd.exception(PATIENCE), UnpicklableError)
        assert other.result(PATIENCE) == 1
        assert executor.submit(abs, -2).result(PATIENCE) == 2


@requires("late_threads")
@pytest.mark.parametrize("call", ["enforce_limits()(abs)", "limited(abs)"])
def test_calls_of_threads_that_outlive_the_main_thread_are_answered(call: str) -> None:
    """The interpreter ends after them; the hidden executor has been shut down before."""
    done = run_script(f"""
        from concurrent.futures import ThreadPoolExecutor
        from pynisher_exec import enforce_limits, limited
        function = {call}
        pool = ThreadPoolExecutor(2)
        for number in range(4):
            pool.submit(lambda n: print(function(-n), flush=True), number)
    """)
    assert sorted(done.stdout.split()) == ["0", "1", "2", "3"], done.stderr
    assert done.returncode == 0


MODULE = """
from pynisher_exec import LimitedProcessExecutor, enforce_limits, limited

class Thing:
    pass

def make():
    return Thing()

@enforce_limits(wall_time_in_s=20{context})
def decorated(n):
    return n + helper(n)

def helper(n):
    return 2 * n

made = enforce_limits(wall_time_in_s=20{context})(make)()
print("once", type(made) is Thing, decorated(1), limited(make, wall_time=20)().__class__ is Thing)
with LimitedProcessExecutor(1, wall_time=20) as executor:
    print(type(executor.submit(make).result()) is Thing)
"""


@pytest.mark.parametrize("context", ["", ', context="fork"', ', context="spawn"'])
def test_module_may_make_calls_while_it_is_imported(context: str, tmp_path: Path) -> None:
    """Its code runs once, nobody waits for the import, and a class of its comes back as itself."""
    (tmp_path / "imported.py").write_text(MODULE.format(context=context))
    done = run_script(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import imported")
    assert done.stdout == "once True 3 True\nTrue\n", done.stderr


def test_interrupt_in_a_callback_goes_on_and_others_have_their_turn() -> None:
    """In the main thread Ctrl-C is the user's; what else a callback raises keeps no other back."""
    turns: list[str] = []

    def leave_by_exit(_: object) -> None:
        raise SystemExit

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with LimitedProcessExecutor(1) as executor:
        future = executor.submit(abs, -1)
        future.add_done_callback(leave_by_exit)
        future.add_done_callback(lambda _: turns.append("second"))
        assert future.result(PATIENCE) == 1
    assert turns == ["second"]
    with LimitedProcessExecutor(1) as executor:
        executor.submit(time.sleep, 0.3)
        pending = executor.submit(abs, -1)
        pending.add_done_callback(interrupt)
        with pytest.raises(KeyboardInterrupt):
            pending.cancel()
        assert pending.cancelled()
