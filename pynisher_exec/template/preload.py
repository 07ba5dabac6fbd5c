"""Imports made once, ahead of the forks, so that no task pays for them.

Only imports: an imported library survives a fork, one that has been used often hangs in the fork
(OpenMP's and others' thread pools do not travel). Nothing else of the user's runs here.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from pynisher_exec.kernel import proc
from pynisher_exec.task import imports

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Unfit", "import_ahead", "import_if_fit", "settle"]

_ARROW_CONFIG = "JE_ARROW_MALLOC_CONF"
_HARMLESS = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


class Unfit(Exception):  # noqa: N818  (it is what the module is)
    """A module, given by name, after whose import this process should not be forked any more."""


class _Traits(NamedTuple):
    """What forks share: devices, sockets and the like, and which signals are ignored or caught."""

    descriptors: frozenset[str]
    signals: tuple[int, ...]


def import_ahead(names: Sequence[str]) -> None:
    """Import modules by name; raises what their import raises."""
    for name in names:
        importlib.import_module(name)


def import_if_fit(names: Sequence[str]) -> None:
    """Import modules as far as they can be, looking after each package whether forks stay safe.

    Raises Unfit when one has left a thread, a socket, an open device or a signal handler, or has
    imported a module of the user's own. What cannot be imported by itself is left to the tasks.
    """
    before = _traits()
    with _quietly(), _without_arrow_threads():
        for package, group in groupby(names, _package_of):
            there = imports.count()
            for name in group:
                with contextlib.suppress(Exception):  # the task that needs it will say so
                    importlib.import_module(name)
            now = _traits()
            new = now.descriptors - before.descriptors
            unsafe = new or now.signals != before.signals or _has_threads()
            if unsafe or imports.of_the_user(there):
                raise Unfit(package)


def _package_of(name: str) -> str:
    return name.partition(".")[0]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """What modules warn of when they are imported, the first tasks have shown already."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


@contextlib.contextmanager
def _without_arrow_threads() -> Iterator[None]:
    """Have Arrow's allocator, which pandas loads, start no thread: it reads this when loaded."""
    if _ARROW_CONFIG in os.environ:  # the user's own wish
        yield
        return
    os.environ[_ARROW_CONFIG] = "background_thread:false"
    try:
        yield
    finally:
        del os.environ[_ARROW_CONFIG]


def _has_threads() -> bool:
    """Whether there are threads that a fork does not end: OpenBLAS ends its own before each."""
    if len(os.listdir("/proc/self/task")) > 1:
        _fork_once()
    return len(os.listdir("/proc/self/task")) > 1


def _traits() -> _Traits:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this very listing
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith("/") or target.startswith("/dev/"):
                found.add(target)
    return _Traits(frozenset(found.difference(_HARMLESS)), proc.signal_masks())


def settle() -> None:
    """Make what has been imported cheap and safe to fork.

    The throw-away fork makes OpenBLAS end its threads (it does so in a handler before each fork).
    Frozen objects are not touched by a child's garbage collection, so their pages stay shared.
    """
    _fork_once()
    gc.collect()
    gc.freeze()


def _fork_once() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
