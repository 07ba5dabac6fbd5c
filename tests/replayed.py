"""What the replay calls, through either library: function kinds, endings, and a driver for 0.6.4.

Run as a program (`serve`), it is the driver: it makes calls through pynisher 0.6.4, each in a
process group of its own that is killed when the call has ended or has taken too long, since 0.6.4
hangs at times and leaves processes behind. It reads and writes pickles.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pickle
import select
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = tuple[Any, ...]
HUNG: Answer = ("hung",)
"""In place of value, exit status, exit code and errno."""

LOCK = threading.Lock()
REASON = "reason"


class Spec(NamedTuple):
    """A call: how it is made, what the function does, under which limits."""

    kind: str
    ending: str
    argument: Any = None
    limits: tuple[tuple[str, Any], ...] = ()
    context: str | None = None
    """Ours only: 0.6.4 forks."""
    caller: str = ""
    """What the caller does meanwhile: "holds memory", "holds a lock", "called before"."""


# Endings -----------------------------------------------------------------------------------------


def end(ending: str, argument: Any, library: str) -> Any:
    """End in that way."""
    return ENDINGS[ending](argument, library)


def _value(argument: Any, _: str) -> Any:
    return argument


def _large(count: int, _: str) -> bytes:
    return b"x" * count


def _raise(name: str, _: str) -> NoReturn:
    raise getattr(importlib.import_module("builtins"), name)(REASON)


def _raise_os_error(number: int | None, _: str) -> NoReturn:
    raise OSError("reason") if number is None else OSError(number, "reason")


def _raise_of_library(name: str, library: str) -> NoReturn:
    raise getattr(importlib.import_module(library), name)(REASON)


def _sys_exit(code: Any, _: str) -> NoReturn:
    sys.exit(code)


def _os_exit(code: int, _: str) -> NoReturn:
    os._exit(code)


def _kill(number: int, _: str) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def _hold(mebibytes: int, _: str) -> int:
    return len(bytearray(mebibytes << 20))


def _map(mebibytes: int, _: str) -> int:
    import mmap  # noqa: PLC0415

    with mmap.mmap(-1, mebibytes << 20) as memory:
        return len(memory)


def _recurse(argument: int, library: str) -> Any:
    return _recurse(argument + 1, library)


def _thread(argument: Any, _: str) -> list[Any]:
    found: list[Any] = []
    thread = threading.Thread(target=found.append, args=(argument,))
    thread.start()
    thread.join()
    return found


def _child(code: int, _: str) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _children_hold(mebibytes: int, _: str) -> str:
    """Four children hold so much each, for a second, all at once."""
    ready, tell = os.pipe()
    pids = []
    for _number in range(4):
        pid = os.fork()
        if pid == 0:
            memory = bytearray(mebibytes << 20)
            os.write(tell, b"x")
            time.sleep(60)
            os._exit(len(memory) & 1)
        pids.append(pid)
    for _number in pids:
        os.read(ready, 1)
    time.sleep(1)  # what a limit may take to be held
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return "held"


def _fork_at_once(count: int, _: str) -> int:
    """Have so many children at once."""
    keep, release = os.pipe()
    pids = []
    try:
        for _number in range(count):
            pid = os.fork()
            if pid == 0:
                os.close(release)
                os.read(keep, 1)
                os._exit(0)
            pids.append(pid)
    finally:
        os.close(release)
        for pid in pids:
            os.waitpid(pid, 0)
    return len(pids)


def _sleep(_argument: Any, _: str) -> str:
    time.sleep(60)
    return "slept"


def _sleep_until_told(argument: Any, library: str) -> Any:
    try:
        time.sleep(60)
    except importlib.import_module(library).TimeoutException:
        return argument


def _burn(_argument: Any, _: str) -> NoReturn:
    while True:
        pass


def _burn_until_told(argument: Any, library: str) -> Any:
    try:
        _burn(argument, library)
    except importlib.import_module(library).CpuTimeoutException:
        return argument


def _burn_on(argument: Any, library: str) -> NoReturn:
    _burn_until_told(argument, library)
    while True:
        with contextlib.suppress(Exception):
            _burn(argument, library)


def _ignore(_argument: Any, _: str) -> NoReturn:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)


def _stop(_argument: Any, _: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


def _lock_value(_argument: Any, _: str) -> Any:
    return threading.Lock()


class FailsWhenLoaded:
    """A value that pickles, and raises where it arrives."""

    def __reduce__(self) -> tuple[Callable[[Any, str], NoReturn], tuple[str, str]]:
        return _raise, ("LookupError", "")


def _unloadable(_argument: Any, _: str) -> FailsWhenLoaded:
    return FailsWhenLoaded()


def _exit_with_orphan(code: int, _: str) -> NoReturn:
    """Leave a process behind that has all descriptors."""
    if os.fork() == 0:
        time.sleep(60)
    os._exit(code)


def _take_lock(_argument: Any, _: str) -> bool:
    with LOCK:
        return True


ENDINGS: dict[str, Callable[[Any, str], Any]] = {
    "value": _value,
    "large": _large,
    "raise": _raise,
    "os error": _raise_os_error,
    "raise of library": _raise_of_library,
    "sys.exit": _sys_exit,
    "os._exit": _os_exit,
    "kill": _kill,
    "hold": _hold,
    "map": _map,
    "recurse": _recurse,
    "thread": _thread,
    "child": _child,
    "children hold": _children_hold,
    "fork at once": _fork_at_once,
    "sleep": _sleep,
    "sleep until told": _sleep_until_told,
    "burn": _burn,
    "burn until told": _burn_until_told,
    "burn on": _burn_on,
    "ignore": _ignore,
    "stop": _stop,
    "lock": _lock_value,
    "unloadable": _unloadable,
    "orphan": _exit_with_orphan,
    "take lock": _take_lock,
}


# Function kinds ----------------------------------------------------------------------------------


class Ender:
    """Ends in its way, as a callable object or by its methods."""

    def __init__(self, ending: str) -> None:
        self.ending = ending

    def __call__(self, argument: Any, library: str) -> Any:
        """End."""
        return end(self.ending, argument, library)

    def run(self, argument: Any, library: str) -> Any:
        """End."""
        return end(self.ending, argument, library)

    @staticmethod
    def run_static(ending: str, argument: Any, library: str) -> Any:
        """End."""
        return end(ending, argument, library)

    @classmethod
    def run_class(cls, ending: str, argument: Any, library: str) -> Any:
        """End."""
        return cls(ending)(argument, library)


def _made(spec: Spec, library: str) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The function of a kind, and what it is called with."""
    ending, argument = spec.ending, spec.argument
    rest = (argument, library)
    kinds: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
        "function": (end, (ending, *rest), {}),
        "keywords": (end, (), {"library": library, "argument": argument, "ending": ending}),
        "lambda": (lambda: end(ending, *rest), (), {}),
        "partial": (functools.partial(end, ending, library=library), (argument,), {}),
        "object": (Ender(ending), rest, {}),
        "method": (Ender(ending).run, rest, {}),
        "static method": (Ender.run_static, (ending, *rest), {}),
        "class method": (Ender.run_class, (ending, *rest), {}),
    }
    return kinds[spec.kind]


