"""What a lost supervisor would have removed, before the future of its task resolves."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from pynisher_exec.task import private_tmp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pynisher_exec.caller.account import Ending
    from pynisher_exec.caller.item import Item

    Lost = tuple[Item, Ending]

__all__ = ["Leftovers"]


class Leftovers:
    """Removes directories in threads: that may take long, and the monitor has others to serve."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._done: SimpleQueue[Lost] = SimpleQueue()

    def remove(self, item: Item, ending: Ending) -> None:
        """Remove the temporary directory of a task whose tree has gone; then ring."""
        arguments = item, ending
        try:
            threading.Thread(target=self._remove, args=arguments, daemon=True).start()
        except RuntimeError:  # no thread can be started
            self._remove(*arguments)

    def _remove(self, item: Item, ending: Ending) -> None:
        gone = False
        try:
            gone = private_tmp.remove(item.private_tmp)
        finally:  # whatever it raises, the future is to be resolved
            told = ending.told if gone else {**ending.told, "left": item.private_tmp}
            self._done.put((item, ending._replace(told=told)))
            self._ring()

    def removed(self) -> Iterator[Lost]:
        """Tasks that can be concluded now."""
        while not self._done.empty():  # only the monitor takes from it
            yield self._done.get()
