"""An Executor whose every task runs in a fresh process of its own, under limits.

    from pynisher_exec import LimitedProcessExecutor, limited

What this module exports is the public interface; everything below is machinery. Names are loaded
on first use: a template and its tasks import the machinery without the caller's side.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if sys.platform != "linux":
    msg = f"pynisher_exec needs Linux: its limits are that kernel's, and this is {sys.platform}"
    raise ImportError(msg)

if TYPE_CHECKING:
    from pynisher_exec.caller.executor import LimitedProcessExecutor
    from pynisher_exec.caller.future import LimitedFuture
    from pynisher_exec.caller.shared import Shared
    from pynisher_exec.caller.support import Support, supports
    from pynisher_exec.decorator import Limited, limited, shutdown
    from pynisher_exec.errors import (
        AnythingException,
        CpuTimeoutException,
        MemorylimitException,
        PynisherError,
        RemoteTraceback,
        SignalException,
        SubprocessException,
        TaskError,
        TimeoutException,
        UnpicklableError,
    )
    from pynisher_exec.legacy import EnforcedFunction, enforce_limits
    from pynisher_exec.report import Enforced, Report, Status
    from pynisher_exec.searches.record import RecordError

_HOMES = {
    "caller.executor": ("LimitedProcessExecutor",),
    "caller.future": ("LimitedFuture",),
    "caller.shared": ("Shared",),
    "caller.support": ("Support", "supports"),
    "errors": (
        "AnythingException",
        "CpuTimeoutException",
        "MemorylimitException",
        "PynisherError",
        "RemoteTraceback",
        "SignalException",
        "SubprocessException",
        "TaskError",
        "TimeoutException",
        "UnpicklableError",
    ),
    "legacy": ("EnforcedFunction", "enforce_limits"),
    "decorator": ("Limited", "limited", "shutdown"),
    "report": ("Enforced", "Report", "Status"),
    "searches.record": ("RecordError",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "AnythingException",
    "CpuTimeoutException",
    "Enforced",
    "EnforcedFunction",
    "Limited",
    "LimitedFuture",
    "LimitedProcessExecutor",
    "MemorylimitException",
    "PynisherError",
    "RecordError",
    "RemoteTraceback",
    "Report",
    "Shared",
    "SignalException",
    "Status",
    "SubprocessException",
    "Support",
    "TaskError",
    "TimeoutException",
    "UnpicklableError",
    "enforce_limits",
    "limited",
    "shutdown",
    "supports",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOME_OF:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module  # noqa: PLC0415

    found = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
