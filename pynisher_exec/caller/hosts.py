"""The processes that fork supervisors, as the monitor thread keeps them.

One template for each key (interpreter flags, variables read at start), or, with a context, one
process for each task.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from pynisher_exec.caller import launch
from pynisher_exec.caller.reactor import above_standard
from pynisher_exec.kernel import pidfd
from pynisher_exec.protocol import messages

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    from pynisher_exec.caller.item import Item, Key
    from pynisher_exec.caller.launch import Host
    from pynisher_exec.caller.reactor import Reactor

__all__ = ["HostKeeper", "Hosts"]


class HostKeeper(Protocol):
    """Who is told what becomes of hosts."""

    def slot_gone(self, number: int, survivors: list[int], error: str) -> None:
        """A supervisor has ended, and all that was below it, but for `survivors`."""

    def host_failed(self, host: Host, message: str, traceback: str) -> None:
        """A template could not import what it should."""

    def host_ended(self, host: Host) -> None:
        """The process is no more."""


class Hosts:
    """Starts hosts, hears them, reaps them."""

    def __init__(
        self,
        reactor: Reactor,
        keeper: HostKeeper,
        context: BaseContext | None,
        preload: tuple[str, ...],
    ) -> None:
        self._reactor = reactor
        self._keeper = keeper
        self._context = context
        self._preload = preload
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
            host = launch.start_template(self._preload, item.surroundings, self._caller)
            self._by_key[key] = self._keep(host)
        return host

    def _keep(self, host: Host) -> Host:
        self._living[host.pidfd] = host
        self._reactor.listen(host.pidfd, lambda: self._end(host))
        self._reactor.listen(host.line.fileno(), lambda: self._hear(host))
        return host

    def _hear(self, host: Host) -> None:
        while host.line.fileno() >= 0:
            try:
                message = messages.receive(host.line)
            except BlockingIOError:
                return
            if message is None:
                self.release(host)
                return
            fields = message.fields
            message.close()
            if message.kind == "gone":
                error = str(fields.get("error", ""))
                self._keeper.slot_gone(fields["slot"], fields["survivors"], error)
            elif message.kind == "failed":
                self._keeper.host_failed(host, fields["message"], fields["traceback"])

    def release(self, host: Host) -> None:
        """Let a host go: it ends by itself, and its end is heard."""
        for key in [key for key, each in self._by_key.items() if each is host]:
            del self._by_key[key]
        if host.line.fileno() >= 0:
            self._reactor.ignore(host.line.fileno())
            host.close()

    def release_all(self) -> None:
        """Let all go."""
        for host in list(self._living.values()):
            self.release(host)

    def kill_all(self) -> None:
        """End those that do not go."""
        for host in self._living.values():
            host.kill()

    def _end(self, host: Host) -> None:
        self._hear(host)  # its last words
        self.release(host)
        self._reactor.ignore(host.pidfd)
        del self._living[host.pidfd]
        host.reap()
        self._keeper.host_ended(host)

    def close(self) -> None:
        """Close what is left when all hosts have gone."""
        os.close(self._caller)
