"""Shared objects, on the side of the task: what `caller.shared` has put into memory files.

The descriptors come with the call. Each is mapped when the call's pickle comes to its handle, and
what was pickled there is loaded, with its buffers where they lie.
"""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

from pynisher_exec.kernel import proc, sealed_memory
from pynisher_exec.protocol import payload
from pynisher_exec.task import surroundings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Spans", "accept", "attach", "forget", "names", "release", "size"]

Spans = list[tuple[int, int]]
"""Where the pickle lies and each of its buffers: start and length."""

_descriptors: list[int] = []
_maps: dict[int, memoryview] = {}
_before = 0
names: set[str] = set()
"""What has come with them of the caller's `__main__`."""


def accept(descriptors: Sequence[int]) -> None:
    """Take what a call may refer to."""
    global _before  # noqa: PLW0603  (of the call that is being loaded)
    _descriptors[:] = descriptors
    _before = proc.own_shared_memory() if descriptors else 0


def attach(number: int, spans: Spans) -> Any:
    """Load a shared object: what a handle in a call is unpickled by."""
    start, length = spans[-1]
    if number not in _maps and number >= len(_descriptors):
        msg = "a shared object's handle was loaded by the function: it is resolved with the call"
        raise pickle.UnpicklingError(msg)
    if number not in _maps:
        _maps[number] = sealed_memory.view(_descriptors[number], start + length)
    whole = _maps[number]
    thing, found = payload.load_call([whole[at : at + length] for at, length in spans])
    if found:
        surroundings.adopt_main_names(found)
        names.update(found)
    return thing


def size() -> tuple[int, int]:
    """Bytes that have been mapped, and how much of shared memory was resident before."""
    return sum(map(len, _maps.values())), _before


def forget() -> None:
    """The call has ended: what it had mapped goes with the last object that lies there."""
    _maps.clear()
    names.clear()


def release() -> None:
    """The call is loaded: what is mapped stays so without its descriptor."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()
