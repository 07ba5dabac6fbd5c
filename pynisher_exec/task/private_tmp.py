"""A directory for temporary files of one task's own, gone when its future resolves.

The task makes it; whoever ends the task's tree removes it when no process of it is left: the
supervisor, or the caller where the supervisor was lost. Every template imports this module, so
what costs time is imported on use.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import Any

__all__ = ["forget_answer", "new_path", "remove", "use"]

_VARIABLES = ("TMPDIR", "TEMP", "TMP")
"""Where programs look for it, in Python's order (tempfile.gettempdir)."""

_DEFAULT = "/tmp"  # noqa: S108  (hier(7))
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def new_path() -> str:
    """A path for it below the temporary directory of this process, the caller.

    Where none can be found (tempfile tries them by making a file, and there may be no descriptor
    for that), the task will say what is wrong with the first one that was named.
    """
    import tempfile  # noqa: PLC0415  (see above)

    try:
        place = tempfile.gettempdir()
    except FileNotFoundError:
        named = (os.environ.get(name) for name in _VARIABLES)
        place = next((each for each in named if each), _DEFAULT)
    return os.path.join(os.path.abspath(place), f"pynisher_exec-{os.urandom(8).hex()}")


def use(path: str) -> None:
    """Make it, and have this process and all below put their temporary files there. OSError."""
    with contextlib.suppress(FileExistsError):  # the child before this one died while it loaded
        os.mkdir(path, 0o700)
    for name in _VARIABLES:
        os.environ[name] = path
    forget_answer()


def forget_answer() -> None:
    """Have tempfile look for its directory again: it looks once, and keeps the answer."""
    module: Any = sys.modules.get("tempfile")
    if module is not None:
        module.tempdir = None


def remove(path: str) -> bool:
    """Remove it with all below; whether it is gone. No process of the task may be left.

    No link is followed, and what is mounted in it is left as it is. The folders in it are moved up
    one after the other, so that depth costs neither descriptors nor recursion.
    """
    place, name = os.path.split(path)
    with contextlib.suppress(OSError):
        parent = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=parent)  # a link or a file that was put in its place
            _remove_folder(parent, name)
        finally:
            os.close(parent)
    return not os.path.lexists(path)


def _remove_folder(parent: int, name: str) -> None:
    """OSError where it is none, or not to be removed."""
    mount = _mount_of(parent)
    if not _claim(parent, name, mount):
        return
    top = os.open(name, _FOLDER, dir_fd=parent)
    try:
        _empty(top, mount)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _empty(top: int, mount: str) -> None:
    """Remove what is in a folder, as far as that is allowed."""
    left = _folders_in(top, mount)
    while left:
        name = left.pop()
        with contextlib.suppress(OSError):
            folder = os.open(name, _FOLDER, dir_fd=top)
            try:
                left += _moved_up(folder, top, mount)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=top)


def _moved_up(folder: int, top: int, mount: str) -> list[str]:
    """Move the folders in a folder to the top, and give their names there."""
    moved = []
    for name in _folders_in(folder, mount):
        new = f"pynisher_exec-{os.urandom(8).hex()}"
        with contextlib.suppress(OSError):
            os.rename(name, new, src_dir_fd=folder, dst_dir_fd=top)
            moved.append(new)
    return moved


def _folders_in(folder: int, mount: str) -> list[str]:
    """The names of the folders in a folder that can be emptied; all else in it is unlinked."""
    names = []
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=folder)
            elif _claim(folder, name, mount):
                names.append(name)
    return names


def _claim(parent: int, name: str, mount: str) -> bool:
    """Take the rights to a folder that the task may have given up; False for a mounted one."""
    folder = os.open(name, os.O_PATH | _FOLDER, dir_fd=parent)
    try:
        if _mount_of(folder) != mount:
            return False
        with contextlib.suppress(OSError):  # another user's
            os.chmod(f"/proc/self/fd/{folder}", 0o700)  # by the descriptor: no name to be swapped
        return True
    finally:
        os.close(folder)


def _mount_of(folder: int) -> str:
    """What a folder is seen through (proc_pid_fdinfo(5)): a bind mount has a number of its own."""
    with open(f"/proc/self/fdinfo/{folder}", encoding="ascii") as file:
        return next(line for line in file if line.startswith("mnt_id:"))
