"""What a row of the table is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Check", "Found"]


class Found(NamedTuple):
    """What came of a check: how often it was tried, what failed, the worst figure that was seen.

    `refused` is not empty where this machine does not allow what is to be tried, and says why.
    """

    tries: int
    failures: list[str]
    worst: str
    refused: str = ""


class Check(NamedTuple):
    """One promise and how it is tried. `run` takes how often: `full`, or `quick` for a look."""

    number: int
    promise: str
    how: str
    run: Callable[[int], Found]
    full: int
    quick: int
