"""Large parts of an outcome, copied from the task's memory into this process's in a thread."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

from pynisher_exec.kernel import memory_copy
from pynisher_exec.kernel.descriptors import above_standard

if TYPE_CHECKING:
    import mmap
    from collections.abc import Mapping

    from pynisher_exec.protocol.frames import Left

__all__ = ["Fetch"]

_PATIENCE = 1.0
"""Seconds for which the end of a copy is waited for: the task's memory may be a file that hangs."""


class Fetch:
    """Copies what stayed in a task. `bell` rings at the end: `rooms` then has all, or it `failed`.

    The copy is worth something only if the task says afterwards that it is still there: its pid
    may have become another process's meanwhile. Raises OSError or RuntimeError where there is no
    descriptor or thread for it.
    """

    def __init__(self, pid: int, left: Mapping[int, Left]) -> None:
        self.rooms: dict[int, mmap.mmap] = {}
        self.failed = False
        self._pid = pid
        self.left = left
        self._stopped = self._ended = self._given_up = False
        self._lock = threading.Lock()
        self.bell = above_standard(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._thread = threading.Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except BaseException:
            os.close(self.bell)
            raise

    def _run(self) -> None:
        try:
            for place, (length, address) in self.left.items():
                self.rooms[place] = self._copy(length, address)
        except (OSError, ValueError, MemoryError, OverflowError):  # refused, gone, or no such place
            self.failed = True
        finally:
            with self._lock:
                os.eventfd_write(self.bell, 1)
                self._ended = True
                if self._given_up:
                    os.close(self.bell)

    def _copy(self, length: int, address: int) -> mmap.mmap:
        room = memory_copy.room(length)
        done = 0
        while done < length:
            if self._stopped:  # nobody may take for whole what is not
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
            done += memory_copy.copy_from(self._pid, address + done, room, done)
        return room

    def close(self) -> None:
        """End it."""
        self._stopped = True
        self._thread.join(_PATIENCE)
        with self._lock:
            self._given_up = not self._ended  # the thread closes it then, whenever it gets there
            if self._ended:
                os.close(self.bell)
