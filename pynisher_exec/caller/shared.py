"""Objects that tasks have by reference: pickled once, into memory that each of them maps.

In a call a handle is pickled as its number among the descriptors that travel with the call. What it
refers to is never changed: a task that writes to it writes to copies of the pages of its own.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import weakref
from typing import TYPE_CHECKING, Any

from pynisher_exec.kernel import proc, sealed_memory
from pynisher_exec.kernel.descriptors import above_standard
from pynisher_exec.protocol import payload, tensors
from pynisher_exec.task import shared as attached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Reduced = tuple[Callable[..., Any], tuple[int, attached.Spans]]

__all__ = ["MOST_REFERENCES", "Memory", "Shared", "references"]

MOST_REFERENCES = 240
"""Descriptors that go with one call; a message takes 253 (SCM_MAX_FD, unix(7))."""


class Memory:
    """A pickle and its buffers in a memory file, which is freed with the last reference to this.

    Raises what pickling raises; OSError where there is no memory or descriptor for it.
    """

    def __init__(self, thing: object) -> None:
        segments = payload.dump_call(thing, tensors.reducers())
        self.spans: attached.Spans = []
        end = 0
        for segment in segments:
            self.spans.append((end, len(segment)))
            # Each buffer begins a page, so it is as aligned as any array wants to be.
            end = -(-(end + len(segment)) // proc.PAGE) * proc.PAGE
        self.size = end
        places = [start for start, _ in self.spans]
        self.descriptor = above_standard(
            sealed_memory.create(zip(places, segments, strict=True), end)
        )
        self.place = proc.place_of(self.descriptor)
        weakref.finalize(self, os.close, self.descriptor).atexit = False


class Shared:
    """A handle on an object that was given to an executor, see its `share`.

    Stands for the object wherever an argument stands in calls to that executor and its views.
    """

    def __init__(self, owner: object, thing: object) -> None:
        self._owner = owner
        self._name = type(thing).__qualname__
        self._memory: Memory | None = Memory(thing)
        self._size = self._memory.size

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the object takes, once for all tasks."""
        return self._size

    def close(self) -> None:
        """Free the memory as soon as no running task has it. Calls that wait for a slot will fail.

        To drop the handle (`del`) does the same once no call waits that has it.
        """
        self._memory = None

    def __repr__(self) -> str:
        state = "" if self._memory is not None else ", closed"
        return f"<Shared {self._name}, {self._size} bytes{state}>"

    def __copy__(self) -> Shared:
        """Give this very handle, as of a module: what it refers to is never changed."""
        return self

    def __deepcopy__(self, _memo: object) -> Shared:
        return self

    def __reduce__(self) -> Reduced:
        """Refer to it in a call of its executor. PicklingError everywhere else, and once closed."""
        calls: References | None = getattr(_thread, "references", None)
        if calls is None:
            msg = f"{self!r} is for arguments of its executor's calls, not to be pickled or shared"
            raise pickle.PicklingError(msg)
        if calls.owner is not self._owner:
            msg = f"{self!r} belongs to another executor"
            raise pickle.PicklingError(msg)
        memory = self._memory
        if memory is None:
            msg = f"{self!r} was closed before this call began"
            raise pickle.PicklingError(msg)
        return attached.attach, (calls.number_of(memory), memory.spans)


class References:
    """What one call refers to, in the order of the descriptors that go with it."""

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.memories: list[Memory] = []

    def number_of(self, memory: Memory) -> int:
        """Give the number of a memory file in this call."""
        if memory not in self.memories:
            if len(self.memories) == MOST_REFERENCES:
                msg = f"a call can refer to {MOST_REFERENCES} shared objects at most"
                raise pickle.PicklingError(msg)
            self.memories.append(memory)
        return self.memories.index(memory)


_thread = threading.local()


@contextlib.contextmanager
def references(owner: object) -> Iterator[list[Memory]]:
    """Collect what is referred to by handles of `owner` that this thread pickles meanwhile."""
    before = getattr(_thread, "references", None)
    _thread.references = calls = References(owner)
    try:
        yield calls.memories
    finally:
        _thread.references = before  # that of a call whose pickling makes another call
