"""Random generators that were made by imports ahead: each task gets fresh ones.

As they are they would draw the same numbers in every fork. Python's own global one sees to that
itself; those of devices begin with their first use, which is never in a template.
"""

from __future__ import annotations

import gc
import random
import sys
import tempfile
from typing import Any

__all__ = ["note", "reseed", "unknown"]

_Names: Any = tempfile._RandomNameSequence  # type: ignore[attr-defined]  # noqa: SLF001

_CHOSEN = 96
"""Bits: seeds of at most so many have been chosen by somebody; numpy itself takes 128."""

_unseeded: list[Any] = []


def note() -> None:
    """Remember those of numpy's that were made without a seed, by modules for themselves."""
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is None:
        return
    kinds = numpy_random.Generator, numpy_random.RandomState
    # By type: to ask an object for its class may run code of its own.
    found = [each for each in gc.get_objects() if issubclass(type(each), kinds)]
    others = (each for each in found if each is not numpy_random.mtrand._rand)  # noqa: SLF001
    _unseeded[:] = filter(_was_not_seeded, others)


def _was_not_seeded(generator: Any) -> bool:
    entropy = getattr(getattr(_bits_of(generator), "_seed_seq", None), "entropy", None)
    return isinstance(entropy, int) and entropy.bit_length() > _CHOSEN


def _bits_of(generator: Any) -> Any:
    """What makes its numbers; a `RandomState` has it under another name."""
    return getattr(generator, "bit_generator", None) or generator._bit_generator  # noqa: SLF001


def reseed() -> None:
    """Make fresh ones of numpy's and torch's global ones, and of those that were noted."""
    numpy_random, torch_random = sys.modules.get("numpy.random"), sys.modules.get("torch.random")
    if numpy_random is not None:
        numpy_random.seed()
    if torch_random is not None:
        torch_random.default_generator.seed()
    for each in _unseeded:
        bits = _bits_of(each)
        bits.state = type(bits)().state


def unknown() -> int:
    """How many of Python's there are that a fork cannot be given anew: their seed is not known.

    Its global one is, `tempfile` makes new ones in a fork, and the system's have none. Those that
    the collector has frozen are not among them.
    """
    known, found = set(), []
    for each in gc.get_objects():
        kind = type(each)
        if kind is _Names:
            known.add(id(vars(each).get("_rng")))
        elif issubclass(kind, random.Random) and not issubclass(kind, random.SystemRandom):
            found.append(id(each))
    return len(set(found) - known)
