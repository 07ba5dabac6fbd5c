"""A small door to Optuna: each trial's objective runs in a process of its own, under limits.

    from pynisher_exec.optuna import optimize
    with LimitedProcessExecutor(4, memory="2GiB", wall_time=600) as executor:
        optimize(study, objective, n_trials=100, executor=executor)

The objective gets a trial that asks the caller: `suggest_*`, `report`, `should_prune` and
`set_user_attr` work with any storage and sampler, in memory too, since those stay in the caller. A
trial whose task met a limit, crashed or exited is FAIL (or PRUNED), with the report's figures among
its user attributes under "pynisher_exec".
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import tempfile
import threading
import time
from concurrent.futures import FIRST_COMPLETED, wait
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynisher_exec.caller.submitting import LimitedExecutor
from pynisher_exec.errors import TaskError
from pynisher_exec.report import Report, Status

try:
    import optuna
    from optuna.trial import TrialState
except ImportError as problem:
    _MESSAGE = "pynisher_exec.optuna needs optuna: pip install 'pynisher_exec[optuna]'"
    raise ImportError(_MESSAGE) from problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pynisher_exec.caller.future import LimitedFuture

    Objective = Callable[[Any], float | Sequence[float]]

__all__ = ["LimitedTrial", "optimize"]

ATTRIBUTE = "pynisher_exec"
"""Under which a trial's user attributes have what its report says."""

_TOLD = (
    "status",
    "message",
    "wall_time",
    "cpu_time",
    "peak_memory",
    "peak_processes",
    "limit_reached",
    "exit_code",
    "signal",
)
_ASKED = {
    "suggest_float",
    "suggest_int",
    "suggest_categorical",
    "report",
    "should_prune",
    "set_user_attr",
}
"""What a task may ask of its trial; the channel carries names and JSON, and nothing else."""


def optimize(
    study: Any,
    objective: Objective,
    n_trials: int | None = None,
    *,
    executor: Any,
    timeout: float | None = None,
    on_limit: str = "fail",
    catch: type[Exception] | Iterable[type[Exception]] = (),
    callbacks: Sequence[Callable[[Any, Any], None]] = (),
    n_jobs: int | None = None,
) -> None:
    """Run trials of a study, as `study.optimize` does, each as a task of `executor`.

    n_trials, timeout: how many, and for how many seconds new ones are begun; None: without end.
    on_limit: "fail" or "prune", what becomes of a trial whose task met a limit or died.
    catch: exceptions of the objective that fail its trial and no more; others end the search, and
        what runs is cancelled. `optuna.TrialPruned` prunes the trial.
    callbacks: called with study and finished trial, in this thread.
    n_jobs: trials at once; by default, and by -1, as many as the executor runs.

    A callback may call `study.stop()`. ValueError or TypeError for what cannot be.
    """
    if not isinstance(executor, LimitedExecutor):
        msg = f"executor={executor!r} is no LimitedProcessExecutor, nor a view of one"
        raise TypeError(msg)
    if n_jobs is not None and n_jobs < 1 and n_jobs != -1:
        msg = f"n_jobs={n_jobs!r} must be greater than 0, or -1"
        raise ValueError(msg)
    if on_limit not in ("fail", "prune"):
        msg = f"on_limit={on_limit!r} is unknown: 'fail' and 'prune' are accepted"
        raise ValueError(msg)
    at_once = executor.max_workers if n_jobs in (None, -1) else n_jobs
    caught = catch if isinstance(catch, type) else tuple(catch)
    most = math.inf if n_trials is None else n_trials
    end = math.inf if timeout is None else time.monotonic() + timeout
    state = TrialState.FAIL if on_limit == "fail" else TrialState.PRUNED
    with _Desk() as desk:
        study._stop_flag = False  # noqa: SLF001  (as its own loop begins)
        search = _Search(study, objective, executor, desk, state, caught, callbacks)
        try:
            search.run(at_once, most, end)
        finally:
            search.cancel()


