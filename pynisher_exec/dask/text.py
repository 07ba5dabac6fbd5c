"""What a worker gets before it is known what it has: text, and values of Python's own types.

A pickle that names a module of ours is loaded by Dask itself, as it arrives: where we are missing
that ends the worker, with all that runs on it. Bytecode of another Python's may crash it.
"""

from __future__ import annotations

__all__ = ["CALL", "FORGET", "LOOK"]

_LOOK = """
import platform
why = ""
try:
    import pynisher_exec.dask
except Exception as problem:  # whatever keeps it from being loaded: it is told
    why = f"{type(problem).__name__}: {problem}"
python = ".".join(platform.python_version_tuple()[:2])
found = python, None if why else pynisher_exec.__version__, why
"""

_CALL = """
try:
    from pynisher_exec.dask.worker import run
except Exception as problem:  # as above
    from distributed import get_worker
    worker = get_worker()
    raise ImportError(
        f"worker {worker.name} at {worker.address} has no pynisher_exec "
        f"({type(problem).__name__}: {problem}), the client {client}"
    ) from problem
found = run(sent, values)
"""

_FORGET = """
from distributed import Scheduler
for each in list(Scheduler._instances):
    each._broker.truncate(topic)
"""

LOOK = f"exec({_LOOK!r}) or found"
"""For `eval`: Python's version, ours, and if there is none why."""

CALL = f"exec({_CALL!r}) or globals().pop('found')"
"""For `eval`, among whose globals `sent`, `values` and `client` are: the outcome of a call.

It does not stay there: the globals are the task's argument, which the worker keeps, and a value
that these have as well could never be spilled to disk.
"""

FORGET = f"exec({_FORGET!r})"
"""For `eval` on the scheduler, among whose globals `topic` is: its events, which have been heard.

A scheduler keeps the last thousand of each topic, as large as they are, for as long as it lives.
"""
