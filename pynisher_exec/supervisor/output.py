"""What a task writes to its standard output and error, kept within a bound.

The pipes are read as long as the task lives, whatever the bound, so a task never blocks on a full
pipe. Beyond the bound the head and the tail are kept, with a notice of what is missing between.
"""

from __future__ import annotations

import os
from collections import deque

__all__ = ["Stream", "to_memory_file"]

_CHUNK = 1 << 16
_CHUNKS_AT_ONCE = 16  # what floods its output shall not keep the supervisor from its clocks
_PIPES = 32


class Stream:
    """One captured pipe. `bound` is in bytes; half of it is kept from each end."""

    def __init__(self, descriptor: int, bound: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._head_room = bound - bound // 2
        self._tail_room = bound // 2
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._dropped = 0

    def fileno(self) -> int:
        """The pipe, for polling."""
        return self._descriptor

    def drain(self) -> bool:
        """Read what is there, to a bound; False once all writers are gone."""
        for _ in range(_CHUNKS_AT_ONCE):
            try:
                data = os.read(self._descriptor, _CHUNK)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._keep(data)
            if len(data) < _CHUNK:
                break
        return True

    def drain_all(self) -> None:
        """Read what the writers left behind; they have gone, so there is an end to it.

        Not so where the task has handed the pipe to a process outside: then no more than a pipe
        holds is taken.
        """
        for _ in range(_PIPES):
            if not self.drain():
                return

    def _keep(self, data: bytes) -> None:
        room = self._head_room - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if not data:
            return
        self._tail.append(data)
        self._tail_size += len(data)
        while self._tail_size > self._tail_room:
            self._shorten()

    def _shorten(self) -> None:
        first = self._tail.popleft()
        excess = min(len(first), self._tail_size - self._tail_room)
        if excess < len(first):
            self._tail.appendleft(first[excess:])
        self._tail_size -= excess
        self._dropped += excess

    def content(self) -> bytes:
        """Give what was kept."""
        tail = b"".join(self._tail)
        if not self._dropped:
            return bytes(self._head) + tail
        return b"%s\n[... %d bytes left out ...]\n%s" % (self._head, self._dropped, tail)


def to_memory_file(contents: list[bytes]) -> int:
    """Put output where a control message can carry it: a memfd, for the caller to close."""
    descriptor = os.memfd_create("pynisher_exec output", os.MFD_CLOEXEC)
    for content in contents:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
    return descriptor
