"""Several items in one of Dask's tasks, each under limits of its own: README, "At scale"."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import psutil
import pytest
from conftest import wait_until
from dask_cluster import Cluster, cluster, nothing_left_over  # noqa: F401  (a fixture)

from pynisher_exec import Report, limited
from pynisher_exec.dask import LimitedDaskExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 60

# Workers cannot import this module: its functions and classes travel by value, as __main__'s do.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Any]]:
    """One worker of two threads, and a client."""
    with cluster(tmp_path_factory.mktemp("cluster"), workers=1) as made:
        yield made


def work(item: str) -> str:
    """Go wrong in the way that is asked for."""
    if item == "leaks":
        return "x" * 900_000_000
    if item == "hangs":
        time.sleep(PATIENCE)
    if item.startswith("/"):
        Path(item).symlink_to(str(os.getpid()))  # is there with its content, or not at all
        time.sleep(PATIENCE)
    if item == "raises":
        raise ValueError(item)
    return item


def chunks_under(**limits: Any) -> Callable[[list[str]], list[Report]]:
    """Give a function that runs each item of a chunk under limits, one after the other.

    A closure: what stands in a module Dask would send by its name.
    """
    safe = limited(work, **limits)
    return lambda chunk: [safe.report(item) for item in chunk]


def test_each_item_has_limits_of_its_own(running: tuple[Cluster, Any]) -> None:
    """One that meets a limit costs the others of its chunk nothing, and has its own report."""
    chunks = [["fine", "leaks", "well"], ["hangs", "raises", "good"]]
    _, client = running
    found = client.gather(client.map(chunks_under(memory="200MB", wall_time=1), chunks))
    assert [[report.status.value for report in part] for part in found] == [
        ["ok", "memory", "ok"],
        ["wall_time", "exception", "ok"],
    ]
    assert [report.result for part in found for report in part if report.status == "ok"] == [
        "fine",
        "well",
        "good",
    ]
    assert len({report.pid for part in found for report in part}) == 6


def test_a_chunk_that_is_a_limited_task_ends_when_it_is_cancelled(
    running: tuple[Cluster, Any], tmp_path: Path
) -> None:
    """With the item that runs: of a plain function Dask waits for the end."""
    _, client = running
    there = tmp_path / "pid"
    with LimitedDaskExecutor(client, memory=None) as executor:
        future = executor.submit(chunks_under(wall_time=PATIENCE), ["fine", str(there), "well"])
        wait_until(there.is_symlink, PATIENCE)
        pid = int(str(there.readlink()))
        assert psutil.pid_exists(pid)
        wait_until(future.cancel)
        wait_until(future.done)
        wait_until(lambda: not psutil.pid_exists(pid))
