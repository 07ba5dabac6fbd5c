"""PyTorch's tensors in shared objects: their storages as buffers, as the data of arrays are.

By themselves they pickle into bytes, of which each task would make a copy for itself. Only where an
object is shared: a storage that lies in a buffer cannot be resized, and an argument may have to be.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pynisher_exec.protocol.arrays import buffer_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["reducers"]


def reducers() -> Mapping[type, Callable[[Any], Any]]:
    """How to reduce storages; empty where the caller has not imported torch, or has no numpy."""
    storages = sys.modules.get("torch.storage")
    found: dict[Any, Callable[[Any], Any]] = {
        getattr(storages, "UntypedStorage", None): _reduce,
        getattr(storages, "TypedStorage", None): _reduce_typed,
    }
    return {} if None in found or "numpy" not in sys.modules else found


def _reduce(storage: Any) -> Any:
    """As a buffer, if it is in the memory of this process."""
    if not _is_here(storage):
        return storage.__reduce__()
    # Not by a tensor's `numpy`: after that the caller's own could not be resized any more.
    return _load, (buffer_at(storage.data_ptr(), storage.nbytes(), storage),)


def _is_here(storage: Any) -> bool:
    return bool(storage.device.type == "cpu" and storage.nbytes())


def _reduce_typed(storage: Any) -> Any:
    """By the storage that it shows, which several tensors may have in common."""
    held = storage._untyped_storage  # noqa: SLF001  (what is public of it warns of its removal)
    return (_load_typed, (held, storage.dtype)) if _is_here(held) else storage.__reduce__()


def _load(buffer: Any) -> Any:
    import torch  # noqa: PLC0415  (an extra's)

    return torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()


def _load_typed(storage: Any, dtype: Any) -> Any:
    import torch  # noqa: PLC0415  (an extra's)

    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
