"""What stands in for a function and runs it under limits: `Limited`, and pynisher 0.6's shim.

It has the function's name, docstring and signature, binds to an instance as a function does, and
pickles where the function does, with any pickler: an engine's may be a copy of cloudpickle that
knows nothing of this library.
"""

from __future__ import annotations

import functools
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

import cloudpickle

from pynisher_exec.caller.item import refuse_unfit

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Wrapper"]


class Wrapper:
    """A stand-in for `func`; TypeError for what cannot be called in a process of its own."""

    func: Callable[..., Any]

    def __init__(self, func: Callable[..., Any]) -> None:
        refuse_unfit(func)
        # Not its `__dict__`: a callable object's attributes are not ours.
        functools.update_wrapper(cast("Any", self), func, updated=())
        self.func = func

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Bind as a function does; what is bound shares all else with this."""
        bind = getattr(type(self.func), "__get__", None)
        if instance is None or bind is None:  # a builtin, or a callable object
            return self
        method = bind(self.func, instance, owner)
        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__, func=method, __wrapped__=method)
        return bound

    def by_value(self) -> tuple[Any, ...]:
        """How to make this again, as `__reduce__` says it: a callable and its arguments."""
        raise NotImplementedError

    def __reduce__(self) -> str | tuple[Any, ...]:
        """By name where this object stands under the function's name, as a decorator leaves it.

        In `__main__` a worker may be without that name, so the value travels along, pickled here:
        the function itself no pickler would find by its name.
        """
        name: str = getattr(self, "__qualname__", "")
        module: str = getattr(self, "__module__", "")
        found: object = _standing(module, name) if name else None
        if found is not self:
            return self.by_value()
        if module not in ("__main__", "__mp_main__"):
            return name
        if id(self) in _pickling.wrappers:  # the function refers to itself by its name
            return self.by_value()
        _pickling.wrappers.append(id(self))
        try:
            return _found_or_made, (name, cloudpickle.dumps(self.by_value()))
        finally:
            _pickling.wrappers.pop()


class _Pickling(threading.local):
    """The identities of the wrappers that this thread is pickling by value."""

    def __init__(self) -> None:
        self.wrappers: list[int] = []


_pickling = _Pickling()


def _standing(module: str, name: str) -> Any:
    """What stands under a dotted name in a module, None if nothing does."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _found_or_made(name: str, value: bytes) -> Any:
    """The wrapper of that name in this process's `__main__`, else one made from its value."""
    found = _standing("__main__", name)
    if isinstance(found, Wrapper):
        return found
    make, args = cloudpickle.loads(value)
    return make(*args)
