"""A real Dask cluster on this machine: scheduler and workers with nannies, ended with the test."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from conftest import pids_with, wait_until
from distributed import Client

from pynisher_exec import shutdown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Cluster", "cluster", "nothing_left_over"]

PATIENCE = 60
MARK = "PYNISHER_EXEC_TEST_CLUSTER"
MEMORY = "1GiB"


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    """In place of conftest's, where imported: a Dask client keeps threads and descriptors for ever.

    Each cluster looks, when it is closed, whether a process is left of all that came from it.
    """
    yield
    shutdown()


class Cluster:
    """Its processes, by what they are; `address` is the scheduler's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = secrets.token_hex(16)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start("scheduler", "--port", "0", "--host", "127.0.0.1")
        self.address = self._address()

    def _start(
        self, *what: str, python: str = sys.executable, **env: str
    ) -> subprocess.Popen[bytes]:
        command = [python, "-m", "distributed.cli.dask_" + what[0], *what[1:]]
        with (self.folder / f"log-{len(self.processes)}").open("wb") as log:
            process = subprocess.Popen(
                [*command, *(["--no-dashboard"] if what[0] == "scheduler" else [])],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, MARK: self.mark, **env},
            )
        self.processes.append(process)
        return process

    def _address(self) -> str:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for word in (self.folder / "log-0").read_text().split():
                if word.startswith("tcp://127.0.0.1:"):
                    return word
            time.sleep(0.05)
        raise AssertionError((self.folder / "log-0").read_text())

    def worker(
        self, name: str, *options: str, threads: int = 2, python: str = sys.executable, **env: str
    ) -> subprocess.Popen[bytes]:
        """Start one more, of that Python and with that in its environment."""
        return self._start(
            "worker",
            self.address,
            *("--name", name, "--nthreads", str(threads), "--memory-limit", MEMORY),
            *("--local-directory", str(self.folder), "--no-dashboard", *options),
            python=python,
            **env,
        )

    def restart_scheduler(self) -> None:
        """Kill it, and start another one where it was; its workers come by themselves."""
        self.scheduler.kill()
        self.scheduler.wait(PATIENCE)
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start("scheduler", "--port", port, "--host", "127.0.0.1")

    def below(self) -> list[psutil.Process]:
        """All processes of the cluster, and what hangs below them."""
        found = []
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                own = psutil.Process(process.pid)
                found += [own, *own.children(recursive=True)]
        return found

    def helpers(self) -> list[psutil.Process]:
        """Processes of ours on it: templates, supervisors and tasks."""
        found = []
        for process in self.below():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith("limit-"):
                    found.append(process)
        return found

    def tasks(self) -> list[psutil.Process]:
        """Those that run, and for some seconds after the last one those that wait for a call."""
        found = []
        for process in self.helpers():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "limit-task":
                    found.append(process)
        return found

    def close(self) -> None:
        """Kill whatever there is."""
        there = self.below()
        for process in there:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        for started in self.processes:
            started.wait(PATIENCE)
        # All that they have started, whoever its parent is by now.
        wait_until(lambda: not pids_with(MARK, self.mark))


@contextlib.contextmanager
def cluster(folder: Path, workers: int = 2, *options: str) -> Iterator[tuple[Cluster, Any]]:
    """One with workers of two threads each, and a client of it."""
    made = Cluster(folder)
    try:
        for number in range(workers):
            made.worker(f"w{number}", *options)
        with Client(made.address, timeout=PATIENCE) as client:  # type: ignore[no-untyped-call]
            if workers:
                client.wait_for_workers(workers, timeout=PATIENCE)
            yield made, client
    finally:
        made.close()
