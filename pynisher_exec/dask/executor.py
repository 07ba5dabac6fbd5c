"""The executor on the client: calls go out as Dask's tasks, events and ends come back."""

from __future__ import annotations

import operator
import os
import queue
import secrets
import threading
import weakref
from concurrent.futures import wait as wait_for
from typing import TYPE_CHECKING, Any, TypeVar

from pynisher_exec.caller import arguments
from pynisher_exec.caller.account import never_started
from pynisher_exec.caller.item import name_of, refuse_unfit, text_of
from pynisher_exec.caller.searching import SearchExecutor
from pynisher_exec.dask import text
from pynisher_exec.dask import worker as on_worker
from pynisher_exec.dask.future import LimitedDaskFuture
from pynisher_exec.dask.lines import FAREWELL, Lines
from pynisher_exec.dask.resources import Taken
from pynisher_exec.errors import UnpicklableError
from pynisher_exec.limits import UNSET, Limits, Unset
from pynisher_exec.protocol import payload
from pynisher_exec.report import Status
from pynisher_exec.task.assembly import placeholder

try:
    from distributed import Client, Future
except ImportError as problem:
    _MESSAGE = "pynisher_exec.dask needs distributed: pip install 'pynisher_exec[dask]'"
    raise ImportError(_MESSAGE) from problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import ParamSpec

    P = ParamSpec("P")

__all__ = ["LimitedDaskExecutor"]

T = TypeVar("T")

PROBE_TIME = 10.0
"""Seconds for which an executor that is made waits to hear what the workers have."""


