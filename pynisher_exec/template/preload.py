"""Imports made once, ahead of the forks, so that no task pays for them.

Only imports: an imported library survives a fork, one that has been used often hangs in the fork
(OpenMP's and others' thread pools do not travel). Nothing else of the user's runs here.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from itertools import groupby
from typing import TYPE_CHECKING

from pynisher_exec.task import imports
from pynisher_exec.template.traits import Traits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Unfit", "import_ahead", "import_if_fit", "settle"]

_ARROW_CONFIG = "JE_ARROW_MALLOC_CONF"


class Unfit(Exception):  # noqa: N818  (it is what the module is)
    """A module, given by name, after whose import this process should not be forked any more."""


def import_ahead(names: Sequence[str]) -> None:
    """Import modules by name; raises what their import raises."""
    for name in names:
        importlib.import_module(name)


def import_if_fit(names: Sequence[str]) -> None:
    """Import modules as far as they can be, looking after each package whether forks stay safe.

    Raises Unfit when one has left a thread, or something else that forks would share (`traits`), or
    has imported a module of the user's own. What cannot be imported by itself is left to the tasks.
    """
    with _quietly(), _without_arrow_threads(), _frozen():
        before = Traits.now()
        for package, group in groupby(names, _package_of):
            there = imports.count()
            for name in group:
                with contextlib.suppress(Exception):  # the task that needs it will say so
                    importlib.import_module(name)
            if Traits.now() != before or _has_threads() or imports.of_the_user(there):
                raise Unfit(package)
            gc.freeze()


@contextlib.contextmanager
def _frozen() -> Iterator[None]:
    """Have the collector list only what comes from now on, or since it was frozen again.

    To look through all objects after each package took 6 s with scikit-learn's two hundred of them.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _package_of(name: str) -> str:
    return name.partition(".")[0]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """What modules say when they are imported, the first tasks have shown already.

    It is flushed to where it leads nowhere, as standard output does here: a task's would have it.
    """
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # a module may have put anything there
                stream.flush()
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
