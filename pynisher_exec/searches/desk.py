"""What a task asks of its trial, and the caller's desk that answers it.

Any study will do that has trials with such methods; what travels is names and JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import socketserver
import tempfile
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynisher_exec.limits import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Desk", "LimitedTrial"]

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


class Desk(socketserver.ThreadingUnixStreamServer):
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
        assert isinstance(desk, Desk)  # noqa: S101  (whose handler this is)
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