class LimitedDaskExecutor(SearchExecutor):
    """An executor whose tasks run on the workers of a Dask cluster, each as `limited` runs one.

    client: a `distributed.Client`, which stays the caller's to close.
    memory: as of `LimitedProcessExecutor`; left out, a worker's own memory limit divided by its
        threads. "50%" is of that limit. A task whose limit is more than the worker's own
        is `refused`. Of a worker without one (`--memory-limit 0`) there is no share, so no limit,
        and "50%" is of its machine's memory.
    cpu_time, wall_time, processes, grace_period, open_files, file_size, core_size, startup_time,
    capture_output, private_tmp: as there, on the worker.
    retries: how often a call is tried again whose function has raised. A limit, a crash or an exit
        never is; a task whose worker was lost always, as often as the scheduler allows
        (`distributed.scheduler.allowed-failures`).
    memory_resource: name of a resource of the workers that counts bytes (`dask worker --resources
        "MEMORY=16e9"`), of which each task takes its memory limit, in bytes, while it runs; one
        that is more than any worker has is `refused`.
    workers, resources, priority: as of `Client.submit`. Resources of which no worker has as much
        are `refused`, too, where Dask would wait for one that has.

    Raises ValueError or TypeError for what is no limit, and RuntimeError, which names both sides,
    for a client that is closed and for a worker whose Python or pynisher_exec is another.

    A worker's memory monitor sees the worker alone, not the tasks' processes: it neither pauses nor
    kills for these, and the limits keep their sum below the worker's.
    """

    def __init__(
        self,
        client: Client,
        *,
        memory: int | str | Unset | None = UNSET,
        cpu_time: float | str | None = None,
        wall_time: float | str | None = None,
        processes: int | None = None,
        grace_period: float | str | None = None,
        open_files: int | None = None,
        file_size: int | str | None = None,
        core_size: int | str | None = None,
        startup_time: float | str = 60.0,
        capture_output: bool | int | str = False,
        private_tmp: bool = False,
        retries: int = 0,
        memory_resource: str | None = None,
        workers: Any = None,
        resources: Mapping[str, float] | None = None,
        priority: int = 0,
    ) -> None:
        limits = {
            "memory": memory,
            "cpu_time": cpu_time,
            "wall_time": wall_time,
            "processes": processes,
            "grace_period": grace_period,
            "open_files": open_files,
            "file_size": file_size,
            "core_size": core_size,
            "startup_time": startup_time,
        }
        capture = arguments.capture_bound(capture_output)
        options = _options(limits, capture, private_tmp=private_tmp, retries=retries)
        self._given = dict(resources or {}), memory_resource
        self._taken = Taken(*self._given, options.limits["memory"])
        _check(client)
        self._client: Any = client  # most of it has no types
        self._options = options
        self._wishes = {"workers": _names(workers), "priority": _whole("priority", priority)}
        self._lines = Lines(client)
        self._mine: set[LimitedDaskFuture[Any]] = set()
        self._shut = False
        self._pid = os.getpid()
        weakref.finalize(self, self._lines.close).atexit = False

    @property
    def max_workers(self) -> int:
        """How many tasks the cluster runs at once, as it is now."""
        return sum(self._client.nthreads().values())

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> LimitedDaskFuture[T]:
        """Have `fn(*args, **kwargs)` run on a worker, in a process of its own.

        What stands for a value in the cluster, by `share`, `client.scatter` or as the future of a
        task, may be an argument, or lie in one at any depth. A call that cannot be pickled fails
        its own future. RuntimeError after `shutdown`, and where the client is closed.
        """
        self._check_taking()
        _check_open(self._client)
        future: LimitedDaskFuture[T] = LimitedDaskFuture()
        try:
            refuse_unfit(fn)
            segments, brought = _packed(fn, args, kwargs)
        except (TypeError, UnpicklableError) as error:
            return _unsent(future, str(error), error, Status.EXCEPTION)
        if refusal := self._taken.refusal(self._client):
            return _unsent(future, refusal, None, Status.REFUSED)
        name = name_of(fn)
        versions = on_worker.versions()
        sent = on_worker.Sent(name, segments, self._options, self._lines.topic, versions)
        given = {"sent": sent.plain(), "values": brought, "client": on_worker.described(*versions)}
        # Dask shows a key up to its last dash; no two of ours are the same.
        shown = name.replace("<", "").replace(">", "").encode(errors="replace").decode()
        key = f"{shown}-{secrets.token_hex(16)}"
        future.needs = brought
        try:
            self._lines.expect(key, future)
            self._note(future)
            future.dask_future = self._client.submit(
                eval,
                text.CALL,
                given,
                key=key,
                pure=False,
                resources=self._taken.resources,
                **self._wishes,
            )
            self._lines.follow(key, future)
        except BaseException:  # a client that closes just now, an interrupt
            self._lines.drop(key)
            future.cancel_if_pending()
            raise
        return future

    def _check_taking(self) -> None:
        if os.getpid() != self._pid:
            msg = "this executor belongs to the process that this one was forked from: make another"
            raise RuntimeError(msg)
        if self._shut:
            msg = "cannot schedule new futures after shutdown"
            raise RuntimeError(msg)

    def _note(self, future: LimitedDaskFuture[Any]) -> None:
        """A task is submitted here."""
        self._mine.add(future)
        future.add_done_callback(self._mine.discard)

    def limit(self, *, capture_output: bool | int | str | Unset = UNSET, **limits: Any) -> _View:
        """Give an executor over the same cluster with other limits; the others are inherited.

        None removes a limit. Its `shutdown` concerns only what went through it.
        """
        options = self._options
        capture = options.capture
        if not isinstance(capture_output, Unset):
            capture = arguments.capture_bound(capture_output)
        given = {"memory": UNSET} if options.shares_memory else {}
        changed = _options(
            {**options.limits, **given, **limits},
            capture,
            private_tmp=options.private_tmp,
            retries=options.retries,
        )
        return _View(self, changed)

    def share(self, thing: T) -> Future[T]:
        """Give an object to the cluster once; what comes back stands for it in calls.

        `client.scatter`: it goes to one worker, and to others as their tasks need it.
        """
        # In a list: of a dict or a list it would scatter what is in there, under keys of its own.
        [found] = self._client.scatter([thing], hash=False)
        handle: Future[T] = found
        return handle

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more tasks; wait for those there are, unless told not to, or cancel pending."""
        self._shut = True
        if os.getpid() != self._pid:
            return
        mine = list(self._mine)
        if cancel_futures:
            for future in mine:
                future.cancel_if_pending()
        if wait and not self._lines.serves_here:  # in a callback: nobody else would resolve them
            wait_for(mine)
        self._end(wait=wait)

    def _end(self, *, wait: bool) -> None:
        self._lines.close()
        if wait and self._client.status == "running":
            self._lines.join(FAREWELL)

    def terminate_workers(self) -> None:
        """As `kill_workers`: the cluster's workers are not ours to be told of it first."""
        self.kill_workers()

    def kill_workers(self) -> None:
        """Cancel all that was submitted here, and end what of it runs. Does not wait."""
        self._shut = True
        for future in list(self._mine):
            future.cancel()


