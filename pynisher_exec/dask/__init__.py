"""An executor over a Dask cluster: its workers run each task in a process of its own, under limits.

    from pynisher_exec.dask import LimitedDaskExecutor
    with LimitedDaskExecutor(client, memory="2GiB", wall_time=600) as executor:
        ...

What to run where, what travels how, retries after a lost worker, and dashboards are Dask's.
"""

from pynisher_exec.dask.executor import LimitedDaskExecutor
from pynisher_exec.dask.future import LimitedDaskFuture
from pynisher_exec.dask.worker import WorkerReport

__all__ = ["LimitedDaskExecutor", "LimitedDaskFuture", "WorkerReport"]
