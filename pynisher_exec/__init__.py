"""An Executor whose every task runs in a fresh process of its own, under limits."""

from __future__ import annotations
from pynisher_exec.caller.executor import LimitedProcessExecutor
def shutdown():pass
