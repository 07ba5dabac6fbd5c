"""The executor over Dask clusters that change, and over workers that are not like the client."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from conftest import name_of, wait_until
from distributed import Client, LocalCluster

from pynisher_exec import shutdown
from pynisher_exec.dask import LimitedDaskExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Mark

PATIENCE = 60

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no such module


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    """In place of conftest's, which a Dask client's threads would not pass; see test_dask."""
    yield
    shutdown()


# Clusters that grow and shrink -------------------------------------------------------------------


@pytest.fixture
def elastic(marked: Mark) -> Iterator[tuple[Any, Any]]:
    """A cluster without workers and its client; no process of ours is left when it is closed."""
    local: Any = LocalCluster
    options = {"threads_per_worker": 2, "memory_limit": "1GiB", "dashboard_address": "127.0.0.1:0"}
    with local(n_workers=0, host="127.0.0.1", **options) as made, Client(made) as client:  # type: ignore[no-untyped-call]
        yield made, client
    wait_until(lambda: not ours(marked))


def ours(marked: Mark) -> list[int]:
    """Helpers and tasks that come from what was started since the mark."""
    return [pid for pid in marked.scan() if name_of(pid).startswith("limit-")]


def workers_of(client: Any) -> set[str]:
    """Their names."""
    return {str(each["name"]) for each in client.scheduler_info()["workers"].values()}


def wait_for(path: str) -> int:
    """Note that a run begins, in a file; wait for another one; tell the run by its pid."""
    with Path(path).open("a") as notes:
        notes.write(f"{os.getpid()}\n")
    while not Path(path).with_name("go").exists():
        time.sleep(0.01)
    return os.getpid()


def test_tasks_of_a_retired_worker_run_again(elastic: tuple[Any, Any], tmp_path: Path) -> None:
    """Elsewhere, when nothing of their first runs is there any more; all others run once."""
    cluster, client = elastic
    with LimitedDaskExecutor(client, wall_time=PATIENCE) as executor:
        cluster.adapt(minimum=2, maximum=2, interval="100ms")
        client.wait_for_workers(2, timeout=PATIENCE)
        paths = [tmp_path / str(number) for number in range(4)]
        futures = [executor.submit(wait_for, str(path)) for path in paths]
        wait_until(lambda: all(path.exists() and path.read_text() for path in paths))
        first = [int(path.read_text()) for path in paths]

        cluster.adapt(minimum=1, maximum=1, interval="100ms")
        wait_until(lambda: len(workers_of(client)) == 1)
        wait_until(lambda: sum(name_of(pid) == "limit-task" for pid in first) == 2)
        (tmp_path / "go").touch()

        (left,) = workers_of(client)
        for future, path in zip(futures, paths, strict=True):
            report: Any = future.wait_for_report()
            runs = [int(line) for line in path.read_text().split()]
            assert (report.status, report.worker) == ("ok", left)
            assert report.result == future.result() == runs[-1]
        assert sorted(len(path.read_text().split()) for path in paths) == [1, 1, 2, 2]


def test_workers_come_and_go_with_the_tasks(elastic: tuple[Any, Any], marked: Mark) -> None:
    """The executor is made where there is no worker yet, and used where there is none left."""
    cluster, client = elastic
    with LimitedDaskExecutor(client, wall_time=PATIENCE) as executor:
        assert executor.max_workers == 0
        cluster.adapt(minimum=0, maximum=2, interval="100ms", wait_count=1)
        for _ in range(2):
            reports = list(executor.reports(abs, range(-50, 0)))
            assert [report.status for report in reports] == ["ok"] * 50
            assert [report.result for report in reports] == list(range(50, 0, -1))
            wait_until(lambda: not workers_of(client), PATIENCE)
            wait_until(lambda: not ours(marked))


def test_values_that_nobody_holds_leave_the_cluster(elastic: tuple[Any, Any]) -> None:
    """The last one too: it would keep a worker, and its memory, for as long as the executor."""
    cluster, client = elastic
    cluster.scale(1)
    with LimitedDaskExecutor(client) as executor:
        for size in range(1, 6):
            assert executor.submit(bytes, size * 10_000).result(PATIENCE) == bytes(size * 10_000)
            wait_until(lambda: not client.futures)
