"""The executor over Dask clusters that change, and over workers that are not like the client."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from itertools import accumulate
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from conftest import name_of, wait_until
from dask_cluster import Cluster, cluster, nothing_left_over  # noqa: F401  (a fixture)
from distributed import Client, LocalCluster

import pynisher_exec
from pynisher_exec import PynisherError
from pynisher_exec.dask import LimitedDaskExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Mark

PATIENCE = 60

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no such module


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[tuple[Cluster, Any]]:
    """A cluster of this Python, and its client; workers are the test's to start."""
    with cluster(tmp_path, 0) as made:
        yield made


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
    made, client = elastic
    with LimitedDaskExecutor(client, wall_time=PATIENCE) as executor:
        made.adapt(minimum=2, maximum=2, interval="100ms")
        client.wait_for_workers(2, timeout=PATIENCE)
        paths = [tmp_path / str(number) for number in range(4)]
        futures = [executor.submit(wait_for, str(path)) for path in paths]
        wait_until(lambda: all(path.exists() and path.read_text() for path in paths))
        first = [int(path.read_text()) for path in paths]

        made.adapt(minimum=1, maximum=1, interval="100ms")
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
    made, client = elastic
    with LimitedDaskExecutor(client, wall_time=PATIENCE) as executor:
        assert executor.max_workers == 0
        made.adapt(minimum=0, maximum=2, interval="100ms", wait_count=1)
        for _ in range(2):
            reports = list(executor.reports(abs, range(-50, 0)))
            assert [report.status for report in reports] == ["ok"] * 50
            assert [report.result for report in reports] == list(range(50, 0, -1))
            wait_until(lambda: not workers_of(client), PATIENCE)
            wait_until(lambda: not ours(marked))


def test_values_that_nobody_holds_leave_the_cluster(elastic: tuple[Any, Any]) -> None:
    """The last one too: it would keep a worker, and its memory, for as long as the executor."""
    made, client = elastic
    made.scale(1)
    with LimitedDaskExecutor(client) as executor:
        for size in range(1, 6):
            assert executor.submit(bytes, size * 10_000).result(PATIENCE) == bytes(size * 10_000)
            wait_until(lambda: not client.futures)


def test_script_that_ends_with_its_executor_ends_in_silence(bare: tuple[Cluster, Any]) -> None:
    """Its client is not closed, and Dask's own word of the last tasks is still on its way."""
    made, client = bare
    made.worker("right")
    client.wait_for_workers(1, timeout=PATIENCE)
    script = dedent(f"""
        from distributed import Client
        from pynisher_exec.dask import LimitedDaskExecutor
        with LimitedDaskExecutor(Client({made.address!r})) as executor:
            print(*executor.map(abs, [-1, -2]))
    """)
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, timeout=PATIENCE, check=True
        )
        assert (done.stdout, done.stderr) == (b"1 2\n", b"")


