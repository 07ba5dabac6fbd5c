"""On the worker: a call of a Dask executor, run by the process's hidden executor, and watched.

What comes of it is Dask's to keep and to move. Its report goes to the client as an event, which
overtakes what Dask itself tells of the same task: both go by one stream, and the event goes first.
"""

from __future__ import annotations

import pickle
import platform
import socket
from dataclasses import dataclass, fields, replace
from itertools import islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from pynisher_exec import __version__
from pynisher_exec.caller.account import never_started
from pynisher_exec.caller.future import AwaitedFuture
from pynisher_exec.caller.item import Item, text_of
from pynisher_exec.decorator import submit_hidden
from pynisher_exec.errors import AnythingException, UnpicklableError
from pynisher_exec.limits import Limits, size_text
from pynisher_exec.protocol import payload
from pynisher_exec.protocol.lineage import Lineage
from pynisher_exec.report import Report, Status
from pynisher_exec.task.assembly import Assembly
from pynisher_exec.task.outcome import line_of
from pynisher_exec.task.private_tmp import new_path
from pynisher_exec.task.run import Call

try:
    from distributed import Reschedule, get_worker
except ImportError as problem:
    _MESSAGE = "pynisher_exec.dask needs distributed: pip install 'pynisher_exec[dask]'"
    raise ImportError(_MESSAGE) from problem

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Options",
    "Sent",
    "WorkerReport",
    "described",
    "mismatch",
    "run",
    "versions",
]

LOOK_EVERY = 0.2
"""Seconds between two looks whether the cluster still wants a task."""

_MOST_STOPS = 3
"""Times that a task which was stopped, and then wanted after all, begins anew."""

_MOST_PARTS, _LONGEST = 100, 1000
"""What is small: parts, and characters of each."""

_AGAIN = (Status.EXCEPTION, Status.OS_ERROR)
"""What the function itself has raised: only that may go better the next time."""


@dataclass(frozen=True)
class WorkerReport(Report):
    """A report, and where the task ran: `worker` is its name in the cluster."""

    worker: str = ""
    host: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As a report's, with these."""
        return {**super().to_dict(), "worker": self.worker, "host": self.host}


class Options(NamedTuple):
    """How calls are run: limits as they were given, since "50%" is of the worker's memory.

    `shares_memory`: the memory limit is the worker's own, divided by its threads.
    """

    limits: dict[str, Any]
    shares_memory: bool
    capture: int
    private_tmp: bool
    retries: int


class Sent(NamedTuple):
    """A call on its way. `segments` is its pickle; `topic` of the events that tell of it."""

    name: str
    segments: list[bytes]
    options: Options
    topic: str
    versions: tuple[str, str]

    def plain(self) -> tuple[Any, ...]:
        """Its form on the way, of Python's own types alone, see `text`."""
        return tuple(self._replace(options=tuple(self.options)))  # type: ignore[arg-type]


def versions() -> tuple[str, str]:
    """Python's, without its last part, and ours: those of client and workers have to agree."""
    return ".".join(platform.python_version_tuple()[:2]), __version__


def described(python: str, version: str | None, why: str = "") -> str:
    """Say what one side has; None: the package cannot be had, and why."""
    package = f"no pynisher_exec ({why})" if version is None else f"pynisher_exec {version}"
    return f"Python {python} and {package}"


def mismatch(worker: str, there: Sequence[Any], client: tuple[str, str]) -> str:
    """Say that a worker and the client do not agree."""
    both = f"{described(*there)}, the client {described(*client)}"
    return f"worker {worker} has {both}: both have to agree"


def run(plain: tuple[Any, ...], values: Sequence[Any]) -> Any:
    """Run it, as often as it may be, and give the value or raise what happened."""
    sent = Sent(*plain)
    sent = sent._replace(options=Options(*sent.options))
    worker = get_worker()
    key = worker.get_current_task()
    if sent.versions != versions():
        message = mismatch(f"{worker.name} at {worker.address}", versions(), sent.versions)
        return _ended(worker, key, sent, _refused(message))
    try:
        limits = _limits(worker, sent.options)
    except ValueError as error:
        return _ended(worker, key, sent, _refused(str(error)))
    tries = stops = 0
    while True:
        report = _watched(worker, key, sent, values, limits)
        if report.status is Status.CANCELLED:
            if _is_going(worker):
                raise Reschedule
            again = _is_wanted(worker, key) and stops < _MOST_STOPS  # anew, since it was stopped
            stops += 1
        else:
            again = report.status in _AGAIN and tries < sent.options.retries
            tries += 1
        if not again:
            return _ended(worker, key, sent, report)


