"""What tasks take of their worker's resources, which Dask counts and does not know the meaning of.

They are what a worker was started with (`dask worker --resources "MEMORY=16e9 GPU=2"`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pynisher_exec.limits import Limits, size_text

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Taken"]


class Taken:
    """What each task takes while it runs, of which `memory` counts bytes, if that is a name."""

    def __init__(self, resources: Mapping[str, float], memory: str | None, limit: Any) -> None:
        """`limit`: the memory limit, as it was given. ValueError where it is not known yet."""
        self.resources = dict(resources)
        for name, taken in self.resources.items():
            if not hasattr(taken, "__float__") or not 0 <= float(taken) < math.inf:
                msg = f"resources={{{name!r}: {taken!r}}} must be a number, 0 or more"
                raise ValueError(msg)
        self._memory = memory
        self._fits = not resources
        if memory is not None:
            size = Limits(memory=limit).memory
            if size is None or "%" in str(limit):
                msg = (
                    f"memory_resource={memory!r} needs a memory limit in bytes, "
                    "which tasks take of it"
                )
                raise ValueError(msg)
            self.resources[memory] = size
            self._fits = False

    def refusal(self, client: Any) -> str:
        """Why no worker would ever take such a task; looked up until one would, or there is none.

        Dask lets it wait, for a worker that has as much.
        """
        if self._fits:
            return ""
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        there = [each["resources"] for each in workers]
        lacks = [self._lacking(each) for each in there]
        self._fits = any(not lacking for lacking in lacks)
        if self._fits or not there:
            return ""
        for name in self.resources:
            if all(name in lacking for lacking in lacks):
                return self._told(name, max(each.get(name, 0) for each in there))
        return f"resources={self.resources!r}: no worker has as much of each ({_HINT})"

    def _lacking(self, there: Mapping[str, float]) -> list[str]:
        wanted = self.resources.items()  # Dask wants a worker that has it, even for 0 of it
        return [name for name, taken in wanted if name not in there or there[name] < taken]

    def _told(self, name: str, most: float) -> str:
        taken = self.resources[name]
        if name == self._memory:
            wish, has = f"memory limit of {size_text(taken)}", size_text(most)
        else:
            wish, has = f"resources={{{name!r}: {taken:g}}}", f"{most:g}"
        return f"{wish}: no worker has more than {has} of its resource {name} in all ({_HINT})"


_HINT = "dask worker --resources"
