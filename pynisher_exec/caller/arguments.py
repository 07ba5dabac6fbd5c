"""What a user gives to an executor, checked: each function turns one argument into what it means.

ValueError or TypeError names the argument, the value, and what is accepted.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pynisher_exec.caller.item import CAPTURE_BOUND
from pynisher_exec.caller.loky_beside import LokyContext, cpu_count
from pynisher_exec.limits import MINIMUM_MEMORY, duration, is_bool, size, size_text

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    from pynisher_exec.limits import Limits

__all__ = [
    "capture_bound",
    "check_buffersize",
    "check_initializer",
    "check_reuse",
    "init_arguments",
    "inner_threads",
    "memory_bound",
    "module_names",
    "refusal",
    "take_context",
    "workers",
]

_CONTEXTS = ("loky", "spawn", "forkserver", "fork")


def capture_bound(value: object) -> int:
    """Turn `capture_output` into bytes a stream: 0 for False, 1 MiB for True, or a bound given."""
    if value is None or value is False:
        return 0
    if value is True:
        return CAPTURE_BOUND
    return size("capture_output", value)


def check_reuse(max_tasks: object, context: object, *, strict: bool) -> None:
    """Refuse a `max_tasks_per_child` that is no count, and what does not go with reuse."""
    given = f"max_tasks_per_child={max_tasks!r}"
    if max_tasks is not None and (is_bool(max_tasks) or not isinstance(max_tasks, int)):
        msg = f"{given}: an int, 1 or more, or None is accepted"
        raise TypeError(msg)
    if max_tasks is not None and max_tasks < 1:
        msg = f"{given}: 1 or more, or None is accepted"
        raise ValueError(msg)
    if max_tasks != 1 and context is not None:
        msg = f"{given}: with a context each process serves one task"
        raise ValueError(msg)
    if max_tasks != 1 and strict:
        msg = f"{given} and strict=True: a task can lift the rlimits of a process that is reused"
        raise ValueError(msg)


def memory_bound(value: object) -> int | None:
    """Turn `max_memory` into bytes."""
    if value is None:
        return None
    bound = size("max_memory", value)
    if bound < MINIMUM_MEMORY:
        msg = f"max_memory={value!r} has room for no task: the least limit is 1 MiB"
        raise ValueError(msg)
    return bound


def refusal(limits: Limits, max_memory: int | None) -> str:
    """Say why tasks of these limits could never be admitted; empty where they can."""
    if max_memory is None:
        return ""
    room = size_text(max_memory)
    if limits.memory is None:
        return f"max_memory={room} admits no task without a memory limit: it may take all"
    if limits.memory > max_memory:
        need = size_text(limits.memory)
        return f"a task with memory={need} can never fit into max_memory={room}"
    return ""


def take_context(value: object) -> BaseContext | None:
    """Turn `context` into a context object. ValueError or TypeError names what is accepted."""
    if value is None:
        return None
    if isinstance(value, str):
        if value not in _CONTEXTS:
            known = ", ".join(_CONTEXTS)
            msg = f"context={value!r} is unknown: {known} or a context object is accepted"
            raise ValueError(msg)
        context: BaseContext
        context = LokyContext() if value == "loky" else multiprocessing.get_context(value)
        return context
    if not (hasattr(value, "Process") and hasattr(value, "get_context")):
        msg = (
            f"context={value!r} is no context: {', '.join(_CONTEXTS)} or such an object is accepted"
        )
        raise TypeError(msg)
    found: BaseContext = value.get_context()
    return found


def kill_timeout(value: object) -> float:
    """Check how long a process may take to die, in seconds."""
    seconds = duration("kill_timeout", value)
    if not seconds:
        msg = f"kill_timeout={value!r} must be more than 0: no process ends at once"
        raise ValueError(msg)
    return seconds


def workers(value: object) -> int:
    """Turn `max_workers` into a number of slots; None: one for each core that there is."""
    if value is None:
        count: int = cpu_count()
        return count
    return _counted("max_workers", value)


def inner_threads(value: object, slots: int) -> int:
    """Turn `inner_max_num_threads` into a number; None: a slot's share of the cores."""
    if value is None:
        return max(1, int(cpu_count()) // slots)
    return _counted("inner_max_num_threads", value)


def _counted(name: str, value: object) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        msg = f"{name}={value!r} must be a whole number, 1 or more"
        raise TypeError(msg)
    number = int(value.__index__())
    if number < 1:
        msg = f"{name} must be greater than 0: {name}={value!r}"
        raise ValueError(msg)
    return number


def check_buffersize(value: object) -> None:
    """Refuse a `buffersize` of `map` or `reports` that is none, as Python 3.14 does."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        msg = "buffersize must be an integer or None"
        raise TypeError(msg)
    if value < 1:
        msg = "buffersize must be None or > 0"
        raise ValueError(msg)


def init_arguments(value: object) -> tuple[Any, ...]:
    """Turn `initargs` into a tuple."""
    if not isinstance(value, Iterable):
        msg = f"initargs={value!r} must be a tuple of arguments"
        raise TypeError(msg)
    return tuple(value)


def check_initializer(value: object) -> None:
    """Refuse an `initializer` that cannot be called."""
    if value is not None and not callable(value):
        msg = f"initializer={value!r} is not callable"
        raise TypeError(msg)


def module_names(value: object) -> tuple[str, ...] | None:
    """Turn `preload` into names of modules; None: those that tasks were seen to import."""
    if value is None:
        return None
    found = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (None,)
    if not all(isinstance(name, str) for name in found):
        msg = f"preload={value!r} must be a sequence of module names"
        raise TypeError(msg)
    return found
