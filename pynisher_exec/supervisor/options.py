"""How the tasks of a slot are started; what of it travels is plain values."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SlotOptions"]


@dataclass(frozen=True)
class SlotOptions:
    """`single`: the slot serves one task and ends. `kill_timeout` is in seconds.

    `max_tasks`: how many tasks one process may serve, one after the other; None: any number.
    `slim`: its first call is not expected soon, so its child does nothing ahead that takes memory.
    """

    no_new_privs: bool = True
    kill_timeout: float = 10.0
    single: bool = False
    max_tasks: int | None = 1
    slim: bool = False
