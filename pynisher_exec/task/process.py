"""What the calls have in common that one process serves, one after the other."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from pynisher_exec.kernel import proc
from pynisher_exec.kernel.descriptors import file_of
from pynisher_exec.task import shared

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Process"]


class Process:
    """Serves at `most` so many calls (None: any number), and has served so many, this one counted.

    `files` are what its descriptors are open on that calls need: a function may close them, or open
    files of its own on their numbers.
    """

    def __init__(self, descriptors: Iterable[int], most: int | None) -> None:
        self.files = {end: file_of(end) for end in descriptors}
        self.most = most
        self.served = 0
        self._held: int | None = None  # as the first call began
        self._limit: int | None = None

    @property
    def is_at_its_last(self) -> bool:
        """Whether it ends with this call, whatever comes of it."""
        return self.served == self.most

    def owns(self, end: int) -> bool:
        """Whether a descriptor is still what it was."""
        try:
            return file_of(end) == self.files[end]
        except OSError:
            return False

    def note_baseline(self, held: int, limit: int | None) -> None:
        """Note what the process holds as a call begins, and how much more that may take."""
        self._limit = limit
        if self._held is None:
            self._held = held

    def has_outgrown(self) -> bool:
        """Whether calls have left more, all together, than this one might take by itself."""
        if self._limit is None or self._held is None:
            return False
        bound = self._held + self._limit
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 <= bound:  # saves a look
            return False
        try:
            return proc.own_memory(*shared.size()).held > bound
        except OSError:  # the function has left no descriptor, or another root: nobody can say
            return True
