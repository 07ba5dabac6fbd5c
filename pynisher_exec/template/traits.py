"""What an import can have changed of this process that its forks would share, or all have.

A package after whose import any of it differs is left to the tasks that need it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import sys
from typing import NamedTuple

from pynisher_exec.kernel import proc
from pynisher_exec.task import generators

__all__ = ["Traits"]

_HARMLESS = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")

_RLIMITS = tuple(
    getattr(resource, name) for name in sorted(dir(resource)) if name.startswith("RLIMIT_")
)


class Traits(NamedTuple):
    """All that is looked at. Two are equal when forks after both are the same to their tasks.

    descriptors: what is open; a file's place in it is one for all forks. maps: writable memory that
    is one for all. generators: random ones, not frozen, that would draw the same in each fork.
    settings: of the interpreter and the process, which a task may never have asked for.
    """

    descriptors: frozenset[str]
    maps: frozenset[bytes]
    signals: tuple[int, ...]
    generators: int
    settings: tuple[object, ...]

    @classmethod
    def now(cls) -> Traits:
        """Look at this process."""
        return cls(
            _open(), proc.shared_maps(), proc.signal_masks(), generators.unknown(), _settings()
        )


def _open() -> frozenset[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this very listing
            found.add(os.readlink(f"/proc/self/fd/{name}"))  # noqa: PTH115  (no path, often)
    return frozenset(found.difference(_HARMLESS))


def _settings() -> tuple[object, ...]:
    umask = os.umask(0)
    os.umask(umask)
    limits = tuple(resource.getrlimit(each) for each in _RLIMITS)
    streams = id(sys.stdin), id(sys.stdout), id(sys.stderr)
    return umask, limits, streams, sys.getrecursionlimit(), gc.isenabled(), os.getcwd()
