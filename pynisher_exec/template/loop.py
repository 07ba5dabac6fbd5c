"""The life of a template: import, fork a supervisor for each slot asked for, clean up after them.

From the caller: FORK(slot, options) with the supervisor's end of that slot's line. To the caller:
FIT or UNFIT from a scout, FAILED when it cannot serve at all, GONE(slot, survivors) when a
supervisor has ended and nothing of its task is left. When the caller dies or lets go, so does the
template, after its supervisors.

It is a child subreaper: when a supervisor dies before its task does (the task may kill it), the
kernel hands the orphans to the template, which ends what it adopts.

A process started through a multiprocessing context is such a template too, for one slot and one
task: the caller then has one way to talk to all of them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from pynisher_exec.kernel import cgroup, pidfd, prctl
from pynisher_exec.protocol import messages
from pynisher_exec.supervisor import kill, loop
from pynisher_exec.supervisor.options import SlotOptions
from pynisher_exec.task import generators, outcome, surroundings
from pynisher_exec.template import preload

if TYPE_CHECKING:
    from resource import struct_rusage

    from pynisher_exec.task.run import Inherited, Packed

__all__ = ["serve", "serve_in_context"]

GRACE_AT_END = 2.0
"""Seconds beyond `kill_timeout` for supervisors to end their trees, once the caller has gone."""

_OF_THE_TERMINAL = frozenset(
    {signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
)
"""What a session's terminal, or whoever ends a session, sends to processes that only have to go
when the caller goes. Supervisors inherit the mask, tasks do not.

SIGHUP among them: when the caller dies while one of these is stopped, the kernel sends it to the
whole group (setpgid(2), orphaned process groups), and the trees of tasks would be left.
"""


def serve(
    control: int,
    caller: int,
    modules: list[str],
    around: bytes,
    scout: bool,  # noqa: FBT001  (called with what `launch.start_interpreter` was given)
) -> NoReturn:
    """Be the template of an executor; the interpreter has been started for nothing else.

    `around` is what the caller has around it, pickled: what most tasks will have too. A scout only
    imports what leaves its forks safe, and says whether it is FIT, or which module made it UNFIT.
    """
    _begin(keep_streams=False)
    surroundings.begin_with(around)
    line = messages.patient(socket.socket(fileno=control))
    try:
        if scout:
            _import_as_scout(modules)
        else:
            preload.import_ahead(modules)
        generators.note()
        preload.settle()
    except preload.Unfit as unfit:
        _send(line, "unfit", name=str(unfit))
        os._exit(1)
    except BaseException as error:  # noqa: BLE001  (an import may raise anything, SystemExit too)
        text = traceback.format_exc()[-8000:]
        _send(line, "failed", message=outcome.line_of(error), traceback=text)
        os._exit(1)
    if scout:
        _send(line, "fit")
    _run(_Template(line, caller))


def _import_as_scout(modules: list[str]) -> None:
    """Import what tasks were seen to import. Nobody waits for it, so it has to go with the caller.

    The signal comes when the thread that started this ends, which keeps all templates; not later
    than here, since a template has to end its supervisors first.
    """
    prctl.die_with_parent()
    preload.import_if_fit(modules)
    surroundings.note_imports()
    prctl.die_with_parent(0)


def serve_in_context(control: int, caller: int, inherited: Inherited | Packed) -> NoReturn:
    """Be the template of one slot with one task, in a process that a context has started.

    `inherited` is its call, which came with the process.
    """
    with contextlib.suppress(BaseException):  # never back into what a fork has of the caller's code
        _begin(keep_streams=True)
        line = messages.patient(socket.socket(fileno=control))
        _run(_Template(line, caller, single=True, inherited=inherited))
    os._exit(1)


def _begin(*, keep_streams: bool) -> None:
    """Leave the terminal's job, take signals as a fresh process does, adopt orphans from now on."""
    surroundings.open_standard_streams()  # before anything else takes their numbers
    # No session of its own: with autogroups (sched(7)) a caller that keeps its processor busy held
    # up a template in another session by seconds, on Linux 6.18.
    with contextlib.suppress(PermissionError):  # a context has made it the leader of a session
        os.setpgid(0, 0)
    prctl.become_subreaper()
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):  # SIGKILL, SIGSTOP, the C library's own
            signal.signal(number, signal.SIG_DFL)
    # What Python ignores from its start (a task passes `file_size` with an OSError), and Ctrl-C.
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGCHLD, *_OF_THE_TERMINAL})
    if not keep_streams:
        _close_streams()
        prctl.set_name("limit-template")


