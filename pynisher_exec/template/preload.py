"""Imports made once, ahead of the forks, so that no task pays for them.

Only imports: an imported library survives a fork, one that has been used often hangs in the fork
(OpenMP's and others' thread pools do not travel). Nothing else of the user's runs here.
"""

from __future__ import annotations

import gc
import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["import_ahead", "settle"]


def import_ahead(names: Sequence[str]) -> None:
    """Import modules by name; raises what their import raises."""
    for name in names:
        importlib.import_module(name)


def settle() -> None:
    """Make what has been imported cheap and safe to fork.

    The throw-away fork makes OpenBLAS end its threads (it does so in a handler before each fork).
    Frozen objects are not touched by a child's garbage collection, so their pages stay shared.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    gc.collect()
    gc.freeze()
