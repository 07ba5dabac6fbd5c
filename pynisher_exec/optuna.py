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
import os
import secrets
import socket
import socketserver
import tempfile
import threading
import time
import weakref
from collections import deque
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynisher_exec.caller.submitting import LimitedExecutor
from pynisher_exec.errors import TaskError
from pynisher_exec.limits import size_text
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
_LONGEST = 1 << 24
"""Bytes of a question at most: what a task writes there takes the caller's memory."""

_LONGEST_PATH = 107
"""Bytes that the path of a socket may have (unix(7))."""

_LOOK = 0.1
"""Seconds after which the desk sees at the latest that it shall close."""

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
    if n_trials is not None and not isinstance(n_trials, int):
        msg = f"n_trials={n_trials!r} is no number of trials"  # type: ignore[unreachable]
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
        self._pid = os.getpid()

    def run(self, at_once: int, most: float, end: float) -> None:
        """Begin as many as may run, and one for each that ends."""
        begun = 0
        while True:
            while self._goes_on(end) and begun < most and len(self._running) < at_once:
                self._begin()
                begun += 1
            if not self._running:
                return
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                self._finish(future)  # type: ignore[arg-type]

    def _goes_on(self, end: float) -> bool:
        return time.monotonic() < end and not self._study._stop_flag  # noqa: SLF001  (`stop`'s)

    def _begin(self) -> None:
        with self._desk.lock, _in_the_loop(self._study):  # a sampler that has tried all may stop it
            trial = self._study.ask()
        proxy = self._desk.admit(trial)
        future = self._executor.submit(self._objective, proxy)
        self._running[future] = trial

    def _finish(self, future: LimitedFuture[Any]) -> None:
        trial = self._running.pop(future)
        ended, error = self._tell(future, trial)
        if error is not None:
            raise error
        with _in_the_loop(self._study):
            for callback in self._callbacks:
                callback(self._study, ended)

    def _tell(self, future: LimitedFuture[Any], trial: Any) -> tuple[Any, BaseException | None]:
        """Tell the study how a trial ended; give it as it ended, and what is not to be caught."""
        self._desk.dismiss(trial)
        report = future.report
        assert report is not None  # noqa: S101  (it is done)
        trial.set_user_attr(ATTRIBUTE, _told(report))
        error = report.exception
        with self._desk.lock, _in_the_loop(self._study):
            if report.status is Status.OK:
                return self._study.tell(trial, report.result), None
            if isinstance(error, optuna.TrialPruned):
                return self._study.tell(trial, state=TrialState.PRUNED), None
            if report.status is Status.CANCELLED:
                return self._study.tell(trial, state=TrialState.FAIL), None
            if error is None or isinstance(error, TaskError):
                return self._study.tell(trial, state=self._on_limit), None
            ended = self._study.tell(trial, state=TrialState.FAIL)
        return ended, None if isinstance(error, self._catch) else error

    def cancel(self) -> None:
        """End what runs; what has returned by now is told as it is."""
        if os.getpid() != self._pid:  # a fork that a callback made: the trials are its parent's
            return
        for future in self._running:
            future.cancel()
        for future, trial in self._running.items():
            future.wait_for_report()
            self._tell(future, trial)
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


