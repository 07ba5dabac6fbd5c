"""What tasks were seen to import, and what of it a template shall import ahead of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Lesson"]

MOST_SCOUTS = 8
"""Scouts that one key is worth: each may find one more package that cannot be imported ahead."""

REPORTS = 2
"""Tasks that must have imported something new before a scout is sent, where none wait for it."""


@dataclass
class Lesson:
    """For one key of templates. `ahead` is what a scout has found fit to be imported ahead."""

    ahead: tuple[str, ...] = ()
    _wanted: dict[str, None] = field(default_factory=dict)  # in the order of their import
    _refused: set[str] = field(default_factory=set)
    _reports: int = 0
    _scouts: int = 0

    def note(self, names: Sequence[str], *, eager: bool) -> bool:
        """A task had to import these; whether to send a scout. `eager`: other tasks wait."""
        fresh = [name for name in names if _package(name) not in self._refused]
        if not set(fresh).difference(self.ahead):
            return False
        self._wanted.update(dict.fromkeys(fresh))
        self._reports += 1
        return (eager or self._reports >= REPORTS) and self._scouts < MOST_SCOUTS

    def begin(self) -> tuple[str, ...]:
        """What the next scout shall import."""
        self._scouts += 1
        self._reports = 0
        return tuple(name for name in self._wanted if _package(name) not in self._refused)

    def refuse(self, name: str) -> bool:
        """A module, with all of its package, is unfit; whether another scout is worth sending."""
        self._refused.add(_package(name))
        left = any(_package(each) not in self._refused for each in self._wanted)
        return left and self._scouts < MOST_SCOUTS

    def give_up(self) -> None:
        """Import nothing ahead any more: no scout came back, or tasks do not come up."""
        self.ahead = ()
        self._scouts = MOST_SCOUTS


def _package(name: str) -> str:
    return name.partition(".")[0]
