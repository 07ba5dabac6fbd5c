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
from pynisher_exec.protocol.payload import is_being_imported

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Wrapper"]


class Wrapper:
    """A stand-in for `func`; TypeError for what cannot be called in a process of its own."""

    func: Callable[..., Any]
    _binding: tuple[Wrapper, object, type | None] | None = None

    def __init__(self, func: Callable[..., Any]) -> None:
        refuse_unfit(func)
        # Not its `__dict__`: a callable object's attributes are not ours.
        functools.update_wrapper(cast("Any", self), func, updated=())
        self.func = func
        self.__isabstractmethod__ = getattr(func, "__isabstractmethod__", False)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Bind as a function does; what is bound shares all else with this."""
        bind = getattr(type(self.func), "__get__", None)
        if instance is None or bind is None:  # a builtin, or a callable object
            return self
        method = bind(self.func, instance, owner)
        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__, func=method, __wrapped__=method)
        bound._binding = (self, instance, owner)
        return bound

    def by_value(self) -> tuple[Any, ...]:
        """How to make this again, as `__reduce__` says it: a callable and its arguments."""
        raise NotImplementedError

    def __reduce__(self) -> str | tuple[Any, ...]:
        """By name where this object stands under the function's name, as a decorator leaves it.

        In `__main__` a worker may be without that name, so the value travels along, pickled here:
        the function itself no pickler would find by its name. What is met on the way goes into the
        same pickle. A bound one goes by what it is bound to: by its method's name a pickler would
        find this very wrapper again, and limit twice.
        """
        if self._binding is not None:
            return _bind, self._binding
        name: str = getattr(self, "__qualname__", "")
        module: str = getattr(self, "__module__", "")
        found: object = _standing(module, name) if name else None
        if found is not self or is_being_imported(module):
            return self.by_value()
        if module not in ("__main__", "__mp_main__"):
            return name
        if _pickling.deep:
            return _found_or_made, (name, self.by_value())
        _pickling.deep = True
        try:
            return _found_or_made, (name, cloudpickle.dumps(self.by_value()))
        finally:
            _pickling.deep = False


class _Pickling(threading.local):
    """Whether this thread is pickling the value of a wrapper."""

    deep = False


_pickling = _Pickling()


def _standing(module: str, name: str) -> Any:
    """What stands under a dotted name in a module, None if nothing does."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _bind(wrapper: Wrapper, instance: object, owner: type | None) -> Any:
    return wrapper.__get__(instance, owner)


def _found_or_made(name: str, value: bytes | tuple[Any, ...]) -> Any:
    """The wrapper of that name in this process's `__main__`, else one made from its value."""
    found = _standing("__main__", name)
    if isinstance(found, Wrapper):
        return found
    make, args = cloudpickle.loads(value) if isinstance(value, bytes) else value
    return make(*args)
