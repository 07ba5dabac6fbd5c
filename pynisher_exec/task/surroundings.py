"""What the caller had around it when it submitted a call, and how the task takes it on.

At the submit: current directory, environment, `sys.path`, `sys.argv`. At the dispatch: umask, soft
rlimits, CPU affinity, nice value; of the process, which for the last two is its main thread.
An unchanged snapshot is shared between calls, pickled once.
"""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import pickle
import resource
import sys
import time
import types
from typing import Any, NamedTuple

from pynisher_exec.kernel import proc

__all__ = [
    "Momentary",
    "Surroundings",
    "become_fresh_process",
    "begin_with",
    "end_imports",
    "end_of_call",
    "hard_limits",
    "momentary",
    "note_imports",
    "note_own",
    "noted",
    "open_standard_streams",
    "put_on",
    "put_on_momentary",
    "snapshot",
]

_TRACKERS = (
    "multiprocessing.resource_tracker",
    "loky.backend.resource_tracker",
    "joblib.externals.loky.backend.resource_tracker",
)
_RLIMITS = sorted({number for name, number in vars(resource).items() if name.startswith("RLIMIT_")})


_THREADS = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMBA", "NUMEXPR")
"""Whose `_NUM_THREADS` bounds the thread pools of numeric libraries, as joblib sets them."""


class Surroundings(NamedTuple):
    """What a submit captures. `directory` is None where the caller's had been deleted.

    `environment` is what the task gets, `own` what of it is the caller's.
    """

    directory: str | None
    environment: dict[bytes, bytes]
    path: list[str]
    arguments: list[str]
    pickled: bytes
    own: dict[bytes, bytes]


class Momentary(NamedTuple):
    """What a dispatch captures."""

    umask: int
    soft_limits: tuple[tuple[int, int], ...]
    affinity: tuple[int, ...]
    nice: int


_set_by_imports: dict[bytes, bytes] = {}
"""In a template, and so in each task: variables that what it imported ahead has set."""

_latest: dict[int, Surroundings] = {}
"""In the caller: the last snapshot for each number of threads."""

_own: Momentary | None = None
_worn: tuple[bytes, str | None] = b"", None
"""In a supervisor, and so in each task at its start: what this process has already."""


def snapshot(threads: int = 0) -> Surroundings:
    """Capture what a submit captures; the last snapshot where nothing changed.

    With `threads`, numeric libraries are told to use that many, where the caller says nothing.
    """
    try:
        directory = os.getcwd()
    except FileNotFoundError:
        directory = None
    latest, environment, path, arguments = (
        _latest.get(threads),
        _environment(),
        sys.path,
        _arguments(),
    )
    if (
        latest is not None
        and latest.directory == directory
        and latest.path == path
        and latest.arguments == arguments
        and latest.own == environment
    ):
        return latest
    own, path, arguments = dict(environment), list(path), list(arguments)
    # OpenBLAS and MKL look there where nobody has told them by their own names.
    count = own.get(b"OMP_NUM_THREADS", b"%d" % threads)
    bounded = threads and count.isdigit()
    bounds = {f"{name}_NUM_THREADS".encode(): count for name in _THREADS if bounded}
    environment = {**bounds, **own}
    pickled = pickle.dumps((directory, environment, path, arguments), protocol=5)
    _latest[threads] = Surroundings(directory, environment, path, arguments, pickled, own)
    return _latest[threads]


def _arguments() -> list[str]:
    return getattr(sys, "argv", [])  # an interpreter embedded in a program may have none


def _environment() -> dict[bytes, bytes]:
    """The environment as bytes: `os.environ`'s own dict; its public face decodes each item.

    What somebody has put in the place of `os.environ`, as tests do, counts as what it holds.
    """
    data: object = getattr(os.environ, "_data", None)
    if isinstance(data, dict):
        return data
    return {os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}


def momentary() -> Momentary:
    """Capture what may change between the submit and the dispatch.

    Zero would be the calling thread, which keeps what its maker had when it was started; the pid
    is the main thread, and what taskset(1) and renice(1) change by it.
    """
    pid = os.getpid()
    return Momentary(
        umask=proc.umask(),
        soft_limits=tuple([(kind, resource.getrlimit(kind)[0]) for kind in _RLIMITS]),
        affinity=tuple(sorted(os.sched_getaffinity(pid))),
        nice=os.getpriority(os.PRIO_PROCESS, pid),
    )


def note_own() -> None:
    """Remember what this process has, so that a task forked from it need not ask again."""
    global _own  # noqa: PLW0603  (of this process, as what it describes)
    _own = momentary()


def noted() -> Momentary:
    """What `note_own` has noted, asked for where it has not."""
    return _own or momentary()


def begin_with(pickled: bytes) -> None:
    """Take on environment, `sys.path` and `sys.argv` in the process from which tasks are forked."""
    global _worn  # noqa: PLW0603  (as `_own`)
    _worn = pickled, _wear(pickled)


def note_imports() -> None:
    """After the imports ahead: keep in mind what variables they have set, put back what is gone."""
    before: dict[bytes, bytes] = pickle.loads(_worn[0])[1]  # from the caller
    now = _environment()
    _set_by_imports.update({k: v for k, v in now.items() if before.get(k) != v})
    os.environb.update({k: v for k, v in before.items() if k not in now})


