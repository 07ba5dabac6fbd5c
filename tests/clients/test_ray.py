"""Limits inside Ray: `limited` in a remote function; no code of ours but that."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import psutil
import pytest
from conftest import wait_until

from pynisher_exec import MemorylimitException, TimeoutException, limited, shutdown

if TYPE_CHECKING:
    from collections.abc import Iterator

ray: Any = pytest.importorskip("ray", reason="ray is not installed: see tox's environment ray")

PATIENCE = 60

# Workers cannot import this module. Ray has a cloudpickle of its own.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    """In place of conftest's: Ray's own processes and threads live until the end."""
    yield
    shutdown()


@pytest.fixture(scope="module", autouse=True)
def node() -> Iterator[None]:
    """Ray on this machine, of two cores."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
    yield
    ray.shutdown()


def remote(function: Any, **limits: Any) -> Any:
    """Have Ray run a function under limits: Ray wants a real function, so one is put around it."""
    safe = limited(function, **limits)

    @ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
    def run(*args: Any) -> Any:
        return safe(*args)

    return run


def is_busy(pid: int) -> bool:
    """Whether it is a task of ours that uses CPU."""
    try:
        named = Path(f"/proc/{pid}/comm").read_text() == "limit-task\n"
        return named and psutil.Process(pid).cpu_percent(0.1) > 10
    except (OSError, psutil.Error):  # it has just gone
        return False


def tasks() -> list[int]:
    """Tasks of ours that use CPU, wherever they are."""
    return list(filter(is_busy, psutil.pids()))


def burn() -> None:
    """Use CPU for ever."""
    while True:
        pass


def test_limits_hold_in_ray_workers() -> None:
    """Their exceptions arrive as Ray's and as ours at once."""
    assert ray.get([remote(abs, memory="1GiB").remote(-n) for n in range(8)]) == list(range(8))
    with pytest.raises(TimeoutException):
        ray.get(remote(time.sleep, wall_time=0.5).remote(60), timeout=PATIENCE)
    # Far below what Ray's monitor looks at, which kills a whole worker, and its own pick of them.
    with pytest.raises(MemorylimitException):
        ray.get(remote(bytearray, memory="100MiB").remote(300 << 20), timeout=PATIENCE)


def test_cancel_with_force_ends_the_task() -> None:
    """It kills Ray's worker, and with that all that it has started."""
    running = remote(burn, wall_time=600).remote()
    wait_until(tasks)
    ray.cancel(running, force=True)
    wait_until(lambda: not tasks())


def test_cancel_without_force_ends_the_task() -> None:
    """Ray raises KeyboardInterrupt in its worker, and a call of ours that is interrupted ends."""
    running = remote(burn, wall_time=600).remote()
    wait_until(tasks)
    ray.cancel(running, force=False)
    wait_until(lambda: not tasks())
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(running, timeout=PATIENCE)