class _Desk(socketserver.ThreadingUnixStreamServer):
    """Answers what tasks ask of their trials: a socket in a folder of its own, a thread for each.

    Not by the executor's own lines, which a task's supervisor and the caller read for other things.
    The folder is this user's alone, and who has no ticket of a trial's is told nothing.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pynisher_exec-optuna-")
        path = Path(self._folder.name, "desk")
        if len(os.fsencode(path)) > _LONGEST_PATH:
            self._folder.cleanup()
            self._folder = tempfile.TemporaryDirectory(prefix="pynisher_exec-optuna-", dir="/tmp")
            path = Path(self._folder.name, "desk")
        super().__init__(str(path), _Talk)
        self._trials: dict[str, Any] = {}
        self._talks: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.lock = threading.Lock()  # one question at a time: samplers are not made for more
        self._thread = threading.Thread(
            target=self.serve_forever, args=(_LOOK,), name="pynisher_exec optuna", daemon=True
        )
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """All tasks have ended; who is there still is told no more."""
        self.shutdown()
        self._thread.join()
        for talk in list(self._talks):
            with contextlib.suppress(OSError):  # it has gone
                talk.shutdown(socket.SHUT_RDWR)
        self.server_close()  # waits for their threads
        self._folder.cleanup()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Note whom to hang up on."""
        self._talks.add(request)
        super().process_request(request, client_address)

    def admit(self, trial: Any) -> LimitedTrial:
        """Give the stand-in for a trial that travels to its task."""
        ticket = secrets.token_hex(32)
        self._trials[ticket] = trial
        return LimitedTrial(trial.number, str(self.server_address), ticket)

    def dismiss(self, trial: Any) -> None:
        """Its task has ended."""
        for ticket, each in list(self._trials.items()):
            if each is trial:
                del self._trials[ticket]

    def answer(self, line: bytes) -> bytes:
        """Ask a trial what a line says; an error is told."""
        try:
            asked = json.loads(line)
            trial = self._trials[asked["ticket"]]
            if asked["name"] not in _ASKED:
                msg = f"no {asked['name']}"
                raise AttributeError(msg)  # noqa: TRY301  (told to the task as any other)
            with self.lock:
                value = getattr(trial, asked["name"])(*asked["args"], **asked["kwargs"])
            return _line({"value": value})
        except Exception as error:  # noqa: BLE001  (the task's own mistake, mostly: it is told)
            return _line({"error": type(error).__name__, "message": str(error)})


class _Talk(socketserver.StreamRequestHandler):
    """A line for a question, a line for its answer."""

    def handle(self) -> None:
        desk = self.server
        assert isinstance(desk, _Desk)  # noqa: S101  (whose handler this is)
        with contextlib.suppress(OSError):  # a task that was killed as it asked
            # One that is cut off is none: what comes after it would be taken for the next one.
            while (line := self.rfile.readline(_LONGEST)).endswith(b"\n"):
                self.wfile.write(desk.answer(line))


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, default=_plain).encode() + b"\n"


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

    def __init__(self, number: int, address: str, ticket: str) -> None:
        self.number = number
        self.params: dict[str, Any] = {}
        self.user_attrs: dict[str, Any] = {}
        self._address = address
        self._ticket = ticket
        self._connections: deque[tuple[int, Any]] = deque()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_connections": deque()}

    def __getattr__(self, name: str) -> Any:
        """Say what a task's trial has not got."""
        has = ", ".join(["number", "params", "user_attrs", *sorted(_ASKED)])
        msg = f"the trial of a limited task has no {name!r}: that stays in the caller; it has {has}"
        raise AttributeError(msg)

    def _ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        question = _line({"ticket": self._ticket, "name": name, "args": args, "kwargs": kwargs})
        if len(question) > _LONGEST:
            msg = (
                f"{name} has {size_text(len(question))} to tell; {size_text(_LONGEST)} is the most"
            )
            raise ValueError(msg)
        connection = self._connection()
        connection.write(question)
        connection.flush()
        line = connection.readline()
        # Only now: a soft limit that strikes before leaves an answer behind, to the wrong question.
        self._connections.append((os.getpid(), connection))
        if not line:
            msg = "the search that this trial belongs to has ended"
            raise RuntimeError(msg)
        answer = json.loads(line)
        if "error" in answer:
            kind = {"ValueError": ValueError, "TypeError": TypeError}.get(
                answer["error"], RuntimeError
            )
            raise kind(answer["message"])
        return answer["value"]

    def _connection(self) -> Any:
        """Have one that no other thread has, and no process that this one was forked from."""
        while self._connections:
            with contextlib.suppress(IndexError):  # another thread has just taken it
                pid, connection = self._connections.pop()
                if pid == os.getpid():
                    return connection
        with socket.socket(socket.AF_UNIX) as made:
            made.connect(self._address)
            return made.makefile("rwb")  # which keeps it open

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
