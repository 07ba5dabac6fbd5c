"""What comes back of an executor's tasks: events of its workers, and Dask's own word of an end."""

from __future__ import annotations

import contextlib
import functools
import pickle
import queue
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from pynisher_exec.caller.account import never_started
from pynisher_exec.caller.at_exit import ClosedAtExit
from pynisher_exec.caller.item import text_of
from pynisher_exec.dask import text
from pynisher_exec.errors import UnpicklableError
from pynisher_exec.protocol import payload
from pynisher_exec.protocol.lineage import Lineage
from pynisher_exec.report import Report, Status
from pynisher_exec.task.outcome import line_of

if TYPE_CHECKING:
    from pynisher_exec.dask.future import LimitedDaskFuture

__all__ = ["FAREWELL", "Lines"]

STOP_TIME = 10.0
"""Seconds that a worker may take to tell that a cancelled task has gone; it may be lost."""

FAREWELL = 5.0
"""Seconds that Dask has to say of all tasks that they have ended, before nobody listens."""

MOST_KEPT = 1 << 24
"""Bytes of reports and exceptions that have been heard, and that the scheduler may have still."""


class _News(NamedTuple):
    key: str
    what: str
    facts: Any = None


class Lines:
    """What comes back of an executor's tasks, told to their futures by one thread.

    Not by Dask's: a user's callback may take its time, or ask the cluster something.
    """

    def __init__(self, client: Any) -> None:
        self.topic = f"pynisher_exec-{secrets.token_hex(16)}"
        self._client = client
        self._open: dict[str, LimitedDaskFuture[Any]] = {}
        self._stopping: dict[str, float] = {}
        self._unheard: set[str] = set()
        self._news: queue.SimpleQueue[_News | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        self._lock = threading.RLock()  # a signal handler may submit in the midst of this
        self._has_ended = False
        self._connection: Any = None
        self._kept = 0
        _all_lines.add(self)

    def expect(self, key: str, future: LimitedDaskFuture[Any]) -> None:
        """A call is about to be sent. RuntimeError once no more may come."""
        with self._lock:
            if self._has_ended:
                msg = "cannot schedule new futures after shutdown"
                raise RuntimeError(msg)
            self._subscribe()
            if self._thread is None:
                thread = threading.Thread(target=self._tell, name="pynisher_exec dask", daemon=True)
                thread.start()
                self._thread = thread
            future.entrust(self._thread.ident)  # which refuses to wait for itself
            self._open[key] = future

    def _subscribe(self) -> None:
        """Hear the workers, once for each connection: another scheduler knows of no listener."""
        connection = self._client.scheduler_comm
        if connection is not self._connection:
            self._client.subscribe_topic(self.topic, functools.partial(_heard, self._news))
            self._connection = connection

    def drop(self, key: str) -> None:
        """It could not be sent, or somebody was interrupted who was about to."""
        self._open.pop(key, None)
        self._unheard.discard(key)
        self._news.put(None)

    @property
    def serves_here(self) -> bool:
        """Whether this is the thread that resolves all futures, in a callback then."""
        return self._thread is threading.current_thread()

    def follow(self, key: str, future: LimitedDaskFuture[Any]) -> None:
        """It has been sent."""
        future.add_done_callback(self._when_cancelled)
        self._unheard.add(key)
        dask_future: Any = future.dask_future
        dask_future.add_done_callback(lambda ended: self._news.put(_News(key, "closed", ended)))

    def _when_cancelled(self, future: Any) -> None:
        if future.cancelled():
            future.let_go()

    def close(self) -> None:
        """No more calls come; the thread ends with the last one."""
        with self._lock:
            self._has_ended = True
        self._news.put(None)

    def join(self, timeout: float | None = None) -> None:
        """Wait until all futures are done, and Dask has said so: after `close`.

        An event of a worker's overtakes Dask's word. To a process that exits, or closes the client,
        in between, Dask would tell it by a thread of its own that is gone, with a traceback.
        """
        thread = self._thread
        # By an event of our own: see `Pool.join`.
        if thread is not None and not self.serves_here and self._done.wait(timeout):
            thread.join()

    def kill(self) -> None:
        """Take no more, and cancel what is not done yet."""
        self.close()
        for future in list(self._open.values()):
            future.cancel()

    def forget(self) -> None:
        """In a fork of this process: the executor refuses it there. Others may have held these."""
        self._thread = None
        self._lock = threading.RLock()
        self._news = queue.SimpleQueue()

    # -- the thread ------------------------------------------------------------------------------

    def _tell(self) -> None:
        try:
            self._serve()
        finally:
            self._done.set()

    def _serve(self) -> None:
        while self._goes_on():
            self._take_next(min(self._stopping.values(), default=None))
            self._give_up_late()
        late = time.monotonic() + FAREWELL
        while self._unheard and time.monotonic() < late:
            self._take_next(late)
        self._unsubscribe()

    def _unsubscribe(self) -> None:
        """Leave nothing of this behind, with the client or the scheduler."""
        with contextlib.suppress(Exception):  # a client that is closed has dropped it
            self._client.subscribe_topic(self.topic, _ignore)  # it is kept, and this is small
            self._client.unsubscribe_topic(self.topic)
            self._have_forgotten()

    def _have_forgotten(self) -> None:
        """Have the scheduler drop what has been heard: what tasks wrote and raised may be large."""
        self._kept = 0
        if self._client.status == "running":
            with contextlib.suppress(Exception):  # one that runs nothing for us, or not just now
                self._client.run_on_scheduler(eval, text.FORGET, {"topic": self.topic})

    def _goes_on(self) -> bool:
        with self._lock:  # what is expected comes before the end, or is refused
            return bool(self._open) or not self._has_ended

    def _take_next(self, late: float | None) -> None:
        """Wait for a piece of news, and hold none meanwhile: a future in it keeps its value."""
        wait = None if late is None else max(0.0, late - time.monotonic())
        with contextlib.suppress(queue.Empty):
            news = self._news.get(timeout=wait)
            if news is not None:
                self._take_safely(news)

    def _take_safely(self, news: _News) -> None:
        """Foreign code runs as its exceptions are loaded, and all futures rely on this thread."""
        try:
            self._take(news)
        except BaseException as problem:  # noqa: BLE001  (SystemExit as well)
            answer = never_started(f"its end cannot be told: {line_of(problem)}", None, _LOST)
            self._conclude(news.key, answer.report, answer.error)

    def _take(self, news: _News) -> None:
        if news.what == "closed":
            self._unheard.discard(news.key)
        future = self._open.get(news.key)
        if future is None:
            return
        if news.what == "started":
            future.begin(functools.partial(self._news.put, _News(news.key, "stop")))
        elif news.what == "stop":
            self._stopping[news.key] = time.monotonic() + STOP_TIME
            future.let_go()
        elif news.what == "ended":
            future.is_here = news.facts["whole"]
            self._conclude(news.key, *_outcome(news.facts))
            self._count(news.facts)
        elif news.key not in self._stopping:  # closed, and the worker has said nothing
            self._conclude(news.key, *_unsaid(news.facts, future.needs))

    def _count(self, facts: dict[str, Any]) -> None:
        self._kept += sum(map(len, [facts["report"], *facts["error"]]))
        if self._kept > MOST_KEPT:
            self._have_forgotten()

    def _give_up_late(self) -> None:
        now = time.monotonic()
        for key in [key for key, late in self._stopping.items() if late <= now]:
            message = "cancelled; its worker has not told its end: lost, or others still want it"
            report = Report(Status.CANCELLED, message=message)
            self._conclude(key, report, None)

    def _conclude(self, key: str, report: Report, error: BaseException | None) -> None:
        self._stopping.pop(key, None)
        future = self._open.pop(key, None)
        if future is not None:
            future.needs = []  # they may be large
            future.conclude(report, error, cancelled=report.status is Status.CANCELLED)


def _ignore(_event: tuple[float, dict[str, Any]]) -> None:
    pass


def _heard(news: queue.SimpleQueue[_News | None], event: tuple[float, dict[str, Any]]) -> None:
    facts = event[1]
    news.put(_News(facts["key"], facts["what"], facts))


def _outcome(facts: dict[str, Any]) -> tuple[Report, BaseException | None]:
    """Report and exception, as a worker has sent them."""
    report: Report = pickle.loads(facts["report"])
    if not facts["error"]:
        return report, None
    error: Any
    try:
        error = payload.load_outcome(facts["error"])
        if isinstance(error, Lineage):
            error = error.restore()
    except BaseException as problem:  # noqa: BLE001  (whatever foreign code makes of that)
        error = UnpicklableError(f"the exception cannot be loaded: {text_of(problem)}")
    object.__setattr__(report, "exception", error)  # not seen by anybody yet
    return report, error


def _unsaid(ended: Any, needs: list[Any]) -> tuple[Report, BaseException | None]:
    """What to make of an end that no worker has told: Dask says why."""
    if ended.status == "finished":  # its value is there all the same
        return Report(Status.OK, message="the report of its worker was lost on the way"), None
    if ended.status == "error":
        problem = ended.exception()
        if any(each.status == "error" for each in needs):
            message = f"the task of an argument failed: {line_of(problem)}"
            return Report(Status.EXCEPTION, exception=problem, message=message), problem
        lost = type(problem).__name__ == "KilledWorker"
        status = Status.SUPERVISOR_LOST if lost else Status.STARTUP
        what = "its worker was lost, again and again" if lost else "Dask could not run it"
        answer = never_started(f"{what}: {text_of(problem)}", problem, status)
    else:
        why = "an argument was cancelled" if any(map(_is_cancelled, needs)) else _reason(ended)
        answer = never_started(f"the cluster has let go of the task: {why}", None, _LOST)
    return answer.report, answer.error


_LOST = Status.TRANSFER


def _is_cancelled(dask_future: Any) -> bool:
    return bool(dask_future.status == "cancelled")


def _reason(ended: Any) -> str:
    """What Dask says of a task that nobody will run, where it says something."""
    reason = ""
    try:
        ended.result(FAREWELL)
    except BaseException as error:  # noqa: BLE001  (asyncio's CancelledError, or a closed client's)
        reason = getattr(error, "reason", "")
    return _REASONS.get(reason, "by client.cancel, or its own future, or as the client was closed")


_REASONS = {
    "scheduler-connection-lost": "the connection to the scheduler was lost",
    "scheduler-restart": "the cluster was restarted",
}


_all_lines = ClosedAtExit()