def _limits(worker: Any, options: Options) -> Limits:
    """What the task may have here. ValueError where this worker has not got it."""
    limit = worker.memory_manager.memory_limit
    if options.shares_memory:
        share = max(limit // worker.state.nthreads, 1 << 20) if limit else None
        return Limits(**{**options.limits, "memory": share})
    found = Limits(**options.limits)
    memory = options.limits["memory"]
    if limit and isinstance(memory, str) and memory.rstrip().endswith("%"):
        return replace(found, memory=int(limit * float(memory.rstrip().rstrip("%")) / 100))
    if limit and found.memory is not None and found.memory > limit:
        msg = (
            f"memory limit of {size_text(found.memory)}: worker {worker.name} at {worker.address} "
            f"has {size_text(limit)} in all (its memory_limit)"
        )
        raise ValueError(msg)
    return found


def _refused(message: str) -> Report:
    return never_started(message, None, Status.REFUSED).report


def _watched(worker: Any, key: Any, sent: Sent, values: Sequence[Any], limits: Limits) -> Report:
    """Run it once; ended as soon as the cluster no longer wants it."""
    future: AwaitedFuture[Any] = AwaitedFuture()
    path = new_path() if sent.options.private_tmp else ""
    named: Any = SimpleNamespace(__qualname__=sent.name)
    item = Item(future, Call(named, (), {}), limits, sent.options.capture, private_tmp=path)
    try:
        item.ready = _segments(sent, values)
    except Exception as error:  # noqa: BLE001  (a value's way of being pickled may raise anything)
        return _unpickled(sent, error)
    # At once: who cancels a task that has begun shall wait until its processes are gone.
    worker.log_event(sent.topic, {"key": key, "what": "started"})
    submit_hidden(item, None)
    try:
        while not future.has_ended(LOOK_EVERY):
            if not _is_wanted(worker, key):
                future.cancel()
        return future.wait_for_report()
    finally:
        future.cancel()


def _is_wanted(worker: Any, key: Any) -> bool:
    """Whether the cluster still waits for a task: not once its future is released or cancelled."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state in _WANTED and not _is_going(worker)


_WANTED = {"executing", "long-running"}


def _is_going(worker: Any) -> bool:
    """Whether this worker leaves the cluster: its tasks have to begin anew on another one."""
    return worker.status.name in ("closing", "closed", "failed")


def _segments(sent: Sent, values: Sequence[Any]) -> list[Any]:
    """A call's pickle as it came, with what Dask has brought: nothing of it is loaded here."""
    if not values:
        return list(sent.segments)
    return payload.dump_call((None, Assembly(sent.segments, values)), names=False)


def _unpickled(sent: Sent, error: Exception) -> Report:
    msg = f"what {sent.name} needs of the cluster cannot be pickled: {line_of(error)}"
    lost = UnpicklableError(msg)
    lost.__cause__ = error
    return never_started(msg, lost, Status.EXCEPTION).report


def _ended(worker: Any, key: Any, sent: Sent, report: Report) -> Any:
    """Tell the client; give Dask the value, or raise."""
    error = report.exception
    facts = {each.name: getattr(report, each.name) for each in fields(report)}
    small = error is None and is_small(report.result)
    bare = WorkerReport(
        **{**facts, "result": report.result if small else None, "exception": None},
        worker=str(worker.name),
        host=socket.gethostname(),
    )
    worker.log_event(
        sent.topic,
        {
            "key": key,
            "what": "ended",
            "report": pickle.dumps(bare),
            "whole": small,
            "error": [] if error is None else _dumped(error, report),
        },
    )
    if error is None:
        return report.result
    if _is_harmless(error):
        raise error
    raise AnythingException(report.message)


def _is_harmless(error: BaseException) -> bool:
    """Whether Dask can have it: it makes text of an exception, where no limit holds.

    One that is no Exception would end a thread of the worker's, and so would what its own way to
    become text raises; a Reschedule has Dask run the task once more.
    """
    if not isinstance(error, Exception) or isinstance(error, Reschedule):
        return False
    try:
        _ = str(error), repr(error)
    except BaseException:  # noqa: BLE001  (SystemExit among them)
        return False
    return True


def is_small(value: object) -> bool:
    """Whether a value goes along with its report: a number, a short text, or a few of these."""
    waiting = [value]
    for seen, each in enumerate(waiting):  # grows while it is walked
        kind = type(each)
        if seen == _MOST_PARTS:
            return False
        if kind in (list, tuple):
            waiting += each[:_MOST_PARTS]  # type: ignore[index]
        elif kind is dict:
            waiting += [*islice(each, _MOST_PARTS), *islice(each.values(), _MOST_PARTS)]  # type: ignore[attr-defined,call-overload]
        elif kind in (str, bytes, int):
            length = each.bit_length() // 8 if kind is int else len(each)  # type: ignore[attr-defined,arg-type]
            if length > _LONGEST:
                return False
        elif kind not in (type(None), bool, float):
            return False
    return True


def _dumped(error: BaseException, report: Report) -> list[bytes]:
    """Pickle an exception once more: it has come from its task already, and may not do so twice."""
    try:
        found = payload.dump_outcome(Lineage.of(error) or error, frozenset())
    except BaseException as problem:  # noqa: BLE001  (whatever foreign code makes of that)
        told = f"{report.message} (the exception cannot be pickled again: {text_of(problem)})"
        found = payload.dump_outcome(UnpicklableError(told), frozenset())
    return [bytes(each) for each in found]