@pytest.mark.parametrize("first", ["", "futures[0].result()"])
def test_script_that_leaves_its_executor_open_has_its_tasks_done(
    bare: tuple[Cluster, Any], first: str, tmp_path: Path
) -> None:
    """As with the local executor, and in silence."""
    made, client = bare
    made.worker("right")
    client.wait_for_workers(1, timeout=PATIENCE)
    script = dedent(f"""
        import time
        from pathlib import Path
        from distributed import Client
        from pynisher_exec.dask import LimitedDaskExecutor
        def work(number):
            time.sleep(0.2)
            Path({str(tmp_path)!r}, str(number)).touch()
        executor = LimitedDaskExecutor(Client({made.address!r}))
        futures = [executor.submit(work, number) for number in range(5)]
        {first}
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=PATIENCE, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdecimal()) == list(
        "01234"
    )


def test_script_that_is_interrupted_as_it_ends_cancels_its_tasks(
    bare: tuple[Cluster, Any], tmp_path: Path
) -> None:
    """Ctrl-C, while it waits for them."""
    made, client = bare
    made.worker("right")
    client.wait_for_workers(1, timeout=PATIENCE)
    script = dedent(f"""
        import time
        from pathlib import Path
        from distributed import Client
        from pynisher_exec.dask import LimitedDaskExecutor
        def work():
            Path({str(tmp_path)!r}, "begun").touch()
            time.sleep(3600)
        executor = LimitedDaskExecutor(Client({made.address!r}))
        futures = [executor.submit(work) for number in range(5)]
    """)
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) as running:
        wait_until((tmp_path / "begun").exists, PATIENCE)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=PATIENCE)
    wait_until(lambda: not made.tasks())


# Workers that are not like the client -----------------------------------------------------------

WITHOUT = """
import sys
sys.modules["pynisher_exec"] = None
"""
OTHER = """
import platform
platform.python_version_tuple = lambda: ("3", "99", "0")
"""
CASES = [
    (WITHOUT, rf"no pynisher_exec \(.*\), the client .*pynisher_exec {pynisher_exec.__version__}"),
    (OTHER, rf"Python 3\.99 and .*, the client Python 3\.{sys.version_info.minor} and "),
]


def start_odd(made: Cluster, folder: Path, first: str) -> None:
    """Start a worker that runs these lines before all else."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(first)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    made.worker("odd", PYTHONPATH=path)


@pytest.mark.parametrize(("first", "told"), CASES, ids=["without", "other"])
def test_odd_worker_is_told_where_the_executor_is_made(
    bare: tuple[Cluster, Any], tmp_path: Path, first: str, told: str
) -> None:
    """Naming the worker, and what both sides have."""
    made, client = bare
    made.worker("right")
    start_odd(made, tmp_path / "odd", first)
    client.wait_for_workers(2, timeout=PATIENCE)
    (odd,) = [
        at for at, each in client.scheduler_info()["workers"].items() if each["name"] == "odd"
    ]
    with pytest.raises(RuntimeError, match=f"worker {odd} has .*{told}"):
        LimitedDaskExecutor(client)


@pytest.mark.parametrize(("first", "told"), CASES, ids=["without", "other"])
def test_odd_worker_that_comes_later_is_told_by_its_tasks(
    bare: tuple[Cluster, Any], tmp_path: Path, first: str, told: str
) -> None:
    """As an adaptive cluster's may: before anything runs there, and the worker lives on."""
    made, client = bare
    with LimitedDaskExecutor(client) as executor:
        future = executor.submit(Path.touch, tmp_path / "has run")
        start_odd(made, tmp_path / "odd", first)
        error = future.exception(PATIENCE)
        assert isinstance(error, PynisherError)
        assert re.search(f"worker odd at tcp://.* has .*{told}", str(error))
        assert future.report is not None
        assert future.report.message == str(error)
        assert client.submit(abs, -1).result() == 1
    assert not (tmp_path / "has run").exists()


@pytest.mark.filterwarnings("ignore:Mismatched versions")
def test_worker_of_another_python_is_told(bare: tuple[Cluster, Any]) -> None:
    """Of a real one: bytecode that is sent to it would crash it."""
    made, client = bare
    python, version = another_python()
    made.worker("other", python=python)
    client.wait_for_workers(1, timeout=PATIENCE)
    here = f"3\\.{sys.version_info.minor}"
    with pytest.raises(RuntimeError, match=f"has Python {version} .* the client Python {here} "):
        LimitedDaskExecutor(client)
    assert client.submit(abs, -1).result() == 1


def another_python() -> tuple[str, str]:
    """One that can run a worker, and its version."""
    for minor in range(10, 20):
        python = shutil.which(f"python3.{minor}")
        if python and minor != sys.version_info.minor:
            look = [python, "-c", "import distributed"]
            if subprocess.run(look, capture_output=True, check=False).returncode == 0:
                return python, f"3.{minor}"
    pytest.skip("no other Python that has distributed is on the PATH")


def test_worker_that_is_lost_as_it_is_asked_is_no_error(bare: tuple[Cluster, Any]) -> None:
    """It has left the cluster, which is not asked again."""
    made, client = bare
    made.worker("right")
    lost = made.worker("lost", "--no-nanny")
    client.wait_for_workers(2, timeout=PATIENCE)
    lost.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        making = thread.submit(LimitedDaskExecutor, client)
        with pytest.raises(FutureTimeoutError):
            making.result(0.5)  # it waits for the answer
        lost.kill()
        with making.result(PATIENCE) as executor:
            assert executor.submit(abs, -1).result(PATIENCE) == 1


def test_asynchronous_client_is_told(bare: tuple[Cluster, Any]) -> None:
    """It would answer with coroutines."""
    made, _ = bare

    async def use() -> None:
        async with Client(made.address, asynchronous=True) as client:  # type: ignore[no-untyped-call]
            LimitedDaskExecutor(client)

    with pytest.raises(TypeError, match="the client is asynchronous"):
        asyncio.run(use())


# Workers with a resource that counts bytes -------------------------------------------------------

MB = 10**6


def wait_and_time(path: str) -> tuple[float, float]:
    """Wait for a file beside that; tell when it began and when it ended."""
    began = time.monotonic()
    wait_for(path)
    time.sleep(0.05)
    return began, time.monotonic()


def most_taken(reports: list[Any]) -> float:
    """The most that memory limits of tasks that ran at once added up to."""
    changes: list[tuple[float, float]] = []
    for report in reports:
        size = report.limits["memory"].value
        began, ended = report.result
        changes += [(began, size), (ended, -size)]
    return max(accumulate(change for _, change in sorted(changes)))


def test_no_more_tasks_run_at_once_than_fit(bare: tuple[Cluster, Any], tmp_path: Path) -> None:
    """Their memory limits add up to what their worker has of the resource, and never to more."""
    made, client = bare
    for name in ("w0", "w1"):
        made.worker(name, "--resources", f"MEMORY={300 * MB}", threads=4)
    client.wait_for_workers(2, timeout=PATIENCE)
    with LimitedDaskExecutor(client, memory=100 * MB, memory_resource="MEMORY") as executor:
        paths = [tmp_path / str(number) for number in range(6)]
        first = [executor.submit(wait_and_time, str(path)) for path in paths]
        wait_until(lambda: all(path.exists() for path in paths), PATIENCE)  # they have begun
        twice = executor.limit(memory=200 * MB)
        later = [
            each.submit(wait_and_time, str(tmp_path / f"later-{number}"))
            for number in range(6)
            for each in (executor, twice)
        ]
        (tmp_path / "go").touch()
        reports: list[Any] = [future.wait_for_report() for future in first + later]
    assert [report.status for report in reports] == ["ok"] * 18
    for name in ("w0", "w1"):
        there = [report for report in reports if report.worker == name]
        assert most_taken(there) == 300 * MB


def test_task_that_no_worker_has_room_for_is_refused(bare: tuple[Cluster, Any]) -> None:
    """With both figures, where it would wait for ever; others run, and a larger worker may come."""
    made, client = bare
    made.worker("w0", "--resources", f"MEMORY={300 * MB}")
    client.wait_for_workers(1, timeout=PATIENCE)
    with LimitedDaskExecutor(client, memory=400 * MB, memory_resource="MEMORY") as executor:
        future = executor.submit(int)
        assert isinstance(future.exception(PATIENCE), PynisherError)
        assert future.report is not None
        assert future.report.status == "refused"
        told = "memory limit of 400 MB: no worker has more than 300 MB of .* MEMORY"
        assert re.match(told, future.report.message)
        assert executor.limit(memory=300 * MB).submit(int).result(PATIENCE) == 0
        made.worker("w1", "--resources", f"MEMORY={400 * MB}")
        client.wait_for_workers(2, timeout=PATIENCE)
        assert executor.submit(int).result(PATIENCE) == 0
    with LimitedDaskExecutor(client, memory=2 * MB, memory_resource="OTHER") as executor:
        error = executor.submit(int).exception(PATIENCE)
        assert "no worker has more than 0 B of its resource OTHER" in str(error)


def test_resources_that_no_worker_has_are_refused(bare: tuple[Cluster, Any]) -> None:
    """By name and figure, or together where each alone could be had."""
    made, client = bare
    made.worker("w0", "--resources", "GPU=1 DISK=5")
    made.worker("w1", "--resources", "GPU=2")
    client.wait_for_workers(2, timeout=PATIENCE)

    def told(**resources: float) -> str:
        with LimitedDaskExecutor(client, resources=resources) as executor:
            return str(executor.submit(int).exception(PATIENCE))

    assert told(GPU=3).startswith("resources={'GPU': 3}: no worker has more than 2 of its resource")
    assert "no worker has as much of each" in told(GPU=2, DISK=5)
    assert told(GPU=1, DISK=5) == "None"
    assert "no worker has more than 0 of its resource TPU" in told(TPU=0)


@pytest.mark.parametrize("limits", [{}, {"memory": None}, {"memory": "50%"}])
def test_resource_needs_a_limit_in_bytes(bare: tuple[Cluster, Any], limits: dict[str, Any]) -> None:
    """One that is known before a task has a worker; for views as well."""
    _, client = bare
    told = "memory_resource='MEMORY' needs a memory limit in bytes"
    with pytest.raises(ValueError, match=told):
        LimitedDaskExecutor(client, memory_resource="MEMORY", **limits)
    if limits:
        with (
            LimitedDaskExecutor(client, memory=2 * MB, memory_resource="MEMORY") as executor,
            pytest.raises(ValueError, match=told),
        ):
            executor.limit(**limits)