class _View(LimitedDaskExecutor):
    """Other limits, same cluster, same lines."""

    def __init__(self, parent: LimitedDaskExecutor, options: on_worker.Options) -> None:
        self.__dict__.update(vars(parent))
        self._parent = parent  # which keeps the lines
        self._options = options
        self._taken = Taken(*self._given, options.limits["memory"])
        self._mine = set()

    def _check_taking(self) -> None:
        super()._check_taking()
        self._parent._check_taking()  # noqa: SLF001  (its own kind)

    def _note(self, future: LimitedDaskFuture[Any]) -> None:
        """The parent waits for it, and ends it, too."""
        super()._note(future)
        self._parent._note(future)  # noqa: SLF001

    def _end(self, *, wait: bool) -> None:
        """The lines are the parent's to end."""


# -- what goes out --------------------------------------------------------------------------------


def _options(
    limits: dict[str, Any], capture: int, *, private_tmp: bool, retries: int
) -> on_worker.Options:
    tries = _whole("retries", retries)
    if tries < 0:
        msg = f"retries={retries!r} must be an int, 0 or more"
        raise ValueError(msg)
    shares = isinstance(limits.get("memory"), Unset)
    given = {**limits, "memory": None} if shares else limits
    checked = Limits().changed(**given)  # what is no limit is told here
    plain = {
        name: value if isinstance(value, str) else getattr(checked, name)  # "50%" is of a worker's
        for name, value in given.items()
    }
    return on_worker.Options(plain, shares, capture, bool(private_tmp), tries)


def _whole(name: str, value: Any) -> int:
    if not hasattr(value, "__index__"):
        msg = f"{name}={value!r} must be an int"
        raise TypeError(msg)
    return operator.index(value)


def _names(workers: Any) -> Any:
    """What `Client.submit` takes; TypeError for what is no name or address, nor several."""
    listed = [workers] if isinstance(workers, str) else workers
    if listed is not None and not (
        isinstance(listed, (list, tuple, set)) and all(isinstance(each, str) for each in listed)
    ):
        msg = f"workers={workers!r} must be a worker's name or address, or a list of these"
        raise TypeError(msg)
    return workers


def _unsent(
    future: LimitedDaskFuture[T], message: str, error: Exception | None, status: Status
) -> LimitedDaskFuture[T]:
    answer = never_started(message, error, status)
    future.conclude(answer.report, answer.error, cancelled=False)
    return future


def _packed(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[bytes], list[Future[Any]]]:
    """A call's pickle, and what lies in the cluster of what it needs, in order of its places."""
    brought: list[Future[Any]] = []
    places: dict[Any, int] = {}

    def put_aside(future: Future[Any]) -> tuple[Any, tuple[int]]:
        place = places.setdefault(future.key, len(brought))
        if place == len(brought):
            brought.append(future)
        return placeholder, (place,)

    def put_ours_aside(future: LimitedDaskFuture[Any]) -> tuple[Any, tuple[int]]:
        if future.dask_future is None:
            msg = f"an argument has no value in the cluster: {future!r} was not sent"
            raise TypeError(msg)
        return put_aside(future.dask_future)

    aside = {Future: put_aside, LimitedDaskFuture: put_ours_aside}
    try:
        segments = payload.dump_call((None, (fn, args, kwargs)), aside, names=False)
    except Exception as error:  # whatever foreign code makes of that
        msg = f"the call of {name_of(fn)} cannot be pickled: {type(error).__name__}: "
        raise UnpicklableError(msg + text_of(error)[:500]) from error
    return [bytes(each) for each in segments], brought


def _check(client: Client) -> None:
    if not isinstance(client, Client):
        msg = f"client={client!r} is no distributed.Client"  # type: ignore[unreachable]
        raise TypeError(msg)
    _check_open(client)
    if client.asynchronous:
        msg = f"the client is asynchronous, and this executor waits for its answers: {client!r}"
        raise TypeError(msg)
    ours = on_worker.versions()
    for address, found in _on_all(client).items():
        if isinstance(found, OSError):
            continue  # a worker that has just left; one that comes later is looked at by its tasks
        if isinstance(found, Exception):
            raise found
        if found[:2] != ours:
            raise RuntimeError(on_worker.mismatch(address, found, ours))


def _on_all(client: Any) -> dict[str, Any]:
    """What each worker has; of one that does not answer in time its own tasks will say it."""
    answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(client.run(eval, text.LOOK, {}, on_error="return"))
        except Exception as error:  # noqa: BLE001  (told as any worker's)
            answers.put({"": error})

    threading.Thread(target=ask, name="pynisher_exec dask", daemon=True).start()
    try:
        return answers.get(timeout=PROBE_TIME)
    except queue.Empty:
        return {}


def _check_open(client: Client) -> None:
    if client.status != "running":
        msg = f"the client is {client.status}: {client!r}"
        raise RuntimeError(msg)
