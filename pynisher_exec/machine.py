"""What the machine has, as far as this process may count on it."""

from __future__ import annotations

from pathlib import Path

import psutil

__all__ = ["memory"]


def memory() -> int:
    """Bytes of memory that this process may count on: the machine's, or its cgroup's if less."""
    total: int = psutil.virtual_memory().total
    return min([total, *_cgroup_limits()])


def _cgroup_limits() -> list[int]:
    """The memory limits of the cgroups above this process, v1 and v2, where they can be read."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    limits: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            limits += _limits_above(Path("/sys/fs/cgroup/memory"), path, "memory.limit_in_bytes")
        elif controllers == "":
            limits += _limits_above(Path("/sys/fs/cgroup"), path, "memory.max")
    return limits


def _limits_above(root: Path, path: str, name: str) -> list[int]:
    """A limit binds the whole subtree below it, so each ancestor's counts."""
    found: list[int] = []
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            break
        try:
            found.append(int((folder / name).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return found
