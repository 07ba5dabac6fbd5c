"""Libraries that take an executor, or its `map`: one small real run of each, with limits.

What is not installed is skipped; tox's environment `clients` installs all.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pynisher_exec import LimitedProcessExecutor, MemorylimitException, Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 60


@pytest.fixture(autouse=True)
def _no_thread_of_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would outlive its bars."""
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)


@pytest.fixture
def executor() -> Iterator[LimitedProcessExecutor]:
    """One that all of them get."""
    with LimitedProcessExecutor(2, memory="500MiB", wall_time=30) as made:
        yield made


def square(x: Any) -> Any:
    """Be a function that is findable by its name."""
    return x * x


def hoard() -> int:
    """Take more than may be."""
    return len([bytearray(10_000_000) for _ in range(1000)])


def test_asyncio(executor: LimitedProcessExecutor) -> None:
    """`run_in_executor`: values, limits as exceptions, and a cancel that ends the task."""

    async def run() -> tuple[int, type[BaseException] | None]:
        loop = asyncio.get_running_loop()
        value = await loop.run_in_executor(executor, lambda: 6 * 7)
        caught = None
        try:
            await loop.run_in_executor(executor, hoard)
        except MemorylimitException as error:
            caught = type(error)
        endless = loop.run_in_executor(executor, time.sleep, 600)
        await asyncio.sleep(0)
        endless.cancel()  # else the executor's end would wait for it
        return value, caught

    assert asyncio.run(run()) == (42, MemorylimitException)


def test_anyio(executor: LimitedProcessExecutor) -> None:
    """Its threads wait for a future; a cancelled scope leaves nothing that runs."""
    anyio = pytest.importorskip("anyio")

    async def run() -> int:
        future = executor.submit(lambda: 6 * 7)
        found: int = await anyio.to_thread.run_sync(future.result)
        return found

    assert anyio.run(run) == 42


TRIO = """
import trio
from pynisher_exec import LimitedProcessExecutor

async def run(executor):
    return await trio.to_thread.run_sync(executor.submit(lambda: 6 * 7).result)

with LimitedProcessExecutor(2, memory="500MiB") as executor:
    print(trio.run(run, executor))
"""


def test_trio(tmp_path: Path) -> None:
    """The same in trio's event loop; a program of its own, since trio keeps its threads a while."""
    pytest.importorskip("trio")
    program = tmp_path / "program.py"
    program.write_text(TRIO)
    done = subprocess.run([sys.executable, program], capture_output=True, check=True, text=True)
    assert done.stdout == "42\n"


def test_dask(executor: LimitedProcessExecutor) -> None:
    """`scheduler=executor` for its local graphs, of which each node is a task."""
    dask = pytest.importorskip("dask")
    offset = 1
    parts = [dask.delayed(lambda x: x * x + offset)(n) for n in range(5)]
    assert dask.delayed(sum)(parts).compute(scheduler=executor) == 35


def test_scipy(executor: LimitedProcessExecutor) -> None:
    """`workers=executor.map`."""
    optimize = pytest.importorskip("scipy.optimize")
    found = optimize.differential_evolution(
        lambda x: float(((x - 1) ** 2).sum()),
        [(-3, 3)] * 2,
        workers=executor.map,
        updating="deferred",
        maxiter=3,
        popsize=3,
        polish=False,
        rng=1,
    )
    assert found.fun < 1


def test_nevergrad(executor: LimitedProcessExecutor) -> None:
    """`minimize(executor=...)`."""
    nevergrad = pytest.importorskip("nevergrad")
    optimizer = nevergrad.optimizers.OnePlusOne(parametrization=1, budget=20, num_workers=2)
    found = optimizer.minimize(lambda x: float((x[0] - 0.5) ** 2), executor=executor)
    assert abs(found.value[0]) < 3


def test_adaptive(executor: LimitedProcessExecutor) -> None:
    """A runner with an executor, in its own event loop; it cannot tell how many tasks that runs."""
    adaptive = pytest.importorskip("adaptive")
    learner = adaptive.Learner1D(square, bounds=(-1, 1))
    adaptive.BlockingRunner(learner, npoints_goal=8, executor=executor, ntasks=2)
    assert len(learner.data) >= 8
    assert all(y == x * x for x, y in learner.data.items())


def test_emcee(executor: LimitedProcessExecutor) -> None:
    """`pool=executor`."""
    emcee = pytest.importorskip("emcee")
    sampler = emcee.EnsembleSampler(4, 1, lambda x: float(-0.5 * (x**2).sum()), pool=executor)
    sampler.run_mcmc(np.random.default_rng(1).normal(size=(4, 1)), 5)
    assert sampler.get_chain().shape == (5, 4, 1)


