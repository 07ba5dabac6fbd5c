"""Pages to which every task writes: copied at the fork, and not by a fault each.

That is a quarter of what a small task takes. Which pages they are, one fork finds out: it lives
through a task's life, and then has them for itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING

from pynisher_exec.kernel import pages

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["pin"]

PATIENCE = 1000
"""Milliseconds that such a life may take; it takes some ten."""

MOST = 4096
"""Pages; each fork copies them all, so that at some number it is worse than faults."""


def pin(live: Callable[[], object]) -> pages.Pin | None:
    """Pin what a fork has written to after `live`, where that can be.

    Of what this process writes to after a fork, most is among that. To pin the rest as well, as far
    as it can be told from what was written to once, costs each fork more than it saves.
    """
    try:
        made = pages.Pin()
    except OSError:
        return None
    try:
        hot = _written_to_by(live)
        if 0 < len(hot) <= MOST:
            made.hold(hot)
            return made
    except (OSError, MemoryError):  # an old kernel, too much to look at, no process to be had
        pass
    made.close()
    return None


def _written_to_by(live: Callable[[], object]) -> list[int]:
    """Empty where the fork does not come to the end of that life."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with open(reading, "rb", buffering=0) as lived:
        try:
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                _be(live, writing)
        finally:
            os.close(writing)
        try:
            poll = select.poll()
            poll.register(lived, select.POLLIN)
            return pages.copied_by(pid) if poll.poll(PATIENCE) and lived.read(1) else []
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _be(live: Callable[[], object], done: int) -> None:
    """In the fork, until it is killed, or the supervisor has been."""
    try:
        with contextlib.suppress(BaseException):  # what fails here is told by its silence
            live()
            os.write(done, b".")
            poll = select.poll()
            poll.register(done, 0)
            poll.poll()  # its end: nobody reads there any more
    finally:  # it must not go on as a second supervisor
        os._exit(1)