KINDS = (
    "function",
    "keywords",
    "lambda",
    "partial",
    "object",
    "method",
    "static method",
    "class method",
)


def answer(library: str, spec: Spec) -> Answer:
    """Make the call; value, exit status (its name), exit code, errno."""
    module = importlib.import_module(library)
    limits = dict(spec.limits)
    if spec.context is not None and library != "pynisher":
        limits["context"] = spec.context
    function, args, kwargs = _made(spec, library)
    wrapped = module.enforce_limits(**limits)(function)
    with _meanwhile(spec.caller):
        if spec.caller == "called before":
            wrapped("os error", 5, library)
        value = wrapped(*args, **kwargs)
    status = wrapped.exit_status
    name = status.__name__ if isinstance(status, type) else status
    return value, name, wrapped.exitcode, getattr(wrapped, "os_errno", None)


@contextlib.contextmanager
def _meanwhile(what: str) -> Any:
    """What the caller does while the call is made."""
    if what == "holds memory":
        ballast = bytearray(300 << 20)
        yield
        del ballast
    elif what == "holds a lock":
        held, release = threading.Event(), threading.Event()
        thread = threading.Thread(target=_keep_lock, args=(held, release), daemon=True)
        thread.start()
        held.wait()
        try:
            yield
        finally:
            release.set()
            thread.join()
    else:
        yield


def _keep_lock(held: threading.Event, release: threading.Event) -> None:
    with LOCK:
        held.set()
        release.wait(60)


# The driver of 0.6.4 -----------------------------------------------------------------------------


class _Run:
    """One call in a process group of its own."""

    def __init__(self, spec: Spec) -> None:
        self._read, write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs all this by nohup(1)
            os.close(self._read)
            with contextlib.suppress(BaseException):
                found = pickle.dumps(answer("pynisher", spec))
                with open(write, "wb") as pipe:
                    pipe.write(found)
            os._exit(0)
        with contextlib.suppress(OSError):  # it may have done so itself
            os.setpgid(self._pid, self._pid)
        os.close(write)

    def finish(self, deadline: float) -> Answer:
        """Read what it says, until the deadline; then nothing of it is left."""
        data = b""
        try:
            while select.select([self._read], [], [], max(0, deadline - time.monotonic()))[0]:
                piece = os.read(self._read, 1 << 16)
                data += piece
                if not piece or self._is_whole(data):
                    break
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._read)
        found: Answer = pickle.loads(data) if self._is_whole(data) else HUNG
        return found

    @staticmethod
    def _is_whole(data: bytes) -> bool:
        try:
            pickle.loads(data)
        except (EOFError, pickle.UnpicklingError):
            return False
        return True


def serve() -> None:
    """Read lists of calls and the seconds they may take, and write their answers, until the end."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # 0.6.4's processes print the tracebacks of what they catch
        os.dup2(null, number)
    while True:
        try:
            specs, seconds = pickle.load(requests)
        except EOFError:
            return
        runs = [_Run(spec) for spec in specs]
        deadline = time.monotonic() + seconds
        pickle.dump([run.finish(deadline) for run in runs], replies)
        replies.flush()


if __name__ == "__main__":
    import replayed

    replayed.serve()  # by its name: pickles refer to it
