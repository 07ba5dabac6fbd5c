"""What the interpreter waits for before it ends, as it does for the stdlib's executors."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Closable", "ClosedAtExit"]


class Closable(Protocol):
    """Something whose thread resolves futures."""

    def close(self) -> None:
        """Take no more tasks, and end when all are done."""

    def join(self) -> None:
        """Wait for that; once more after an interrupt."""

    def kill(self) -> None:
        """As `close`, and end those that are not done."""

    def forget(self) -> None:
        """In a fork of this process: it is the parent's."""


class ClosedAtExit:
    """All of a kind that are alive: at the interpreter's end, what was submitted is done first.

    After Ctrl-C it is ended. Kinds that were made later have their turn earlier: they build on
    others.
    """

    def __init__(self) -> None:
        self._members: set[weakref.ref[Closable]] = set()
        self.has_come = False
        """Whether the end has come: what is added from now on, nobody else closes."""
        threading._register_atexit(self._close_all)  # type: ignore[attr-defined]  # noqa: SLF001
        os.register_at_fork(after_in_child=lambda: self._each(lambda member: member.forget()))

    def add(self, member: Closable) -> None:
        """From now on; it is not kept alive."""
        self._members.add(weakref.ref(member, self._members.discard))

    def _each(self, action: Callable[[Closable], None]) -> None:
        for reference in list(self._members):  # one step under the interpreter lock
            member = reference()
            if member is not None:
                action(member)

    def _close_all(self) -> None:
        self.has_come = True
        try:
            self._each(lambda member: member.close())
            self._each(lambda member: member.join())
        except KeyboardInterrupt:
            self._each(lambda member: member.kill())
            self._each(lambda member: member.join())
            raise
