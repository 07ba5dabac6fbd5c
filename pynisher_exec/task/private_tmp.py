"""A directory for temporary files of one task's own, gone when its future resolves.

The task makes it, whoever ends the task's tree removes it: the supervisor, or the caller where the
supervisor was lost. Every template imports this module, so what costs time is imported on use.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

__all__ = ["new_path", "remove", "use"]

_VARIABLES = ("TMPDIR", "TEMP", "TMP")
"""Where programs look for it, in Python's order (tempfile.gettempdir)."""


def new_path() -> str:
    """A path for it below the temporary directory of this process, the caller."""
    import tempfile  # noqa: PLC0415  (see above)

    return os.path.join(tempfile.gettempdir(), f"pynisher_exec-{os.urandom(8).hex()}")


def use(path: str) -> None:
    """Make it, and have this process and all below put their temporary files there. OSError."""
    with contextlib.suppress(FileExistsError):  # the child before this one died while it loaded
        os.mkdir(path, 0o700)
    for name in _VARIABLES:
        os.environ[name] = path
    module: Any = sys.modules.get("tempfile")
    if module is not None:
        module.tempdir = None  # it asks once, and keeps the answer


def remove(path: str) -> bool:
    """Remove it with all below; whether it is gone. No process that could use it may be left."""
    import shutil  # noqa: PLC0415  (see above)

    if os.path.islink(path) or not os.path.isdir(path):  # the task has put something in its place
        with contextlib.suppress(OSError):
            os.unlink(path)
    shutil.rmtree(path, ignore_errors=True)
    if os.path.isdir(path):
        _open_up(path)
        shutil.rmtree(path, ignore_errors=True)
    return not os.path.lexists(path)


def _open_up(path: str) -> None:
    """Give back the rights that the task has taken from itself."""
    with contextlib.suppress(OSError):
        os.chmod(path, 0o700)
    for folder, names, _ in os.walk(path):  # which enters a folder after this has opened it
        for each in [os.path.join(folder, name) for name in names]:
            if not os.path.islink(each):
                with contextlib.suppress(OSError):
                    os.chmod(each, 0o700)