def _close_streams() -> None:
    """Standard input and output lead nowhere here; errors of the interpreter stay visible."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


def _run(template: _Template) -> NoReturn:
    try:
        template.serve()
    except BaseException:  # noqa: BLE001  (say it where somebody may read it, then go)
        with contextlib.suppress(BaseException):  # stderr may be closed
            sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def _send(line: socket.socket, kind: str, **fields: Any) -> None:
    with contextlib.suppress(OSError):  # the caller has gone, and will be missed in the next round
        messages.send(line, kind, **fields)


class _Template:
    """The supervisors by pid, each with its slot's number and a pidfd."""

    def __init__(
        self,
        line: socket.socket,
        caller: int,
        *,
        single: bool = False,
        inherited: Inherited | Packed | None = None,
    ) -> None:
        self._line = line
        self._caller = caller
        self._single = single
        self._inherited = inherited
        self._supervisors: dict[int, tuple[int, int]] = {}
        self._place = cgroup.find()
        cgroup.sweep(self._place)
        self._patience = 0.0
        self._poll = select.poll()
        self._poll.register(line.fileno(), select.POLLIN)
        self._poll.register(caller, select.POLLIN)

    def serve(self) -> None:
        """Serve until the caller goes, or the one slot has."""
        served = False
        while not (self._single and served and not self._supervisors):
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            if self._caller in ready:
                break
            if self._line.fileno() in ready:
                message = messages.receive(self._line)
                if message is None:
                    break
                if message.kind == "fork" and message.descriptors:
                    self._fork(message)
                    served = True
                else:
                    message.close()
            if any(pidfd.exited(descriptor) for _, descriptor in self._supervisors.values()):
                self._clean_up()
        self._end()

    def _fork(self, message: messages.Message) -> None:
        """Fork the supervisor of a slot."""
        slot = int(message.fields["slot"])
        options = SlotOptions(**message.fields["options"], single=self._single)
        self._patience = max(self._patience, options.kill_timeout)
        try:
            pid = os.fork()
        except OSError as error:
            message.close()
            _send(self._line, "gone", slot=slot, survivors=[], error=f"fork: {error.strerror}")
            return
        if pid == 0:
            self._become_supervisor(message.descriptors[0], options)
        message.close()
        descriptor = pidfd.open_pidfd(pid)
        self._supervisors[pid] = slot, descriptor
        self._poll.register(descriptor, select.POLLIN)

    def _become_supervisor(self, control: int, options: SlotOptions) -> NoReturn:
        try:
            self._line.close()
            for _, descriptor in self._supervisors.values():
                os.close(descriptor)
            line = messages.patient(socket.socket(fileno=control))
            loop.serve(line, self._caller, options, self._place, self._inherited)
        except BaseException:  # noqa: BLE001  (a supervisor must never fall back into this loop)
            with contextlib.suppress(BaseException):  # stderr may be closed
                sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def _clean_up(self) -> None:
        """Supervisors have died: whatever else is a child now was theirs, so end it."""
        dead: list[int] = []

        def note(pid: int, _status: int, _usage: struct_rusage) -> None:
            if pid in self._supervisors:
                dead.append(pid)

        survivors = kill.end_tree(note, self._patience, self._supervisors.keys())
        cgroup.sweep(self._place)  # what was a dead one's
        for pid in dead:
            slot, descriptor = self._supervisors.pop(pid)
            self._poll.unregister(descriptor)
            os.close(descriptor)
            _send(self._line, "gone", slot=slot, survivors=survivors[:100])

    def _end(self) -> None:
        """Supervisors see the same signs and end their trees: wait, then end what is left."""
        deadline = time.monotonic() + self._patience + GRACE_AT_END
        while not kill.reap(kill.ignore) and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, max(0.0, deadline - time.monotonic()))
        kill.end_tree(kill.ignore, self._patience)
        cgroup.sweep(self._place)