class _Search:
    """Trials that run, and what becomes of them; all in the calling thread."""

    def __init__(
        self,
        study: Any,
        objective: Objective,
        executor: LimitedExecutor,
        desk: _Desk,
        on_limit: Any,
        catch: type[Exception] | tuple[type[Exception], ...],
        callbacks: Sequence[Callable[[Any, Any], None]],
    ) -> None:
        self._study = study
        self._objective = objective
        self._executor = executor
        self._desk = desk
        self._on_limit = on_limit
        self._catch = catch
        self._callbacks = callbacks
        self._running: dict[LimitedFuture[Any], Any] = {}

    def run(self, at_once: int, most: float, end: float) -> None:
        """Begin as many as may run, and one for each that ends."""
        begun = 0
        while True:
            more = time.monotonic() < end and not self._study._stop_flag  # noqa: SLF001  (`stop`'s)
            while more and begun < most and len(self._running) < at_once:
                self._begin()
                begun += 1
            if not self._running:
                return
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                self._finish(future)  # type: ignore[arg-type]

    def _begin(self) -> None:
        trial = self._study.ask()
        proxy = self._desk.admit(trial)
        future = self._executor.submit(self._objective, proxy)
        self._running[future] = trial

    def _finish(self, future: LimitedFuture[Any]) -> None:
        trial = self._running.pop(future)
        self._desk.dismiss(trial)
        report = future.report
        assert report is not None  # noqa: S101  (it is done)
        trial.set_user_attr(ATTRIBUTE, _told(report))
        error = report.exception
        if report.status is Status.OK:
            ended = self._study.tell(trial, report.result)
        elif isinstance(error, optuna.TrialPruned):
            ended = self._study.tell(trial, state=TrialState.PRUNED)
        elif error is None or isinstance(error, TaskError):
            ended = self._study.tell(trial, state=self._on_limit)
        else:
            ended = self._study.tell(trial, state=TrialState.FAIL)
            if not isinstance(error, self._catch):
                raise error
        with _in_the_loop(self._study):
            for callback in self._callbacks:
                callback(self._study, ended)

    def cancel(self) -> None:
        """End what runs, and fail its trials."""
        for future in self._running:
            future.cancel()
        for future, trial in self._running.items():
            future.wait_for_report()
            self._study.tell(trial, state=TrialState.FAIL)
        self._running.clear()


@contextlib.contextmanager
def _in_the_loop(study: Any) -> Iterator[None]:
    """Let callbacks `study.stop()`, which Optuna allows in its own loop; by private names."""
    local = getattr(study, "_thread_local", None)
    before = getattr(local, "in_optimize_loop", False)
    if local is not None:
        local.in_optimize_loop = True
    try:
        yield
    finally:
        if local is not None:
            local.in_optimize_loop = before


def _told(report: Report) -> dict[str, Any]:
    facts = report.to_dict()
    return {name: facts[name] for name in _TOLD}


# -- between a task and its trial -----------------------------------------------------------------


