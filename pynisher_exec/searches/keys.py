"""What an item of a search is known by, in this run and in the next one that resumes it."""

from __future__ import annotations

import functools
import json
import types
from typing import TYPE_CHECKING, Any

from pynisher_exec.report import is_number_of_numpy, plain, shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Keyed", "key_of", "name_of_function"]

_SCALARS = (str, int, float, bool, type(None))
_WANTED = "pass key=, a function that gives a string for the arguments of a call"


class Keyed:
    """Gives each call of one function its key: by `key` where given, else by name and arguments.

    A pickle would not do: its bytes differ between runs. ValueError, which says to pass `key`, for
    a function without a name of its own, and for arguments that have no canonical form in JSON.
    """

    def __init__(self, fn: Callable[..., Any], key: Callable[..., object] | None) -> None:
        self._key = key
        self.function = name_of_function(fn)
        self._bound, self._keywords = _bound(fn)
        if key is None:
            _refuse_nameless(fn, self.function)

    def of(self, args: Sequence[Any]) -> str:
        """Give the key of one call."""
        if self._key is None:
            return key_of(self.function, [*self._bound, *args], self._keywords)
        key = self._key(*args)
        if isinstance(key, str) and not _is_json(key) and _is_text(key):
            return key
        return _canonical(key, "what key= gives")


def _is_text(text: str) -> bool:
    """Whether a string can be written as it is: one with lone surrogates becomes JSON, escaped."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_json(text: str) -> bool:
    """Whether a string reads as another value's form: "1" and 1 are two items."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def key_of(function: str, args: Sequence[Any], keywords: dict[str, Any]) -> str:
    """Name and arguments as one text: `module.train({"depth":3})`, `module.train(3,**{"a":1})`."""
    texts = [
        _canonical(each, f"the argument {shortened(each, length=60)} of {function}")
        for each in args
    ]
    if keywords:
        texts.append("**" + _canonical(keywords, f"what {function} is bound to"))
    return f"{function}({','.join(texts)})"


def name_of_function(fn: object) -> str:
    """Module and name of what is called, a partial's those of its function."""
    fn = _unwrapped(fn)
    named = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{getattr(named, '__module__', None) or ''}.{named.__qualname__}".lstrip(".")


def _unwrapped(fn: object) -> object:
    """What a partial calls in the end."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def _bound(fn: object) -> tuple[list[Any], dict[str, Any]]:
    """What a partial adds to each call."""
    args: list[Any] = []
    keywords: dict[str, Any] = {}
    while isinstance(fn, functools.partial):
        args = [*fn.args, *args]
        keywords = {**fn.keywords, **keywords}
        fn = fn.func
    return args, keywords


def _refuse_nameless(fn: object, name: str) -> None:
    """A lambda's name is every lambda's, a closure's that of all; a method's says not whose."""
    fn = _unwrapped(fn)
    has_name = isinstance(fn, types.FunctionType | types.BuiltinFunctionType | type)
    owner = getattr(fn, "__self__", None)
    of_object = owner is not None and not isinstance(owner, types.ModuleType | type)
    if not has_name or of_object or "<locals>" in name or "<lambda>" in name:
        msg = f"{name} has no name that tells its calls from others': {_WANTED}"
        raise ValueError(msg)


def _canonical(value: object, what: str) -> str:
    """JSON that is the same for the same value in every run: keys sorted, no spaces."""
    _refuse_foreign(value, what)
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=plain
        )
    except (ValueError, RecursionError) as error:
        msg = f"{what} has no canonical form in JSON ({error}): {_WANTED}"
        raise ValueError(msg) from None


def _refuse_foreign(value: object, what: str) -> None:
    """JSON makes text of a number that is a key, so that 1 and "1" would be one item."""
    waiting: list[object] = [value]
    seen = 0
    while waiting:
        each = waiting.pop()
        seen += 1
        if isinstance(each, dict) and all(isinstance(key, str) for key in each):
            waiting.extend(each.values())
        elif isinstance(each, list | tuple):
            waiting.extend(each)
        elif not isinstance(each, _SCALARS) and not is_number_of_numpy(each):
            msg = f"{what} has no canonical form in JSON ({type(each).__name__}): {_WANTED}"
            raise ValueError(msg)
        if seen > _MOST_PARTS:
            msg = f"{what} is too large to be a key: {_WANTED}"
            raise ValueError(msg)


_MOST_PARTS = 100_000
"""Parts of an argument; one that holds itself has no end."""
