"""Starting the processes from which slot supervisors are forked.

By default one template serves all slots of an executor: a fresh interpreter, started by loky's
fork and exec in one C call, safe beside other threads. Nothing of the user's goes on its command
line or into its environment: `sys.path` and module names travel by an inherited memory file.

With a context, a process started by it becomes the template of one slot and one task. Two habits
of multiprocessing are passed over there: its check against children of daemonic processes, and
the import of the caller's `__main__` in the child (tasks get that by value), so that scripts need
no guard and workers of any engine can start tasks.
"""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import multiprocessing.spawn
import os
import signal
import subprocess
import types
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import TYPE_CHECKING, Any

from pynisher_exec.caller.loky_beside import fork_exec
from pynisher_exec.caller.reactor import control_line
from pynisher_exec.kernel import pidfd, proc
from pynisher_exec.kernel.descriptors import above_standard
from pynisher_exec.kernel.signals import masked
from pynisher_exec.task.run import Inherited, Packed
from pynisher_exec.template import loop

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.context import BaseContext

    from pynisher_exec.caller.item import Item, Key
    from pynisher_exec.task.surroundings import Surroundings

__all__ = ["Host", "is_fork", "start_in_context", "start_interpreter", "start_template"]

_BOOTSTRAP = (
    "import sys, marshal\n"
    "with open(int(sys.argv[1]), 'rb') as file: path, module, args = marshal.load(file)\n"
    "sys.path[:] = path\n"
    "__import__(module)\n"
    "sys.modules[module].serve(*args)\n"
)


@dataclass
class Host:
    """A process that forks supervisors: its control line, its pid, and a pidfd to see its end.

    `process` is multiprocessing's object where a context started it, which must live as long.
    `key` is the template's, `ahead` what it has imported by itself, `said` whether it has told what
    came of that; `outdated`: another has taken its place; `charged`: a call that waits has been
    charged with its failure.
    """

    pid: int
    pidfd: int
    line: socket.socket
    process: Any = None
    reaped: bool = False
    key: Key = ()
    ahead: tuple[str, ...] = ()
    said: bool = False
    outdated: bool = False
    charged: bool = False

    @property
    def is_stopped(self) -> bool:
        """Whether somebody has stopped it, or what it has just forked."""
        found = map(proc.stat, [self.pid, *proc.children(self.pid)])
        return any(each is not None and each.state in "Tt" for each in found)

    def kill(self) -> None:
        """End it at once; its supervisors go on until their own lines end."""
        if self.reaped:  # the descriptor's number may be another's
            return
        with contextlib.suppress(ProcessLookupError):
            pidfd.send_signal(self.pidfd, signal.SIGKILL)

    @property
    def ended(self) -> bool:
        """Whether the process has ended, reaped or not."""
        return self.reaped or pidfd.exited(self.pidfd)

    def close(self) -> None:
        """Let go of it: it then ends its supervisors and itself."""
        self.line.close()

    def reap(self) -> None:
        """Reap the ended process and close what is held of it."""
        self.reaped = True
        os.close(self.pidfd)
        process, self.process = self.process, None  # its descriptors go with the object
        if process is not None:
            with contextlib.suppress(ChildProcessError, OSError):
                process.poll()
            return
        with contextlib.suppress(
            ChildProcessError
        ):  # the user waits for any child, or ignores them
            os.waitpid(self.pid, 0)


@contextlib.contextmanager
def _copies(*descriptors: int) -> Iterator[list[int]]:
    """Have copies on none of the standard streams' numbers, which a caller may have closed."""
    copies: list[int] = []
    try:
        for descriptor in descriptors:
            copies.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3))  # noqa: PERF401  (those there are get closed)
        yield copies
    finally:
        for copy in copies:
            os.close(copy)