class _Desk:
    """Answers what tasks ask of their trials: a socket in a folder of its own, a thread for each.

    Not by the executor's own lines, which a task's supervisor and the caller read for other things.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._trials: dict[str, Any] = {}
        self._closing = False
        self._lock = threading.Lock()  # one question at a time: samplers are not made for more

    def __enter__(self) -> _Desk:  # noqa: PYI034  (typing.Self came with Python 3.11)
        self._folder = tempfile.TemporaryDirectory(prefix="pynisher_exec-optuna-")
        self._address = str(Path(self._folder.name, "desk"))
        self._listener = Listener(self._address, authkey=self._key)
        self._thread = threading.Thread(
            target=self._serve, name="pynisher_exec optuna", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """All tasks have ended, so their connections have."""
        self._closing = True
        with Client(self._address, authkey=self._key):
            pass
        self._thread.join()
        self._listener.close()
        self._folder.cleanup()

    def admit(self, trial: Any) -> LimitedTrial:
        """Give the stand-in for a trial that travels to its task."""
        ticket = secrets.token_hex(8)
        self._trials[ticket] = trial
        return LimitedTrial(trial.number, self._address, self._key, ticket)

    def dismiss(self, trial: Any) -> None:
        """Its task has ended."""
        for ticket, each in list(self._trials.items()):
            if each is trial:
                del self._trials[ticket]

    def _serve(self) -> None:
        talks: list[threading.Thread] = []
        while True:
            try:
                connection = self._listener.accept()
            except Exception:  # noqa: BLE001  (somebody else, or a task that was killed as it knocked)
                if self._closing:
                    break
                continue
            if self._closing:
                connection.close()
                break
            talks = [each for each in talks if each.is_alive()]
            talks.append(threading.Thread(target=self._talk, args=(connection,), daemon=True))
            talks[-1].start()
        for talk in talks:
            talk.join()

    def _talk(self, connection: Connection) -> None:
        with connection:
            while True:
                try:
                    asked = json.loads(connection.recv_bytes())
                except (EOFError, OSError, ValueError):
                    return
                try:
                    connection.send_bytes(json.dumps(self._answer(asked), default=_plain).encode())
                except OSError:
                    return

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            trial = self._trials[asked["ticket"]]
            if asked["name"] not in _ASKED:
                msg = f"no {asked['name']}"
                raise AttributeError(msg)  # noqa: TRY301  (told to the task as any other)
            with self._lock:
                return {"value": getattr(trial, asked["name"])(*asked["args"], **asked["kwargs"])}
        except Exception as error:  # noqa: BLE001  (the task's own mistake, mostly: it is told)
            return {"error": type(error).__name__, "message": str(error)}


def _plain(value: Any) -> Any:
    """A number of numpy's, as objectives, pruners and samplers have them."""
    if not hasattr(value, "item"):
        msg = f"{type(value).__name__} has no form in JSON, which a trial's questions travel as"
        raise TypeError(msg)
    return value.item()


class LimitedTrial:
    """What the objective gets in its task: the trial, as far as a task can have one.

    `number`, `params` and `user_attrs` are those that this task has seen or set.
    """

    def __init__(self, number: int, address: str, key: bytes, ticket: str) -> None:
        self.number = number
        self.params: dict[str, Any] = {}
        self.user_attrs: dict[str, Any] = {}
        self._address = address
        self._key = key
        self._ticket = ticket
        self._connection: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_connection": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def _ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        asked = {"ticket": self._ticket, "name": name, "args": args, "kwargs": kwargs}
        question = json.dumps(asked, default=_plain).encode()
        with self._lock:  # the objective may have threads
            if self._connection is None:
                self._connection = Client(self._address, authkey=self._key)
            self._connection.send_bytes(question)
            answer = json.loads(self._connection.recv_bytes())
        if "error" in answer:
            kind = {"ValueError": ValueError, "TypeError": TypeError}.get(
                answer["error"], RuntimeError
            )
            raise kind(answer["message"])
        return answer["value"]

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """As `optuna.Trial.suggest_float`."""
        value: float = self._ask("suggest_float", name, low, high, step=step, log=log)
        self.params[name] = value
        return value

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """As `optuna.Trial.suggest_int`."""
        value: int = self._ask("suggest_int", name, low, high, step=step, log=log)
        self.params[name] = value
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """As `optuna.Trial.suggest_categorical`; choices are None, bools, numbers and strings."""
        value = self._ask("suggest_categorical", name, list(choices))
        self.params[name] = value
        return value

    def report(self, value: float, step: int) -> None:
        """As `optuna.Trial.report`."""
        self._ask("report", float(value), step)

    def should_prune(self) -> bool:
        """As `optuna.Trial.should_prune`."""
        return bool(self._ask("should_prune"))

    def set_user_attr(self, key: str, value: Any) -> None:
        """As `optuna.Trial.set_user_attr`; the value is what JSON can hold."""
        self._ask("set_user_attr", key, value)
        self.user_attrs[key] = value
