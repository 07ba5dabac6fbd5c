"""What we have of loky, imported so that joblib's copy of it, where there is one, goes on to work.

Both register a start method by the same name with multiprocessing, and the later one takes it from
the other: what joblib starts would then talk to the wrong resource tracker, and a traceback be
printed for each large array that its processes are lent.
"""

from __future__ import annotations

from multiprocessing import context

_by_name = vars(context)["_concrete_contexts"]
_before = dict(_by_name)

from loky import cpu_count  # noqa: E402  (see above)
from loky.backend.context import LokyContext  # noqa: E402
from loky.backend.fork_exec import fork_exec  # noqa: E402

_by_name.update(_before)

__all__ = ["LokyContext", "cpu_count", "fork_exec"]