@contextlib.contextmanager
def _standard_numbers_taken() -> Iterator[None]:
    """Let nothing that is opened have the numbers of standard streams that were closed.

    multiprocessing's pipes would, and be taken for the caller's output, or for a fork's.
    """
    taken = []
    try:
        while (descriptor := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:  # noqa: PLR2004
            taken.append(descriptor)
        os.close(descriptor)
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)


def start_interpreter(
    module: str,
    descriptors: Sequence[int],
    arguments: Sequence[object],
    path: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Start a fresh interpreter that calls `module.serve(*descriptors, *arguments)`; give its pid.

    It has the caller's interpreter flags, the `sys.path` given, and every signal blocked, so that
    none can reach it before it has chosen how to take them. `environment` goes over what this
    process has.
    """
    setup = os.memfd_create("pynisher_exec setup", os.MFD_CLOEXEC)
    try:
        with _copies(setup, *descriptors) as passed:
            entries = [str(entry) for entry in path]  # some put a `pathlib.Path` there
            data = marshal.dumps((entries, module, [*passed[1:], *arguments]))
            os.write(setup, data)
            os.lseek(setup, 0, os.SEEK_SET)
            executable = os.fsdecode(multiprocessing.spawn.get_executable())
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
            command = [executable, *flags, "-c", _BOOTSTRAP, str(passed[0])]
            with masked(signal.SIG_BLOCK, signal.valid_signals()):
                return _fork_exec(command, passed, environment)
    finally:
        os.close(setup)


def _fork_exec(command: list[str], passed: list[int], environment: Mapping[str, str] | None) -> int:
    """loky's, which copies `os.environ` on the way: another thread may change that meanwhile."""
    for _ in range(_MOST_COPIES):
        try:
            return int(fork_exec(command, passed, environment))
        except KeyError:  # noqa: PERF203  (a start takes longer than any loop)
            pass
        except RuntimeError as error:
            if "changed size" not in str(error):  # the interpreter ends, say
                raise
    msg = "the environment changes all the time"
    raise OSError(msg)


_MOST_COPIES = 20

_READ_AT_START = ("LD_", "PYTHON")
"""What the loader and the interpreter read as they start, and take for unset where it is empty."""


def _environment(around: Surroundings) -> dict[str, str]:
    """The variables of a submit, which may have changed since; no others of those above."""
    known = {os.fsdecode(name): os.fsdecode(value) for name, value in around.environment.items()}
    later = [name for name in list(os.environ) if name.startswith(_READ_AT_START)]
    return {**dict.fromkeys(later, ""), **known}


def start_template(
    modules: Sequence[str], around: Surroundings, caller: int, *, scout: bool
) -> Host:
    """Start an executor's template. `caller` is a pidfd of this process. OSError if it cannot.

    `scout`: it imports only what leaves its forks safe, and says so.
    """
    line, far_end = control_line()
    try:
        pid = start_interpreter(
            loop.__name__,
            (far_end.fileno(), caller),
            (list(modules), around.pickled, scout),
            around.path,
            _environment(around),
        )
        held = _hold(pid)
    except BaseException:
        line.close()
        raise
    finally:
        far_end.close()
    line.setblocking(False)
    return Host(pid, held, line, ahead=tuple(modules) if scout else ())


def _hold(pid: int) -> int:
    """A pidfd of what has just been started; where none is to be had, it is ended, and OSError."""
    try:
        return above_standard(pidfd.open_pidfd(pid))
    except OSError:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # a fork server's, perhaps
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise


_WITH_MAIN = {
    "spawn": "multiprocessing.popen_spawn_posix",
    "forkserver": "multiprocessing.popen_forkserver",
}
"""Ways of starting that import the caller's `__main__`, and the module whose `Popen` does so."""


# Through a context -------------------------------------------------------------------------------


def is_fork(context: BaseContext) -> bool:
    """Whether a context forks this very process, so that calls need no pickling."""
    return context.get_start_method() == "fork"


class _Passed:
    """A descriptor that travels to the process being started, by its context's own means."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: Any = descriptor

    def __reduce__(self) -> tuple[Callable[[Any], _Passed], tuple[Any]]:
        return _Passed, (DupFd(self._descriptor),)

    def take(self) -> int:
        """The number of the descriptor in this process."""
        if isinstance(self._descriptor, int):
            return self._descriptor
        number: int = self._descriptor.detach()
        return number


class _Carrier:
    """An item's call on its way into the process that is being started for it.

    Pickled by cloudpickle, but while multiprocessing starts a process: so what travels only then
    (queues, locks, connections) does, and lambdas do as well.
    """

    def __init__(self, item: Item) -> None:
        self._item = item

    def __reduce__(self) -> tuple[type[Packed], tuple[list[bytes | bytearray]]]:
        pickled, *buffers = self._item.packed(ForkingPickler._extra_reducers)  # type: ignore[attr-defined]  # noqa: SLF001
        return Packed, ([bytes(pickled), *map(bytearray, buffers)],)  # arrays shall be writable


def _target(control: _Passed, caller: _Passed, inherited: Inherited | Packed) -> None:
    loop.serve_in_context(control.take(), caller.take(), inherited)


def start_in_context(context: BaseContext, caller: int, item: Item) -> Host:
    """Start the template of one task through a context. Raises what its way of starting raises.

    Its call goes with it, by memory or pickled; UnpicklableError where it cannot.
    """
    forks = is_fork(context)
    inherited = item.inherited() if forks else _Carrier(item)
    line, far_end = control_line()
    try:
        with far_end, _copies(far_end.fileno(), caller) as descriptors:
            far_end.close()  # a fork shall have one copy
            process = context.Process(  # type: ignore[attr-defined]
                target=_target, args=(*map(_Passed, descriptors), inherited), daemon=False
            )
            # A process that is started beside it (forkserver's server) keeps this mask for good.
            # loky's vfork keeps this thread until the exec: Ctrl-Z must not stop the child before.
            kept = {signal.SIGTSTP} if process._start_method == "loky" else ()  # noqa: SLF001
            with masked(signal.SIG_SETMASK, kept), _standard_numbers_taken():
                popen = _starter(process)(process)  # past `start`, which refuses daemonic processes
            # What `start` would have done as well: the arguments must not outlive the start.
            del process._target, process._args, process._kwargs  # noqa: SLF001
            host = Host(popen.pid, _hold(popen.pid), line, popen)
    except BaseException:
        line.close()
        raise
    line.setblocking(False)
    return host


def _starter(process: Any) -> Callable[[Any], Any]:
    """What starts this process without the caller's `__main__` in it."""
    if hasattr(process, "init_main_module"):  # loky's
        process.init_main_module = False
    method = process._start_method  # noqa: SLF001
    if method not in _WITH_MAIN:
        starter: Callable[[Any], Any] = process._Popen  # noqa: SLF001
        return starter
    if method == "forkserver":
        server = import_module("multiprocessing.forkserver")._forkserver  # noqa: SLF001
        _rebound(type(server).ensure_running)(server)  # else it would import the main by itself
    module = import_module(_WITH_MAIN[method])
    launch = _rebound(module.Popen._launch)  # noqa: SLF001
    return type("Popen", (module.Popen,), {"_launch": launch})


class _SpawnWithoutMain:
    """multiprocessing's `spawn` module, but its preparation data leaves out the caller's main."""

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing.spawn, name)

    def get_preparation_data(self, name: str) -> dict[str, Any]:
        data: dict[str, Any] = multiprocessing.spawn.get_preparation_data(name)
        return {key: value for key, value in data.items() if not key.startswith("init_main")}


def _rebound(function: Any) -> Any:
    """The same function, with `spawn` meaning the one above: nothing is patched for others."""
    scope = {**function.__globals__, "spawn": _SpawnWithoutMain()}
    return types.FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
