"""The door to Optuna: trials in processes of their own, that ask the study in the caller."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from pynisher_exec import LimitedProcessExecutor, TimeoutException
from pynisher_exec.optuna import ATTRIBUTE, optimize
from pynisher_exec.searches.desk import Desk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def executor() -> Iterator[LimitedProcessExecutor]:
    """One whose limits some trials meet."""
    with LimitedProcessExecutor(2, memory="300MiB", wall_time=5) as made:
        yield made


def parabola(trial: Any) -> float:
    """Have its least value at x = 2, n = 3, kind = "good"."""
    x = trial.suggest_float("x", -10, 10)
    n = trial.suggest_int("n", 1, 5)
    kind = trial.suggest_categorical("kind", ["good", "bad"])
    trial.set_user_attr("seen", [x, n])
    return float((x - 2) ** 2 + abs(n - 3) + (kind == "bad"))


@pytest.mark.parametrize("storage", ["memory", "sqlite"])
def test_study_learns_what_trials_found(
    executor: LimitedProcessExecutor, tmp_path: Path, storage: str
) -> None:
    """Parameters, values and attributes, whatever the storage; the report is among them."""
    url = None if storage == "memory" else f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=url)
    optimize(study, parabola, n_trials=20, executor=executor)
    assert len(study.trials) == 20
    assert study.best_value < 50
    for trial in study.trials:
        assert trial.state is TrialState.COMPLETE
        assert trial.params.keys() == {"x", "n", "kind"}
        assert trial.user_attrs["seen"] == [trial.params["x"], trial.params["n"]]
        assert trial.user_attrs[ATTRIBUTE]["status"] == "ok"
        assert trial.user_attrs[ATTRIBUTE]["peak_memory"] > 0


def test_seeded_study_is_what_it_is_without_limits(executor: LimitedProcessExecutor) -> None:
    """The sampler stays in the caller, so it goes on from trial to trial."""
    plain = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    plain.optimize(parabola, n_trials=15)
    limited = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    optimize(limited, parabola, n_trials=15, executor=executor, n_jobs=1)
    assert [trial.params for trial in limited.trials] == [trial.params for trial in plain.trials]
    assert limited.best_params == plain.best_params


def behave(trial: Any) -> float:
    """End by trial number: well, by a limit, by a crash, by an exception, or pruned."""
    trial.suggest_float("x", 0, 1)
    if trial.number == 1:
        return len([bytearray(10_000_000) for _ in range(1000)])
    if trial.number == 2:
        time.sleep(600)
    if trial.number == 3:
        raise KeyError(trial.number)
    if trial.number == 4:
        raise optuna.TrialPruned
    return 1.0


@pytest.mark.parametrize(
    ("on_limit", "state"), [("fail", TrialState.FAIL), ("prune", TrialState.PRUNED)]
)
def test_limits_end_trials_and_no_search(
    executor: LimitedProcessExecutor, on_limit: str, state: TrialState
) -> None:
    """What happened is told by the report's figures."""
    study = optuna.create_study()
    seen: list[int] = []
    optimize(
        study,
        behave,
        n_trials=6,
        executor=executor,
        on_limit=on_limit,
        catch=KeyError,
        callbacks=[lambda _, trial: seen.append(trial.number)],
    )
    assert [trial.state for trial in study.trials] == [
        TrialState.COMPLETE,
        state,
        state,
        TrialState.FAIL,
        TrialState.PRUNED,
        TrialState.COMPLETE,
    ]
    told = [trial.user_attrs[ATTRIBUTE]["status"] for trial in study.trials]
    assert told == ["ok", "memory", "wall_time", "exception", "exception", "ok"]
    assert study.trials[1].params.keys() == {"x"}  # what it had asked for before
    assert sorted(seen) == list(range(6))


def test_exception_ends_the_search_unless_caught(executor: LimitedProcessExecutor) -> None:
    """As `study.optimize` has it; no trial is left running."""
    study = optuna.create_study()
    with pytest.raises(KeyError):
        optimize(study, behave, n_trials=50, executor=executor)
    assert all(trial.state.is_finished() for trial in study.trials)
    assert len(study.trials) < 10


def climb(trial: Any) -> float:
    """Report worse values from step to step, until told to stop."""
    for step in range(100):
        trial.report(float(step + 10 * trial.number), step)
        if trial.should_prune():
            raise optuna.TrialPruned
        time.sleep(0.005)
    return 100.0


def test_pruner_is_asked_from_inside(executor: LimitedProcessExecutor) -> None:
    """Intermediate values reach the study while the trial runs."""
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    optimize(study, climb, n_trials=4, executor=executor, n_jobs=1)
    states = [trial.state for trial in study.trials]
    assert states[0] is TrialState.COMPLETE
    assert TrialState.PRUNED in states
    assert len(study.trials[0].intermediate_values) == 100


