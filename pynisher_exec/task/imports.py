"""Which modules the loading of a call has imported, of those that nobody edits meanwhile."""

from __future__ import annotations

import os
import site
import sys
from itertools import islice
from typing import Any

__all__ = ["count", "installed_since", "of_the_user"]

MOST = 40_000
"""Characters that are told of them: a message has a bound, and other things to say."""


def _folders() -> tuple[str, ...]:
    """Where the interpreter's own and installed modules lie."""
    found = [os.path.dirname(os.__file__)]
    with_site = getattr(site, "getsitepackages", list)  # an old virtualenv's `site` has none
    found += with_site()
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    return tuple(os.path.realpath(folder) + os.sep for folder in found)


_FOLDERS = _folders()


def count() -> int:
    """How many modules there are: what is imported from now on comes behind them."""
    return len(sys.modules)


def installed_since(before: int) -> str:
    """Names of installed modules imported since, a line each, in the order of their import.

    Where they are too many, submodules of submodules are left out, then submodules.
    """
    if len(sys.modules) == before:
        return ""
    known: dict[str, bool] = {}
    fresh = filter(str.isascii, _since(before))  # of others a character is many bytes
    names = [name for name in fresh if _is_installed(name, known)]
    for dots in (9, 2, 1, 0):
        text = "\n".join(name for name in names if name.count(".") <= dots)
        if len(text) <= MOST:
            return text
    return ""


def of_the_user(before: int) -> bool:
    """Whether any module imported since lies outside those folders, or is a link to what does."""
    for name in _since(before):
        path = _path_of(name)
        if path and not os.path.realpath(path).startswith(_FOLDERS):
            return True
    return False


def _since(before: int) -> list[str]:
    """Names of modules imported since, in that order.

    From the end: a list of all would touch each name, and in a fresh fork the page that holds it
    has to be copied then, which is 800 pages where a template has imported scikit-learn.
    """
    fresh = list(islice(reversed(sys.modules), max(0, len(sys.modules) - before)))
    fresh.reverse()
    return fresh


def _path_of(name: str) -> str:
    """The file of a module; empty where it is built into the interpreter, or made by a program."""
    origin: Any = getattr(getattr(sys.modules.get(name), "__spec__", None), "origin", None)
    return origin if isinstance(origin, str) and os.sep in origin else ""


def _is_installed(name: str, known: dict[str, bool]) -> bool:
    """Whether a module's file lies in a folder, and no link to one, that is not the user's own.

    `known` folders are not looked at again: a path is resolved link by link.
    """
    path = _path_of(name)
    if not path:
        return False
    folder = os.path.dirname(path)
    if folder not in known:
        known[folder] = (os.path.realpath(folder) + os.sep).startswith(_FOLDERS)
    return known[folder]
