"""Searches whose candidates run away, on a real Dask cluster: the search goes on, and finds."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from dask_cluster import cluster, nothing_left_over  # noqa: F401  (a fixture)

from pynisher_exec import LimitedProcessExecutor, TimeoutException, limited
from pynisher_exec.dask import LimitedDaskExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 60
LIMITS: dict[str, Any] = {"memory": "100MiB", "wall_time": 0.5}

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no such module


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of a cluster of two workers; none of its processes is left when it is closed."""
    with cluster(tmp_path_factory.mktemp("cluster")) as (_, made):
        yield made


def run_away(x: float) -> float:
    """Hang, or eat memory, in either half of the candidates; the best one is 2."""
    if x > 5:
        time.sleep(600)
    if x < -5:
        return len(bytearray(1 << 30))
    return (x - 2) ** 2


safe = limited(run_away, **LIMITS)


def cost(x: float) -> float:
    """What a search gets: 1000 for what runs away."""
    report = safe.report(float(x))
    return float(report.result) if report.status == "ok" else 1000.0


def is_right(x: float, found: float) -> bool:
    """Whether a search was told what a candidate is worth."""
    return found == ((x - 2) ** 2 if -5 <= x <= 5 else 1000)


@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_smac(client: Any, tmp_path: Path) -> None:
    """Its own limits do not go together with Dask; a target function that has them does."""
    smac = pytest.importorskip("smac", reason="smac is not installed: see tox's environment smac")
    space = pytest.importorskip("ConfigSpace").ConfigurationSpace({"x": (-10.0, 10.0)})

    def target(config: Any, seed: int = 0) -> float:
        del seed
        return cost(config["x"])

    scenario = smac.Scenario(
        space, deterministic=True, n_trials=30, output_directory=tmp_path, seed=1
    )
    search = smac.HyperparameterOptimizationFacade(
        scenario, target, dask_client=client, logging_level=False
    )
    best = search.optimize()
    assert abs(best["x"] - 2) < 0.5
    costs = {
        search.runhistory.get_config(key.config_id)["x"]: value.cost
        for key, value in search.runhistory.items()
    }
    assert len(costs) == 30
    assert all(is_right(x, found) for x, found in costs.items())
    assert any(x > 5 for x in costs)
    assert any(x < -5 for x in costs)


def test_nevergrad(client: Any) -> None:
    """`minimize(executor=...)`; the first candidate that meets a limit ends it by its exception."""
    nevergrad = pytest.importorskip("nevergrad")
    with LimitedDaskExecutor(client, **LIMITS) as executor:
        optimizer = nevergrad.optimizers.OnePlusOne(parametrization=1, budget=40, num_workers=4)
        found = optimizer.minimize(
            lambda x: float((x[0] - 2) ** 2), executor=executor, batch_mode=False
        )
        assert abs(found.value[0] - 2) < 1
        optimizer = nevergrad.optimizers.OnePlusOne(parametrization=1, budget=40, num_workers=4)
        with pytest.raises(TimeoutException):
            optimizer.minimize(lambda _: time.sleep(600), executor=executor, batch_mode=False)


def test_nevergrad_goes_on(client: Any) -> None:
    """With a limited function as objective, in the tasks of Dask's own executor."""
    nevergrad = pytest.importorskip("nevergrad")
    space = nevergrad.p.Scalar(init=-9, lower=-10, upper=10)
    space.random_state.seed(8)  # so that one of the forty is near
    optimizer = nevergrad.optimizers.RandomSearch(parametrization=space, budget=40, num_workers=4)
    told: list[tuple[float, float]] = []
    optimizer.register_callback(
        "tell", lambda _, candidate, found: told.append((candidate.value, found))
    )

    def objective(x: float) -> float:  # by value, as a script's function
        return cost(x)

    found = optimizer.minimize(objective, executor=client.get_executor(), batch_mode=False)
    assert abs(found.value - 2) < 1.5
    assert len(told) == 40
    assert all(is_right(x, found) for x, found in told)


def test_optuna_by_ask_and_tell(client: Any) -> None:
    """The trials that run away are FAIL, and the best one is found."""
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    space = {"x": optuna.distributions.FloatDistribution(-10, 10)}
    with LimitedDaskExecutor(client, **LIMITS) as executor:
        for _ in range(8):
            trials = [study.ask(space) for _ in range(executor.max_workers)]
            reports = executor.reports(run_away, [trial.params["x"] for trial in trials])
            for trial, report in zip(trials, reports, strict=True):
                failed = optuna.trial.TrialState.FAIL if report.status != "ok" else None
                study.tell(trial, report.result, failed)
    assert len(study.trials) == 32
    for trial in study.trials:
        assert is_right(trial.params["x"], 1000 if trial.value is None else trial.value)
    assert abs(study.best_params["x"] - 2) < 1


def test_optunas_door_says_that_it_is_of_this_machine(client: Any) -> None:
    """Its trials are asked through a socket of the caller's machine."""
    optuna = pytest.importorskip("optuna")
    door = pytest.importorskip("pynisher_exec.optuna")
    with (
        LimitedDaskExecutor(client) as executor,
        pytest.raises(TypeError, match=f"is no {LimitedProcessExecutor.__name__}"),
    ):
        door.optimize(optuna.create_study(), cost, 1, executor=executor)
