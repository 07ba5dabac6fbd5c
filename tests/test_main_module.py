"""The caller's `__main__`, also as `__mp_main__`: what stands there is found by tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from test_places import CONTEXTS, run_script

if TYPE_CHECKING:
    from pathlib import Path

INITIALIZED = """
from pynisher_exec import LimitedProcessExecutor
table = None

def load(value):
    global table
    table = value

def look(x):
    return table[x]

with LimitedProcessExecutor(
    1, wall_time=20, context={context!r}, initializer=load, initargs=([3, 5],)
) as executor:
    print(executor.submit(look, 1).result(30), table)
"""


@pytest.mark.parametrize("context", CONTEXTS)
def test_function_sees_the_global_that_the_initializer_set(
    context: str | None, tmp_path: Path
) -> None:
    """Both travel from `__main__`, and share its globals in the task; the caller's stay."""
    script = tmp_path / "script.py"
    script.write_text(INITIALIZED.format(context=context))
    done = run_script("", str(script))
    assert (done.stdout, done.stderr, done.returncode) == ("5 None\n", "", 0)


IN_WORKER = """
import multiprocessing
from pynisher_exec import LimitedProcessExecutor

class Point:
    def __init__(self, x):
        self.x = x

def double(point):
    assert type(point) is Point
    return Point(2 * point.x)

def work(context, queue):
    assert __name__ == "__mp_main__"
    with LimitedProcessExecutor(1, wall_time=20, context=context) as executor:
        point = executor.submit(double, Point(4)).result(30)
    queue.put((type(point) is Point, point.x))

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    queue = context.SimpleQueue()
    process = context.Process(target=work, args=({context!r}, queue), daemon=True)
    process.start()
    process.join(40)
    print(queue.empty() or queue.get())
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("context", [each for each in CONTEXTS if each != "fork"])
def test_functions_of_main_work_in_a_spawned_worker(
    method: str, context: str | None, tmp_path: Path
) -> None:
    """There the main module is called `__mp_main__`, and a task could not import that."""
    script = tmp_path / "script.py"
    script.write_text(IN_WORKER.format(method=method, context=context))
    done = run_script("", str(script))
    assert (done.stdout, done.stderr, done.returncode) == ("(True, 8)\n", "", 0)


LIMITED_IN_WORKER = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pynisher_exec import limited

def square(x):
    return x * x

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        print(pool.submit(limited(square, wall_time=20), 3).result(30))
"""


def test_limited_function_of_main_runs_in_a_spawned_pool(tmp_path: Path) -> None:
    """The worker has it from `__mp_main__`, and its task from the worker."""
    script = tmp_path / "script.py"
    script.write_text(LIMITED_IN_WORKER)
    done = run_script("", str(script))
    assert (done.stdout, done.stderr, done.returncode) == ("9\n", "", 0)
