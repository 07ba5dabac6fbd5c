"""A call that is put together in its task: a pickle with places, and the values that belong there.

So nothing of the user's is loaded where no limit holds, in the process that passes both on.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from pynisher_exec.protocol import payload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Assembly", "placeholder"]

_values: Sequence[Any] = ()  # a task loads one call at a time, in one thread


class Assembly:
    """Loads as the call whose pickle these `segments` are, with `values` in their places."""

    def __init__(self, segments: Sequence[bytes], values: Sequence[Any]) -> None:
        self._segments = segments
        self._values = values

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _assembled, ([pickle.PickleBuffer(each) for each in self._segments], self._values)


def placeholder(number: int) -> Any:
    """Stands in a call's pickle for a value that comes beside it."""
    return _values[number]


def _assembled(segments: Sequence[memoryview], values: Sequence[Any]) -> Any:
    global _values  # noqa: PLW0603  (placeholders are called by the unpickler, with a number alone)
    _values = values
    try:
        return payload.load_call(segments)[0][1]
    finally:
        _values = ()
