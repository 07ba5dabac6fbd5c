"""Which slot gets a call, and whether it is worth, and allowed, to have one more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from pynisher_exec.caller.item import Key
    from pynisher_exec.caller.slot import Slot

__all__ = ["enough_are_coming", "idle", "in_the_way"]

STARTING_AT_ONCE = 32
"""Slots asked for at one moment: their requests must fit into a template's line."""


def idle(slots: Collection[Slot], key: Key) -> Slot | None:
    """Give a slot that waits for a call of this key."""
    return next((slot for slot in slots if slot.state == "idle" and slot.key == key), None)


def enough_are_coming(slots: Collection[Slot], waiting: int) -> bool:
    """Whether slots that start, or prepare their next child, will serve all who wait.

    One more than that is worth having: a caller that makes one call after the other then never
    waits for a fork.
    """
    starting = [slot for slot in slots if slot.state == "starting"]
    new = sum(not slot.idle_since for slot in starting)
    return new >= min(waiting, STARTING_AT_ONCE) or len(starting) > waiting


def in_the_way(slots: Collection[Slot], key: Key) -> Slot | None:
    """Give an idle slot of another key, which may give way where no more are allowed."""
    return next((slot for slot in slots if slot.state == "idle" and slot.key != key), None)
