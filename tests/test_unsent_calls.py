"""What is told of a call that could not be pickled: its error, whatever foreign code that has."""

from __future__ import annotations

import builtins
import contextlib
import gc
import threading
import traceback
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pynisher_exec import LimitedProcessExecutor, UnpicklableError, limited

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 30


@pytest.fixture
def executor() -> Iterator[LimitedProcessExecutor]:
    """One without limits."""
    with LimitedProcessExecutor(1) as made:
        yield made


class ShapeError(Exception):
    """Compares as its array does, so by element; counts as false."""

    def __init__(self, array: Any) -> None:
        super().__init__()
        self.array = array

    __hash__ = Exception.__hash__

    def __eq__(self, other: object) -> Any:
        return self.array == getattr(other, "array", None)

    def __len__(self) -> int:
        return 0


class EndlessError(Exception):
    """Has another cause whenever it is asked."""

    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        return EndlessError()

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise LookupError


class Odd:
    """Fails to pickle with the second of these, which has the first for its context."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = errors

    def __reduce__(self) -> str:
        self.errors[1].__context__ = self.errors[0]
        raise self.errors[1]


@pytest.mark.parametrize(
    "errors",
    [
        (ShapeError(np.ones(3)), ShapeError(np.ones(3))),
        (EndlessError(), EndlessError()),
        (ValueError(), ShapeError(np.ones(3))),
    ],
    ids=["compares", "endless", "mixed"],
)
def test_foreign_errors_end_their_own_call_alone(
    executor: LimitedProcessExecutor, errors: tuple[BaseException, ...]
) -> None:
    """Whatever their classes make of being compared, asked and counted."""
    error = executor.submit(id, Odd(*errors)).exception(PATIENCE)
    assert isinstance(error, UnpicklableError)
    assert executor.submit(abs, -3).result(PATIENCE) == 3


def fail() -> None:
    """Have something to handle."""
    raise ZeroDivisionError


def test_what_the_caller_is_handling_keeps_its_traceback() -> None:
    """It becomes the context of what pickling raises there, and is the caller's all the same."""
    safe = limited(id)

    def call_while_handling() -> str:
        try:
            fail()
        except ZeroDivisionError as handled:
            with contextlib.suppress(UnpicklableError):
                safe(threading.Lock())
            return "".join(traceback.format_exception(handled))
        return ""

    assert "in fail" in call_while_handling()


def test_error_that_the_user_holds_keeps_its_traceback(executor: LimitedProcessExecutor) -> None:
    """What pickling raises may come from it."""
    with pytest.raises(ZeroDivisionError) as caught:
        fail()
    held = caught.value

    class FromHeld:
        def __reduce__(self) -> str:
            raise TypeError from held

    assert isinstance(executor.submit(id, FromHeld()).exception(PATIENCE), UnpicklableError)
    assert "in fail" in "".join(traceback.format_exception(held))


class Held:
    """Something that is to be freed."""


def test_groups_hold_no_call(executor: LimitedProcessExecutor) -> None:
    """Neither does what is in them."""
    group_of: Any = getattr(builtins, "ExceptionGroup", None)
    if group_of is None:
        pytest.skip("groups of exceptions came with Python 3.11")

    class InGroup:
        def __reduce__(self) -> str:
            try:
                fail()
            except ZeroDivisionError as error:
                reason = "several"
                raise group_of(reason, [error]) from None
            return ""

    held = Held()
    alive = weakref.ref(held)
    future = executor.submit(print, held, InGroup())
    error = future.exception(PATIENCE)
    del held
    gc.collect()
    assert isinstance(error, UnpicklableError)
    assert alive() is None
