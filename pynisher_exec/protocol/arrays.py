"""numpy's arrays as buffers beside a pickle, those too of which numpy itself makes bytes in it.

By itself it sets aside what is a whole array of numbers. Parts of other arrays, memory maps,
matrices, records, masked arrays, dates and times would be copied several times on their way, and of
what is shared each task would have a copy of its own.
"""

from __future__ import annotations

import pickle
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import dtype, ndarray

    Array = ndarray[Any, Any]
    Parts = tuple[pickle.PickleBuffer, dtype[Any], tuple[int, ...], tuple[int, ...]]

__all__ = ["buffer_at", "reduce"]

_VIEWS = ("memmap", "matrix", "recarray")
"""Subclasses that are nothing but another view of an array, once loaded."""


def buffer_at(place: int, length: int, owner: object) -> pickle.PickleBuffer:
    """Give so many bytes of this process's memory, which `owner` holds; never written to here.

    It says that they can be, since the copy of them can.
    """
    import numpy as np  # noqa: PLC0415  (an extra's: this is reached where it has been imported)

    told = {"version": 3, "shape": (length,), "typestr": "|u1", "data": (place, False)}
    held = SimpleNamespace(__array_interface__=told, owner=owner)
    return pickle.PickleBuffer(np.asarray(held))


def reduce(thing: Any, least: int) -> Any:
    """Give how to pickle an array of which numpy would make bytes, `least` of them at least.

    NotImplemented for all else.
    """
    # None while numpy is being imported; nor has what stands in for it, a mock, such a class.
    names = getattr(sys.modules.get("numpy"), "__dict__", {})
    array, kind = names.get("ndarray"), type(thing)
    if type(array) is not type or not issubclass(kind, array):
        return NotImplemented
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", None)
    # What another class has besides is only known to its own way. By `is`: a metaclass may say
    # anything of `==`.
    if not (kind is array or kind is masked or any(kind is names.get(name) for name in _VIEWS)):
        return NotImplemented
    if thing.nbytes < least or thing.dtype.hasobject:
        return NotImplemented
    if kind is masked:
        # As numpy's own way does: the property makes a default one, and may not take that itself.
        fill_value = thing._fill_value  # noqa: SLF001  (see above)
        return _load_masked, (thing.data, thing.mask, fill_value, thing.hardmask)
    if kind is not array:
        return _load_view, (kind, *_parts(thing.view(array)))
    whole = thing.flags.c_contiguous or thing.flags.f_contiguous
    return NotImplemented if whole and _has_format(thing) else (_load, _parts(thing))


def _has_format(array: Any) -> bool:
    """Whether a buffer (PEP 3118) can say what is in it: not dates, nor fields out of order."""
    try:
        memoryview(array).release()
    except ValueError:
        return False
    return True


def _parts(array: Array) -> Parts:
    """What to make it of: its bytes, axis by axis as they lie, the sizes of those, their order."""
    axes = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    lying = array.transpose(axes)
    if not lying.flags.c_contiguous:  # a part of another one
        axes = list(range(array.ndim))
        lying = array.copy()
    place = lying.__array_interface__["data"][0]
    return buffer_at(place, lying.nbytes, lying), array.dtype, lying.shape, tuple(axes)


def _load(buffer: Any, kind: dtype[Any], shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    import numpy as np  # noqa: PLC0415  (an extra's)

    array = np.frombuffer(buffer, np.uint8).view(kind).reshape(shape)
    made: Array = array.transpose([axes.index(axis) for axis in range(len(axes))])
    return made


def _load_view(kind: type[Array], *parts: Any) -> Array:
    return _load(*parts).view(kind)


def _load_masked(data: Array, mask: Any, fill_value: Any, hard: bool) -> Any:  # noqa: FBT001  (called with what `reduce` gives)
    import numpy as np  # noqa: PLC0415  (an extra's)

    made: Any = np.ma.MaskedArray(data, mask, hard_mask=hard)
    made._fill_value = fill_value  # noqa: SLF001  (see `reduce`)
    return made