@pytest.mark.filterwarnings("ignore:The sampling was stopped short")
def test_dynesty(executor: LimitedProcessExecutor) -> None:
    """`pool=executor, queue_size=...`."""
    dynesty = pytest.importorskip("dynesty")
    sampler = dynesty.NestedSampler(
        lambda x: float(-0.5 * (x**2).sum()),
        lambda u: 4 * u - 2,
        1,
        nlive=10,
        pool=executor,
        queue_size=2,
        rstate=np.random.default_rng(1),
    )
    sampler.run_nested(maxiter=10, print_progress=False, add_live=False)
    assert len(sampler.results.samples) >= 10


def test_deap(executor: LimitedProcessExecutor) -> None:
    """`toolbox.register("map", executor.map)`."""
    base = pytest.importorskip("deap.base")
    toolbox = base.Toolbox()
    toolbox.register("map", executor.map)
    assert list(toolbox.map(square, [1, 2, 3])) == [1, 4, 9]


class Runner:
    """Evaluates the elements of a pymoo problem, with which it travels, but for its executor."""

    def __init__(self, executor: LimitedProcessExecutor) -> None:
        self.executor = executor

    def __call__(self, evaluate: Any, samples: Any) -> list[Any]:
        """Evaluate each sample in a task."""
        return list(self.executor.map(evaluate, samples))

    def __reduce__(self) -> tuple[Any, ...]:
        return object, ()


def test_pymoo(executor: LimitedProcessExecutor) -> None:
    """A runner for the elements of a problem."""
    core: Any = pytest.importorskip("pymoo.core.problem")
    nsga2 = pytest.importorskip("pymoo.algorithms.moo.nsga2")
    optimize = pytest.importorskip("pymoo.optimize")

    class Problem(core.ElementwiseProblem):  # type: ignore[misc]
        def __init__(self, runner: Runner) -> None:
            super().__init__(n_var=1, n_obj=1, xl=-2, xu=2, elementwise_runner=runner)

        def _evaluate(self, x: Any, out: dict[str, Any], *_: Any, **__: Any) -> None:
            out["F"] = float(x[0] ** 2)

    found = optimize.minimize(
        Problem(Runner(executor)), nsga2.NSGA2(pop_size=6), ("n_gen", 3), seed=1
    )
    assert found.F[0] < 1


def test_more_executors(executor: LimitedProcessExecutor) -> None:
    """Wrapped: what is retried is a new task each time."""
    more = pytest.importorskip("more_executors")
    with more.MapExecutor(more.RetryExecutor(executor, max_attempts=2), square) as wrapped:
        assert wrapped.submit(lambda: 3).result(PATIENCE) == 9


def test_tqdm(executor: LimitedProcessExecutor) -> None:
    """Its way to map with a bar, around an executor of ours."""
    concurrent = pytest.importorskip("tqdm.contrib.concurrent")

    def make(*, max_workers: int, **_: Any) -> LimitedProcessExecutor:
        return LimitedProcessExecutor(max_workers, memory="500MiB")

    found = concurrent._executor_map(make, square, range(5), max_workers=2, disable=True)
    assert found == [0, 1, 4, 9, 16]
    assert executor.submit(square, 2).result(PATIENCE) == 4


def test_xyzpy(executor: LimitedProcessExecutor) -> None:
    """`case_runner` and the like take an executor."""
    xyzpy = pytest.importorskip("xyzpy")
    found = xyzpy.combo_runner(square, {"x": [1, 2, 3]}, executor=executor, verbosity=0)
    assert tuple(found) == (1, 4, 9)


def test_pyabc(executor: LimitedProcessExecutor, tmp_path: Any) -> None:
    """`ConcurrentFutureSampler`."""
    pyabc = pytest.importorskip("pyabc")
    sampler = pyabc.sampler.ConcurrentFutureSampler(executor, client_max_jobs=4)
    search = pyabc.ABCSMC(
        lambda given: {"y": given["x"]},
        pyabc.Distribution(x=pyabc.RV("uniform", 0, 1)),
        lambda one, other: abs(one["y"] - other["y"]),
        population_size=5,
        sampler=sampler,
    )
    search.new(f"sqlite:///{tmp_path / 'abc.db'}", {"y": 0.5})
    history = search.run(max_nr_populations=1)
    assert len(history.get_distribution()[0]) == 5


def test_limits_are_told_through_a_client(executor: LimitedProcessExecutor) -> None:
    """A client's future is ours: it has the report."""
    future = executor.submit(hoard)
    assert isinstance(future.exception(PATIENCE), MemorylimitException)
    assert future.report is not None
    assert future.report.status is Status.MEMORY
