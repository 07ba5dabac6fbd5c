"""Many workers of one thread in one process: `--workers N --scheduler-file F --local-directory D`.

A cluster as its scheduler sees it, which knows workers by their connections only.
"""

from __future__ import annotations

import argparse
import asyncio

import dask
from distributed import Worker

AT_ONCE = 25
"""So many are started at once: a scheduler takes in no more connections at a time."""


async def main(options: argparse.Namespace) -> None:
    """Start them, and wait to be ended."""
    workers = [
        Worker(
            scheduler_file=options.scheduler_file,
            local_directory=options.local_directory,
            nthreads=1,
            memory_limit=0,
            dashboard=False,
        )
        for _ in range(options.workers)
    ]
    for first in range(0, len(workers), AT_ONCE):
        await asyncio.gather(*workers[first : first + AT_ONCE])
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--scheduler-file", required=True)
    parser.add_argument("--local-directory", required=True)
    # What each does for itself would take this machine's time from the scheduler.
    dask.config.set(
        {
            "distributed.worker.profile.enabled": False,
            "distributed.admin.system-monitor.interval": "10s",
        }
    )
    asyncio.run(main(parser.parse_args()))