def ask_wrongly(trial: Any) -> str:
    """Get the answer that a trial has for nonsense."""
    try:
        trial.suggest_float("x", 2, 1)
    except ValueError as error:
        return f"ValueError {error}"
    return "nothing"


def test_errors_of_a_trial_are_raised_where_it_asked(executor: LimitedProcessExecutor) -> None:
    """And a value that is none fails the trial, as without limits."""
    study = optuna.create_study()
    messages: list[str] = []

    def objective(trial: Any) -> float:
        trial.set_user_attr("said", ask_wrongly(trial))
        return 0.0

    optimize(study, objective, n_trials=1, executor=executor)
    messages = [trial.user_attrs["said"] for trial in study.trials]
    assert messages[0].startswith("ValueError")


def test_time_is_bounded(executor: LimitedProcessExecutor) -> None:
    """No trial begins after it."""
    study = optuna.create_study()
    began = time.monotonic()
    optimize(study, parabola, executor=executor, timeout=1)
    assert study.trials
    assert time.monotonic() - began < 20


def score(x: float) -> float:
    """Be a plain function of a trial's parameters."""
    return (x - 2) ** 2


def test_ask_and_tell_by_submit(executor: LimitedProcessExecutor) -> None:
    """The other way: the search space in the caller, a plain function in the task."""
    space: Any = {"x": optuna.distributions.FloatDistribution(-10, 10)}
    study = optuna.create_study()
    trials = [study.ask(space) for _ in range(5)]
    futures = [executor.submit(score, **trial.params) for trial in trials]
    for trial, future in zip(trials, futures, strict=True):
        if future.exception() is None:
            study.tell(trial, future.result())
        else:
            study.tell(trial, state=TrialState.FAIL)
    assert study.best_value == min(future.result() for future in futures)


def test_callback_may_stop_the_study(executor: LimitedProcessExecutor) -> None:
    """As in Optuna's own loop; its `MaxTrialsCallback` does so."""
    study = optuna.create_study()
    stop = optuna.study.MaxTrialsCallback(3, states=(TrialState.COMPLETE,))
    optimize(study, parabola, n_trials=50, executor=executor, callbacks=[stop])
    assert 3 <= len(study.trials) < 10


def test_sampler_that_has_tried_all_ends_the_study(executor: LimitedProcessExecutor) -> None:
    """As in Optuna's own loop."""
    study = optuna.create_study(sampler=optuna.samplers.GridSampler({"x": [0, 1, 2]}))
    optimize(study, lambda trial: trial.suggest_float("x", 0, 2), 10, executor=executor, n_jobs=1)
    assert {trial.value for trial in study.trials} == {0, 1, 2}


def ask_from_threads(trial: Any) -> float:
    """Ask at once from several threads, and look whether each gets the answer to its question."""

    def ask(number: int) -> bool:
        low = 100.0 * number
        return bool(low <= trial.suggest_float(f"x{number}", low, low + 1) <= low + 1)

    with ThreadPoolExecutor(4) as pool:
        return float(all(pool.map(ask, range(20))))


def ask_from_a_fork(trial: Any) -> float:
    """Ask at once here and in a fork, and look whether each gets answers to its own questions."""
    trial.suggest_float("first", 0, 1)
    child = os.fork()
    base = 10 if child else 20
    right = all(
        base <= trial.suggest_float(f"{base}-{number}", base, base + 1) <= base + 1
        for number in range(50)
    )
    if not child:
        os._exit(int(not right))
    return float(right and os.waitpid(child, 0)[1] == 0)


def test_trial_may_be_asked_from_a_fork(executor: LimitedProcessExecutor) -> None:
    """Each gets the answer to its own question."""
    study = optuna.create_study()
    optimize(study, ask_from_a_fork, n_trials=2, executor=executor)
    assert [trial.value for trial in study.trials] == [1.0] * 2


def test_trial_may_be_asked_from_threads(executor: LimitedProcessExecutor) -> None:
    """Each gets the answer to its own question."""
    study = optuna.create_study()
    optimize(study, ask_from_threads, n_trials=4, executor=executor)
    assert [trial.value for trial in study.trials] == [1.0] * 4


def hold_the_line(trial: Any) -> float:
    """Hold a line to the desk open, as any program of this user's may, and leave it to a child."""
    mute = socket.socket(socket.AF_UNIX)
    mute.connect(trial._address)
    mute.sendall(b'{"ticket": "none"}\nnot even JSON\n')
    with mute.makefile() as answers:
        trial.set_user_attr("said", answers.readline() + answers.readline())
    return float(trial.suggest_float("x", 0, 1))


