"""Readers of what a task can write, and any bytes for them that nobody of ours has sent.

A task holds two lines: the stream of its call and outcome, which the caller reads, and the line on
which it tells its supervisor how far it is. Outcomes are not loaded here: a pickle is a program.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import marshal
import mmap
import os
import socket
import struct
import threading
import time
import tracemalloc
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from pynisher_exec.caller.exchange import Exchange
from pynisher_exec.caller.reactor import Reactor
from pynisher_exec.kernel import memory_copy, pidfd
from pynisher_exec.kernel.cgroup import Group
from pynisher_exec.limits import Limits
from pynisher_exec.protocol import messages
from pynisher_exec.protocol.frames import TAKEN, FrameError, FrameReader
from pynisher_exec.supervisor.cpu import open_clock
from pynisher_exec.supervisor.options import SlotOptions
from pynisher_exec.supervisor.state import STAGES
from pynisher_exec.supervisor.watching import Watching

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Claimant",
    "Supervisor",
    "claimed",
    "read_stream",
    "replies",
    "said",
    "streams",
]

BOUND = 1 << 40
"""Bytes that a frame may claim here: beyond what there is, so that a claim alone would show."""

ROOM = 48 << 20
"""Bytes that reading may take beyond those that have come: thrice the step in which it grows."""

HELD = 8 << 20
"""Bytes that there are in a process whose memory is claimed; behind them there is nothing."""

STAYED = 1 << 63
WORD = 9

_PROCESSORS = os.cpu_count() or 1
NOISE = 3 * max(32, 2 * _PROCESSORS) * _PROCESSORS * mmap.PAGESIZE
"""Bytes by which the kernel's quick sum of what is held may differ from the true one: for each of
three kinds of pages so many on each processor (percpu_counter, lib/percpu_counter.c)."""

SLACK = (3 << 20) + NOISE
"""Bytes that an input may take beyond what is copied: its own, and what the allocator keeps."""

ANSWERED_WITHIN = 20
"""Seconds: a copy that is given up is waited for as well, and others use this machine."""

numbers = st.one_of(
    st.integers(0, 9), st.integers(0, 1 << 64), st.floats(), st.integers(-(1 << 70), 1 << 70)
)
heads = st.builds(
    lambda count, lengths: b"PXF1" + struct.pack(f"!I{len(lengths)}Q", count, *lengths),
    st.one_of(st.integers(0, 5), st.integers(0, (1 << 32) - 1)),
    st.lists(st.one_of(st.integers(0, 99), st.integers(0, (1 << 64) - 1)), max_size=5),
)
streams = st.builds(
    lambda head, rest, times: head + rest * times,
    st.one_of(heads, st.binary(max_size=20)),
    st.binary(max_size=100),
    st.sampled_from([1, 1, 10, 2000]),
)
names = st.sampled_from(
    [
        *("at", "cpu_time", "held", "resident", "mechanisms", "outcome", "message", "os_errno"),
        *("exit_code", "forking", "what", "size", "peak", "kind", "memory", "processes"),
    ]
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=50)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
words = st.builds(
    lambda kind, fields: json.dumps({**fields, "kind": kind}).encode(),
    st.one_of(st.sampled_from(STAGES), st.text(max_size=9)),
    st.dictionaries(names, st.one_of(values, st.text().map(lambda text: text * 500)), max_size=6),
)
sizes = st.one_of(st.integers(0, 9), st.integers(0, 2 * HELD), st.integers(0, STAYED - 1))
claimed = st.lists(st.tuples(sizes, st.one_of(sizes, st.integers(0, (1 << 64) - 1))), max_size=5)
replies = st.one_of(st.just(TAKEN), st.binary(max_size=WORD), streams)
said = st.one_of(words, st.binary(max_size=200), values.map(json.dumps).map(str.encode))


def read_stream(data: bytes, cuts: list[int]) -> None:
    """The caller reads what came in pieces: segments or a FrameError; a claim takes no memory."""
    near, far = socket.socketpair()
    with near, far:
        far.setblocking(False)
        near.setblocking(False)
        reader = FrameReader(BOUND)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        found = None
        with contextlib.suppress(FrameError):
            for piece in _cut(data, cuts):
                near.send(piece)
                found = reader.read(far)
                if found is not None:
                    break
            near.close()
            if found is None:
                reader.read(far)
                msg = "a stream that has ended is a whole frame or an error"
                raise AssertionError(msg)
        taken = tracemalloc.get_traced_memory()[1] - before
        assert taken < len(data) * 3 + ROOM, taken


def _cut(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for begin, end in pairwise(places):
        yield data[begin:end]


class _Sleeper:
    """A process that sleeps until this one ends, which atheris ends without asking anybody."""

    def __init__(self) -> None:
        sleeping, self._awake = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._awake)
            os.read(sleeping, 1)
            os._exit(0)
        os.close(sleeping)

    def close(self) -> None:
        os.close(self._awake)
        os.waitpid(self._pid, 0)


class Claimant(_Sleeper):
    """A task that says of an outcome that it lies in its memory: some pages, and then none."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2 * HELD, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._begin = memory_copy.address_of(self._memory)
        self._memory.madvise(mmap.MADV_DONTFORK, HELD, HELD)
        super().__init__()

    def read(self, claims: list[tuple[int, int]], wild: bytes, reply: bytes, gone: str) -> None:
        """The caller has an answer or an error in time, for no more memory than can be copied."""
        places = [(length, self._begin + at if at < 2 * HELD else at) for length, at in claims]
        head = struct.pack(f"!I{len(places)}Q", len(places), *(STAYED | n for n, _ in places))
        body = struct.pack(f"!{len(places)}Q", *(at for _, at in places))
        _wait_for_copies()  # of the input before, which had been given up
        before, began = _forget_the_most(), time.monotonic()
        outcome = self._exchange(wild or b"PXF1" + head + body, reply, gone)
        if outcome is not None and reply == TAKEN and not wild:
            assert [len(each) for each in outcome] == [length for length, _ in places]
        assert time.monotonic() - began < ANSWERED_WITHIN
        taken = _held()["VmHWM"] - before
        others = ROOM if wild or len(reply) > WORD else SLACK  # frames that claim to be sent
        assert taken <= sum(self._cost(*place) for place in places) + others, taken

    def _cost(self, length: int, at: int) -> int:
        """Bytes that a copy may take: whole pages, as far as there is something to be copied."""
        there = max(0, self._begin + HELD - at) if at >= self._begin else 0
        return -(-min(length, there) // mmap.PAGESIZE) * mmap.PAGESIZE

    def _exchange(self, data: bytes, reply: bytes, gone: str) -> list[Any] | None:
        item: Any = SimpleNamespace(capture=1, streams=(), shared=())
        near, far = socket.socketpair()
        far.setblocking(False)
        reactor = Reactor()
        exchange = Exchange(far, reactor, item, [], self._pid, os.getpid())
        try:
            near.sendall(data)
            exchange.begin_to_read()
            while gone != "at once" and not _is_over(exchange):
                assert exchange.deadline is not None  # somebody will look again
                reactor.turn(time.monotonic() + 0.001)
                if exchange._fetch is None:  # noqa: SLF001 - it is the task's turn to speak
                    with contextlib.suppress(OSError):  # it has, and all has been read
                        near.sendall(b"" if gone == "when asked" else reply)
                    near.shutdown(socket.SHUT_WR)
            near.close()
            if not _is_over(exchange):
                exchange.read_rest()
            assert _is_over(exchange)
            return exchange.outcome
        finally:
            near.close()
            exchange.close()
            reactor.close()


def _wait_for_copies() -> None:
    """A machine that is busy with other work ends their threads late, and they take memory."""
    deadline = time.monotonic() + ANSWERED_WITHIN
    while threading.active_count() > 1:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _is_over(exchange: Exchange) -> bool:
    return exchange.outcome is not None or bool(exchange.trouble)


def _forget_the_most() -> int:
    """Have the most that is held begin at what is held, and say what that is.

    The allocator keeps what the input before has left, 32 MiB at times: it gives that back first,
    lest it happen between the two, or this input take as much and nobody see it.
    """
    ctypes.CDLL(None).malloc_trim(0)
    deadline = time.monotonic() + ANSWERED_WITHIN
    while True:
        with open("/proc/self/clear_refs", "wb", buffering=0) as file:
            file.write(b"5")
        held = _held()
        if held["VmHWM"] - held["VmRSS"] < NOISE:
            return held["VmRSS"]
        assert time.monotonic() < deadline, held


def _held() -> dict[str, int]:
    """Bytes of this process (proc_pid_status(5)): VmRSS, and VmHWM, the most that it had."""
    with open("/proc/self/status", encoding="ascii") as file:
        lines = [line.split() for line in file if line.startswith(("VmRSS", "VmHWM"))]
    return {name[:-1]: int(size) << 10 for name, size, _ in lines}


class Supervisor(_Sleeper):
    """The watch over a process that only sleeps, and the line on which it would speak."""

    def __init__(self) -> None:
        super().__init__()
        self._pidfd = pidfd.open_pidfd(self._pid)
        self._group = Group("")
        self._clock = open_clock(self._pid, self._group)
        self._own = pidfd.open_pidfd(os.getpid())

    def close(self) -> None:
        """End the process, and let go of what watches it."""
        super().close()
        self._clock.close()
        os.close(self._pidfd)
        os.close(self._own)

    def hear(self, datagrams: list[bytes], descriptor: int | None) -> None:
        """Whatever is said, the supervisor goes on, and its account fits into a message."""
        control, caller = messages.pair()
        line, task = messages.pair()
        with control, caller, line, task:
            watching = self._watching(control, line)
            for datagram in datagrams:
                _send(task, datagram, descriptor)
                watching._hear_task()  # noqa: SLF001 - the place where it listens
                began = time.monotonic()
                watching._act()  # noqa: SLF001 - and what it does next
                _check_that_it_sleeps(watching, began)
            fields = watching._account.fields(watching._watch, None, [])  # noqa: SLF001
            assert len(marshal.dumps(("ended", fields))) < messages.MAX_BYTES
            if watching._gate is not None:  # noqa: SLF001
                watching._gate.close()  # noqa: SLF001

    def _watching(self, control: socket.socket, line: socket.socket) -> Watching:
        line.setblocking(False)
        child: Any = SimpleNamespace(
            shows=False,
            pid=self._pid,
            pidfd=self._pidfd,
            clock=self._clock,
            line=line,
            pipes=None,
            rest=None,
            shares=set(),
            note_shares=lambda _: None,
            trackers=set(),
        )
        limits = Limits(memory=1 << 30, cpu_time=60, wall_time=60, processes=2, startup_time=60)
        start = {
            "generation": 1,
            "limits": limits.as_message,
            "capture": 0,
            "private_tmp": "",
            "shared": [],
        }
        return Watching(control, self._own, child, start, SlotOptions(), self._group)


def _check_that_it_sleeps(watching: Watching, since: float) -> None:
    watch = watching._watch  # noqa: SLF001
    due = watch.deadline()
    assert watch.killed or due > since


def _send(line: socket.socket, datagram: bytes, descriptor: int | None) -> None:
    with contextlib.suppress(OSError):  # more than the kernel takes in one message
        if descriptor is None:
            line.send(datagram)
        else:
            socket.send_fds(line, [datagram], [descriptor])