def put_on(pickled: bytes | bytearray, *, forked: bool) -> None:
    """Take on directory, environment, time zone, `sys.path` and `sys.argv`.

    `forked` from the caller, a task is in a directory already that has been deleted.

    Raises FileNotFoundError or another OSError when the directory is not there for this process.
    """
    directory = _worn[1] if pickled == _worn[0] else _wear(pickled)
    if directory is None and forked:
        return
    if directory is None:
        msg = "the caller's current directory had been deleted when the call was submitted"
        raise FileNotFoundError(msg)
    os.chdir(directory)


def _wear(pickled: bytes | bytearray) -> str | None:
    """All but the directory, which is given back."""
    directory: str | None
    directory, environment, path, arguments = pickle.loads(pickled)  # from the caller
    environment = {**_set_by_imports, **environment}
    if environment != _environment():
        os.environb.clear()
        os.environb.update(environment)
        time.tzset()
    sys.path[:], sys.argv[:] = path, arguments
    return directory


def open_standard_streams() -> None:
    """Where the caller, or a function, has closed its own: open them on nothing, to have them."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:  # as the interpreter leaves it
            errors = "backslashreplace" if number == 2 else "strict"  # noqa: PLR2004  (stderr)
            setattr(sys, name, open(number, mode, errors=errors, closefd=False))  # noqa: SIM115


def hard_limits() -> list[int]:
    """The hard rlimits of this process, each of which it can only lower."""
    return [resource.getrlimit(kind)[1] for kind in _RLIMITS]


def end_of_call() -> None:
    """Another call comes to this process, and what that one brings is put on whole.

    Descriptors are received before that, so the rlimits are those of the beginning at once.
    """
    global _worn  # noqa: PLW0603  (as `_own`)
    _worn = b"", None
    if _own is not None:
        _put_on_momentary(_own)


def put_on_momentary(values: Momentary) -> None:
    """Take on umask, soft rlimits, affinity and nice value as far as this process may."""
    if values != _own:
        _put_on_momentary(values)


def _put_on_momentary(values: Momentary) -> None:
    os.umask(values.umask)
    for kind, soft in values.soft_limits:
        own_soft, hard = resource.getrlimit(kind)
        if soft != own_soft:
            with contextlib.suppress(OSError, ValueError):  # a hard limit below it stands
                resource.setrlimit(kind, (soft, hard))
    if set(values.affinity) != os.sched_getaffinity(0):
        with contextlib.suppress(OSError):  # a CPU that went offline
            os.sched_setaffinity(0, values.affinity)
    if values.nice != os.getpriority(os.PRIO_PROCESS, 0):
        with contextlib.suppress(OSError):  # lowering needs CAP_SYS_NICE
            os.setpriority(os.PRIO_PROCESS, 0, values.nice)


def become_fresh_process(*, keep_main: bool) -> None:
    """Make multiprocessing and `__main__` those of a process just started.

    `keep_main`: this process has been forked from the caller, whose `__main__` the call refers to.
    """
    _reset_multiprocessing()
    if not keep_main:
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = sys.modules["__mp_main__"] = main  # as multiprocessing has them


def end_imports() -> None:
    """In a fork of the caller, what one of its threads was importing counts as imported.

    That thread is not here, and pickling by name would wait for the module's lock.
    """
    for module in list(sys.modules.values()):
        spec: Any = getattr(module, "__dict__", {}).get("__spec__")
        if getattr(spec, "_initializing", False):
            spec._initializing = False  # noqa: SLF001


class _MainProcess(multiprocessing.process.BaseProcess):
    """What `multiprocessing.current_process()` is in a process that it did not start.

    multiprocessing has such a class, and deletes it after its one use.
    """

    def __init__(self, authkey: bytes) -> None:
        self._identity = ()
        self._name = "MainProcess"
        self._parent_pid = None
        self._popen = None
        self._closed = False
        kind = type(multiprocessing.process.current_process().authkey)
        self._config = {"authkey": kind(authkey), "semprefix": "/mp"}


def _reset_multiprocessing() -> None:
    """A task is no daemonic child of anybody's: it may start processes, and cleans up after itself.

    The authentication key is kept, so that proxies of the caller's managers work here. The
    resource trackers are forgotten, not inherited: the task's own are part of its tree.
    """
    process: Any = multiprocessing.process
    process._current_process = _MainProcess(process.current_process().authkey)  # noqa: SLF001
    process._parent_process = None  # noqa: SLF001
    process._children = set()  # noqa: SLF001
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._finalizer_registry.clear()  # noqa: SLF001
    for name in _TRACKERS:
        module = sys.modules.get(name)
        if module is not None:
            module._resource_tracker._fd = None  # noqa: SLF001
            module._resource_tracker._pid = None  # noqa: SLF001


def adopt_main_names(names: dict[str, Any]) -> None:
    """Make what travelled from the caller's `__main__` findable by name in this task's."""
    vars(sys.modules["__main__"]).update(names)
