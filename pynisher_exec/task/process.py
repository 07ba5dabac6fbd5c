"""What the calls have in common that one process serves, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pynisher_exec.kernel.descriptors import file_of

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Process"]


class Process:
    """Serves at `most` so many calls (None: any number), and has served so many, this one counted.

    `files` are what its descriptors are open on that calls need: a function may close them, or open
    files of its own on their numbers. `held` is what the first call began with.
    """

    def __init__(self, descriptors: Iterable[int], most: int | None) -> None:
        self.files = {end: file_of(end) for end in descriptors}
        self.most = most
        self.served = 0
        self.held: int | None = None

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
        """Where earlier calls have left more than this one may take, it goes after this one."""
        if self.held is None:
            self.held = held
        if limit is not None and held - self.held > limit:
            self.most = self.served
