"""A scheduler as a process of its own, workers beside it and a client, for as long as a block."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Cluster", "cluster", "crowd"]

PATIENCE = 60


class Cluster(NamedTuple):
    """Pids of the scheduler and of the process with the workers, and a `distributed.Client`."""

    scheduler: int
    workers: int
    client: Any


def cluster(threads: int) -> Any:
    """With one worker, as on a node."""
    options = ("--no-nanny", "--no-dashboard", "--memory-limit", "2GiB")
    return _running(1, "distributed.cli.dask_worker", "--nthreads", str(threads), *options)


def crowd(workers: int) -> Any:
    """With many workers of one thread, all in one process: it is the scheduler that is measured."""
    return _running(workers, "benchmarks.scale.crowd", "--workers", str(workers))


@contextmanager
def _running(workers: int, *program: str) -> Iterator[Cluster]:
    from distributed import Client  # noqa: PLC0415 - only here

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        file = str(Path(folder) / "scheduler.json")  # tells the others where it listens
        where = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file)
        scheduler = _start(stack, "distributed.cli.dask_scheduler", *where)
        named = ("--scheduler-file", file, "--local-directory", folder)
        process = _start(stack, *program, *named)
        client: Any = stack.enter_context(Client(scheduler_file=file, timeout=PATIENCE))  # type: ignore[no-untyped-call]
        client.wait_for_workers(workers, timeout=PATIENCE)
        yield Cluster(scheduler, process, client)


def _start(stack: ExitStack, module: str, *arguments: str) -> int:
    """Start a module; it ends with the stack, and what it has started by itself after it."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(process.wait, PATIENCE)
    stack.callback(process.kill)
    return process.pid
