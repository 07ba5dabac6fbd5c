"""The processes that fork supervisors, as the monitor thread keeps them.

One template for each key (interpreter flags, `sys.path`, variables read at start), or, with a
context, one process for each task. What tasks were seen to import, the next template imports ahead.
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pynisher_exec.caller import launch
from pynisher_exec.caller.lessons import Lesson
from pynisher_exec.kernel import pidfd
from pynisher_exec.kernel.descriptors import above_standard
from pynisher_exec.protocol import messages

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.context import BaseContext

    from pynisher_exec.caller.item import Item, Key
    from pynisher_exec.caller.launch import Host
    from pynisher_exec.caller.reactor import Reactor
    from pynisher_exec.task.surroundings import Surroundings

__all__ = ["HostKeeper", "Hosts"]


MOST_LESSONS = 100
"""Keys of templates of which is remembered what their tasks imported."""


class HostKeeper(Protocol):
    """Who is told what becomes of hosts."""

    def slot_gone(self, number: int, survivors: list[int], error: str) -> None:
        """A supervisor has ended, and all that was below it, but for `survivors`."""

    def host_failed(self, host: Host, message: str, traceback: str) -> None:
        """A template could not import what it should."""

    def host_ended(self, host: Host) -> None:
        """The process is no more."""

    def host_outdated(self, host: Host, *, trusted: bool) -> None:
        """Another has taken its place, or will; `trusted`: tasks come up from it all the same."""


class Scout(NamedTuple):
    """A template that is importing what it may import ahead, and until when it has time."""

    host: Host
    around: Surroundings
    deadline: float


class Hosts:
    """Starts hosts, hears them, reaps them."""

    def __init__(
        self,
        reactor: Reactor,
        keeper: HostKeeper,
        context: BaseContext | None,
        preload: tuple[str, ...] | None,
        startup_time: float,
    ) -> None:
        self._reactor = reactor
        self._keeper = keeper
        self._context = context
        self._preload = preload
        self._startup_time = startup_time
        self._lessons: dict[Key, Lesson] = {}
        self._scouts: dict[Key, Scout] = {}
        self._by_key: dict[Key, Host] = {}
        self._living: dict[int, Host] = {}
        self._caller = above_standard(pidfd.open_pidfd(os.getpid()))

    @property
    def living(self) -> bool:
        """Whether any host has not been reaped yet."""
        return bool(self._living)

    def for_item(self, item: Item, key: Key) -> Host:
        """Give the host that shall fork the slot for an item. Raises what starting one raises."""
        if self._context is not None:
            return self._keep(launch.start_in_context(self._context, self._caller, item))
        host = self._by_key.get(key)
        if host is None or host.ended:
            ahead = self._lesson(key).ahead
            modules = ahead if self._preload is None else self._preload
            host = self._start(key, item.surroundings, modules, scout=bool(ahead))
            self._by_key[key] = host
        return host

    def _lesson(self, key: Key) -> Lesson:
        if key not in self._lessons and len(self._lessons) >= MOST_LESSONS:
            self._lessons.pop(next(iter(self._lessons)))  # the oldest: it can be learned again
        return self._lessons.setdefault(key, Lesson())

    def _start(
        self, key: Key, around: Surroundings, modules: Sequence[str], *, scout: bool
    ) -> Host:
        host = launch.start_template(modules, around, self._caller, scout=scout)
        host.key = key
        return self._keep(host)

    # -- importing ahead -------------------------------------------------------------------------

    def learn(self, key: Key, item: Item, imported: str, *, eager: bool) -> None:
        """A task had to import these modules (a line each): have a template import them ahead.

        That is another template, which takes the place of this key's when it has proved fit: until
        then, and if it never does, tasks go on as before. `eager`: others wait.
        """
        if self._context is not None or self._preload is not None or not imported:
            return
        lesson = self._lesson(key)
        if lesson.note(imported.split("\n"), eager=eager) and key not in self._scouts:
            self._send_scout(key, item.surroundings)

    def _send_scout(self, key: Key, around: Surroundings) -> None:
        lesson = self._lesson(key)
        try:
            host = self._start(key, around, lesson.begin(), scout=True)
        except Exception:  # noqa: BLE001  (no process, no descriptor: tasks import by themselves)
            lesson.give_up()
            return
        self._scouts[key] = Scout(host, around, time.monotonic() + self._startup_time)

    def _take_fit(self, host: Host) -> None:
        """A scout is ready: it is its key's template from now on."""
        host.said = True
        key = host.key
        if key not in self._scouts or self._scouts[key].host is not host:
            return  # a template that imports what another had been proved with
        del self._scouts[key]
        self._lesson(key).ahead = host.ahead
        old = self._by_key.get(key)
        if old is None:  # its slots have gone meanwhile: the next template will know
            self.release(host)
            return
        self._by_key[key] = host
        old.outdated = True
        self._keeper.host_outdated(old, trusted=True)

    def _take_unfit(self, host: Host, name: str) -> None:
        """A scout has ended, and says which module makes forks unsafe: another one without it."""
        host.said = True
        key = host.key
        lesson = self._lesson(key)
        lesson.ahead = ()
        more = lesson.refuse(name)
        scout = self._scouts.get(key)
        if scout is not None and scout.host is host:
            del self._scouts[key]
            if more:
                self._send_scout(key, scout.around)

    def distrust(self, key: Key, host: Host) -> None:
        """A task did not come up from what this one imported ahead: do without."""
        self._lesson(key).give_up()
        if self._by_key.get(key) is host:
            del self._by_key[key]
        host.outdated = True
        self._keeper.host_outdated(host, trusted=False)

    @property
    def next_due(self) -> float | None:
        """When the first scout has taken too long."""
        return min((scout.deadline for scout in self._scouts.values()), default=None)

    def end_late_scouts(self, now: float) -> None:
        """Kill those whose imports hang."""
        for key, scout in list(self._scouts.items()):
            if now >= scout.deadline:
                self._scouts[key] = scout._replace(deadline=math.inf)
                scout.host.kill()

    # -- lines and ends --------------------------------------------------------------------------

    def _keep(self, host: Host) -> Host:
        try:
            self._reactor.listen(host.pidfd, lambda: self._end(host))
            self._reactor.listen(host.line.fileno(), lambda: self._hear(host))
        except OSError:  # the kernel has no room for that: nobody would hear of its end
            self._reactor.ignore(host.pidfd)
            host.close()
            host.kill()
            host.reap()
            raise
        self._living[host.pidfd] = host
        return host

    def _hear(self, host: Host) -> None:
        while host.line.fileno() >= 0:
            try:
                message = messages.receive(host.line)
            except BlockingIOError:
                return
            if message is None:
                self._let_go(host)
                return
            fields = message.fields
            message.close()
            if message.kind == "gone":
                error = str(fields.get("error", ""))
                self._keeper.slot_gone(fields["slot"], fields["survivors"], error)
            elif message.kind == "fit":
                self._take_fit(host)
            elif message.kind == "unfit":
                self._take_unfit(host, str(fields["name"]))
            elif message.kind == "failed":
                self._keeper.host_failed(host, fields["message"], fields["traceback"])

    def release(self, host: Host) -> None:
        """Let a host go: it ends by itself, and its end is heard."""
        host.said = True  # whatever it was about to say
        self._let_go(host)

    def _let_go(self, host: Host) -> None:
        for key in [key for key, each in self._by_key.items() if each is host]:
            del self._by_key[key]
        if host.line.fileno() >= 0:
            self._reactor.ignore(host.line.fileno())
            host.close()

    def release_all(self) -> None:
        """Let all go. A scout hears nothing while it imports, and nobody has a use for it."""
        for scout in self._scouts.values():
            scout.host.kill()
        self._scouts.clear()
        for host in list(self._living.values()):
            self.release(host)

    def kill_all(self) -> None:
        """End those that do not go."""
        for host in self._living.values():
            host.kill()

    def _end(self, host: Host) -> None:
        self._hear(host)  # its last words
        self._let_go(host)
        self._reactor.ignore(host.pidfd)
        del self._living[host.pidfd]
        key = host.key
        if key in self._scouts and self._scouts[key].host is host:
            del self._scouts[key]
        if host.ahead and not host.said:
            self._lesson(key).give_up()  # what had been imported before was not this time
        host.reap()
        self._keeper.host_ended(host)

    def close(self) -> None:
        """Close what is left when all hosts have gone."""
        os.close(self._caller)
