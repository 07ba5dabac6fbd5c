"""Large parts of a call or an outcome, copied between task and caller by a thread."""

from __future__ import annotations

import _thread
import errno
import os
import threading
from functools import partial
from typing import TYPE_CHECKING

from pynisher_exec.kernel import memory_copy, proc
from pynisher_exec.kernel.descriptors import above_standard

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Mapping, Sequence

    from pynisher_exec.protocol.frames import Left

    Buffer = bytes | bytearray | memoryview

__all__ = ["Fetch", "Gift"]

_PATIENCE = 1.0
"""Seconds for which the end of a copy is waited for: the task's memory may be a file that hangs."""


class _Copying:
    """A copy that goes on. `bell` rings at its end: then all is done, unless it `failed`.

    Raises OSError or RuntimeError where there is no descriptor or thread for it.
    """

    def __init__(self) -> None:
        self.failed = True  # until all has been copied
        self._stopped = self._given_up = False
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.bell = above_standard(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        try:
            # One of `threading` is waited for to begin, for ever where it lacks memory for that.
            _thread.start_new_thread(self._run, ())
        except BaseException:
            os.close(self.bell)
            raise

    def _run(self) -> None:
        try:
            self._copy()
            self.failed = False
        except (OSError, ValueError, MemoryError, OverflowError):  # refused, gone, or no such place
            pass
        finally:
            with self._lock:
                os.eventfd_write(self.bell, 1)
                self._over.set()
                if self._given_up:
                    os.close(self.bell)

    def _copy(self) -> None:
        raise NotImplementedError

    def _in_pieces(self, length: int, copy: Callable[[int], int]) -> None:
        done = 0
        while done < length:
            if self._stopped:  # nobody may take for whole what is not
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
            done += copy(done)

    def close(self) -> None:
        """End it."""
        self._stopped = True
        self._over.wait(_PATIENCE)
        with self._lock:
            self._given_up = not self._over.is_set()
            if not self._given_up:  # else the thread closes it, whenever it gets there
                os.close(self.bell)


class Fetch(_Copying):
    """Copies what stayed in a task into `rooms`.

    It is worth something only if the task says afterwards that it is still there: its pid may have
    become another process's meanwhile.
    """

    def __init__(self, pid: int, left: Mapping[int, Left]) -> None:
        self.rooms: dict[int, mmap.mmap] = {}
        self.left = left
        self._pid = pid
        super().__init__()

    def _copy(self) -> None:
        for place, (length, address) in self.left.items():
            room = memory_copy.room(length)
            self._in_pieces(length, partial(self._take, room, address))
            self.rooms[place] = room

    def _take(self, room: mmap.mmap, address: int, done: int) -> int:
        return memory_copy.copy_from(self._pid, address + done, room, done)


class Gift(_Copying):
    """Copies parts of a call to where the task has room for them.

    Never into another process, whatever becomes of the task's pid: before each piece its parent has
    to be the `supervisor`, which reaps it, and a pid does not come round in between.
    """

    def __init__(
        self, pid: int, supervisor: int, parts: Sequence[Buffer], addresses: Sequence[int]
    ) -> None:
        self._pid = pid
        self._supervisor = supervisor
        self._parts = parts
        self._addresses = addresses
        super().__init__()

    def _copy(self) -> None:
        for part, address in zip(self._parts, self._addresses, strict=True):
            self._in_pieces(len(part), partial(self._give, part, address))

    def _give(self, part: Buffer, address: int, done: int) -> int:
        found = proc.stat(self._pid)
        if found is None or found.parent != self._supervisor:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return memory_copy.copy_to(self._pid, address + done, part, done)