def test_strangers_at_the_desk_hold_up_nobody(executor: LimitedProcessExecutor) -> None:
    """Those that say nothing, and those that say nonsense."""
    study = optuna.create_study()
    with socket.socket(socket.AF_UNIX) as mute:

        def enter(_: Any, trial: Any) -> None:
            if not trial.number:
                mute.connect(addresses[0])
            assert trial.state is TrialState.COMPLETE
            assert "KeyError" in trial.user_attrs["said"]
            assert "JSONDecodeError" in trial.user_attrs["said"]

        addresses: list[str] = []
        original = Desk.admit

        def admit(desk: Any, trial: Any) -> Any:
            made = original(desk, trial)
            addresses.append(made._address)
            return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Desk, "admit", admit)
            began = time.monotonic()
            optimize(
                study, hold_the_line, n_trials=3, executor=executor, callbacks=[enter], n_jobs=1
            )
        assert time.monotonic() - began < 20
        assert len(study.trials) == 3
        assert mute.recv(10) == b""  # hung up on, and no reason to wait for it


def test_values_of_numpy_count_and_none_fails_its_trial(executor: LimitedProcessExecutor) -> None:
    """As without limits."""

    def objective(trial: Any) -> Any:
        trial.suggest_int("n", np.int64(1), np.int64(3))
        return None if trial.number else np.float32(1.5)

    study = optuna.create_study()
    with pytest.warns(UserWarning, match="None"):
        optimize(study, objective, n_trials=2, executor=executor, n_jobs=1, catch=[ValueError])
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAIL]
    assert study.best_value == 1.5


@pytest.mark.parametrize(
    ("wrong", "error"), [({"n_jobs": 0}, ValueError), ({"executor": object()}, TypeError)]
)
def test_what_cannot_be_is_refused(
    executor: LimitedProcessExecutor, wrong: dict[str, Any], error: type[Exception]
) -> None:
    """By its name, before any trial."""
    with pytest.raises(error, match=next(iter(wrong))):
        optimize(optuna.create_study(), parabola, n_trials=1, **{"executor": executor, **wrong})


def test_unknown_word_is_refused(executor: LimitedProcessExecutor) -> None:
    """Before any trial."""
    study = optuna.create_study()
    with pytest.raises(ValueError, match="on_limit"):
        optimize(study, parabola, n_trials=1, executor=executor, on_limit="ignore")
    assert not study.trials


def ask_until_the_limit(trial: Any) -> float:
    """Ask without end, so that the soft limit strikes in a question; and then for another."""
    try:
        while True:
            trial.suggest_float("x", 0, 1)
    except TimeoutException:
        return float(trial.suggest_float("late", 5, 6))


def test_soft_limit_in_a_question_leaves_no_answer_for_the_next_one() -> None:
    """Its own is what each question gets."""
    study = optuna.create_study()
    with LimitedProcessExecutor(2, wall_time=0.3, grace_period=10) as executor:
        optimize(study, ask_until_the_limit, n_trials=8, executor=executor)
    assert [trial.value for trial in study.trials] == [
        trial.params["late"] for trial in study.trials
    ]


def tell_too_much(trial: Any) -> float:
    """Have an attribute that is too long, and go on."""
    try:
        trial.set_user_attr("model", "x" * (20 << 20))
    except ValueError as error:
        assert "20 MiB to tell" in str(error)  # noqa: PT017  (in a task)
        return float(trial.suggest_float("x", 5, 6))
    return 0.0


def test_attribute_that_is_too_long_is_refused(executor: LimitedProcessExecutor) -> None:
    """And the next question gets its own answer."""
    study = optuna.create_study()
    optimize(study, tell_too_much, n_trials=1, executor=executor)
    assert study.best_value == study.best_params["x"] >= 5


def ask_in_threads_and_a_fork(trial: Any) -> float:
    """Whoever asks has its own answer, also where others ask at the moment of the fork."""

    def ask(base: int) -> bool:
        found = [trial.suggest_float(f"{base} {n}", base, base + 0.5) for n in range(10)]
        return all(base <= each <= base + 0.5 for each in found)

    with ThreadPoolExecutor(4) as threads:
        right = threads.map(ask, range(4))
        child = os.fork()
        if not child:
            os._exit(not 50 <= trial.suggest_float("child", 50, 51) <= 51)
        assert all(right)
    return float(os.waitpid(child, 0)[1])


def test_threads_and_forks_may_ask(executor: LimitedProcessExecutor) -> None:
    """None waits for what another one holds."""
    study = optuna.create_study()
    optimize(study, ask_in_threads_and_a_fork, n_trials=6, executor=executor)
    assert [trial.value for trial in study.trials] == [0.0] * 6


def fail_at_first(trial: Any) -> float:
    """The first one takes longest."""
    if trial.number == 0:
        time.sleep(0.5)
        raise LookupError
    return 1.0


def test_what_has_returned_as_another_one_ends_the_search_is_told() -> None:
    """Its task was in time."""
    study = optuna.create_study()
    slow = [lambda *_: time.sleep(1)]
    with LimitedProcessExecutor(4) as executor, pytest.raises(LookupError):
        optimize(study, fail_at_first, n_trials=4, executor=executor, callbacks=slow)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, *[TrialState.COMPLETE] * 3]
