"""Tasks that misuse the descriptors they find, and outcomes that are none."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import stat
import struct
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.endings import crash, echo, hog
from benchmarks.reliability.marks import Looks, Mark, marked, nobody_left
from pynisher_exec import LimitedProcessExecutor
from pynisher_exec.kernel import memory_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pynisher_exec import Report
    from pynisher_exec.caller.submitting import LimitedExecutor

__all__ = ["CHECKS"]

PATIENCE = 60
MOST = 1000
"""Descriptors that are looked at: more than a task has."""

WALL_TIME = 5
SLOTS = 12
BOUND = 25
"""Seconds within which each future must have its answer: the wall limit, or the time for which a
task that has said that it returned is waited for."""


# What tasks do -----------------------------------------------------------------------------------


def lines(kind: int) -> list[socket.socket]:
    """Sockets of this process of one kind, found as any program could."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                line = socket.socket(fileno=int(name))
                if line.type == kind:
                    found.append(line)
                else:
                    line.detach()
    return found


def write_everywhere(first: int, data: bytes) -> str:
    """Write to every descriptor from one on, and return as if nothing had been."""
    for descriptor in range(first, MOST):
        with contextlib.suppress(OSError):
            os.write(descriptor, data)
    return "done"


def close_everything(first: int) -> str:
    """Close all from one on."""
    os.closerange(first, MOST)
    return "done"


def take_the_numbers(first: int, path: str) -> str:
    """Have a file of our own on every number that was somebody's."""
    taken = [int(name) for name in os.listdir("/proc/self/fd") if int(name) >= first]
    own = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in taken:
        os.dup2(own, number)
    return "done"


def put_a_socket_on_the_numbers(first: int, path: str) -> str:
    """Have a connection of our own there: what is sent to it would arrive."""
    taken = [int(name) for name in os.listdir("/proc/self/fd") if int(name) >= first]
    own = socket.socket(socket.AF_UNIX)
    own.connect(path)
    for number in taken:
        if number != own.fileno():
            os.dup2(own.fileno(), number)
    own.detach()
    return "done"


def shut_the_lines() -> str:
    """Shut every socket down, both ways."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        for line in lines(kind):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.detach()
    return "done"


def send_and_sleep(data: bytes, word: bytes) -> None:
    """Send bytes as if they were an outcome, say something to the supervisor, and stay."""
    for line in lines(socket.SOCK_STREAM):
        with contextlib.suppress(OSError):
            line.send(data)
        line.detach()
    for line in lines(socket.SOCK_SEQPACKET):
        with contextlib.suppress(OSError):
            line.send(word)
        line.detach()
    time.sleep(120)


def claim_and_sleep(length: int, there: int, word: bytes) -> None:
    """Say that the value stayed here, in memory that was never touched; only its first part is.

    Such memory counts for no limit: it has no pages until it is written to.
    """
    untouched = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    begin = memory_copy.address_of(untouched)
    ctypes.CDLL(None).munmap(ctypes.c_void_p(begin + there), ctypes.c_size_t(length - there))
    streams = lines(socket.SOCK_STREAM)
    for line in streams:
        line.send(struct.pack(CLAIM, b"PXF1", 2, len(FACTS), STAYED | length, FACTS, begin))
    for line in lines(socket.SOCK_SEQPACKET):
        line.send(RETURNED)
        line.detach()
    for line in streams:
        line.recv(1)  # it has been copied, or cannot be
        line.send(word)
        line.detach()
    time.sleep(120)


class Loads:
    """A value that does something when it is loaded."""

    def __init__(self, function: Callable[..., object], *args: Any) -> None:
        self._how = function, args

    def __reduce__(self) -> Any:
        return self._how


# The checks --------------------------------------------------------------------------------------

RETURNED = b'{"kind":"returned","outcome":"value","size":100000}'
HALF = b"PXF1" + struct.pack("!IQ", 1, 1000) + b"half"
HUGE = b"PXF1" + struct.pack("!IQ", 1, 1 << 62)
FACTS = b'{"outcome":"value"}'
STAYED = 1 << 63
CLAIM = f"!4sIQQ{len(FACTS)}sQ"
"""A frame of facts, and of a value in whose place is its address."""

GIB = 1 << 30
SMALL = 50_000_000
PART = 64 << 20
CLAIMED = GIB + 2 * PART
"""Bytes that the claims below may have copied at one moment, one of each kind being there."""

ROOM = 256 << 20
"""Bytes that the rest of a round may take: others' values, the machinery, a pytest around it."""


class Attack(NamedTuple):
    """A call, and the statuses that its future may have.

    A task without its lines cannot say that it returned: to the supervisor it has exited.
    """

    name: str
    function: Callable[..., object]
    args: tuple[Any, ...]
    statuses: tuple[str, ...]
    memory: int = GIB


def _misuses(first: int, path: Path, place: str) -> tuple[Attack, ...]:
    """From descriptor 3 on, or from 0 on, with the standard streams."""
    return (
        Attack("garbage everywhere", write_everywhere, (first, b"garbage"), ("transfer",)),
        Attack("a word of ours", write_everywhere, (first, RETURNED), ("transfer",)),
        Attack("a large frame", write_everywhere, (first, HUGE), ("transfer",)),
        Attack("all closed", close_everything, (first,), ("exit",)),
        Attack("all shut down", shut_the_lines, (), ("exit",)),
        Attack("a file on the numbers", take_the_numbers, (first, str(path)), ("exit",)),
        Attack("a socket on them", put_a_socket_on_the_numbers, (first, place), ("exit",)),
    )


FORGERIES = (
    Attack("half a frame", send_and_sleep, (HALF, b""), ("wall_time",)),
    Attack("half a frame, returned", send_and_sleep, (HALF, RETURNED), ("transfer",)),
    Attack("2^62 bytes", send_and_sleep, (HUGE, RETURNED), ("transfer",)),
    Attack("nothing, returned", send_and_sleep, (b"", RETURNED), ("transfer",)),
    Attack("loading hangs", Loads, (time.sleep, 60), ("exception",)),
    Attack("loading crashes", Loads, (crash,), ("exception",)),
    Attack("loading takes 10 GB", Loads, (hog, 10 << 30), ("exception",)),
    Attack("loading exits", Loads, (os._exit, 3), ("exception",)),
    Attack("1 GiB untouched", claim_and_sleep, (GIB, GIB, b"T"), ("exception",), SMALL),
    Attack("untouched, no word", claim_and_sleep, (PART, PART, b""), ("transfer",), SMALL),
    Attack("64 MiB of 8 GiB", claim_and_sleep, (8 * GIB, PART, b"T"), ("transfer",), SMALL),
    Attack("no such address", claim_and_sleep, (8 * GIB, 0, b"T"), ("transfer",), SMALL),
)


def _attacked(executor: LimitedExecutor, attack: Attack) -> tuple[list[str], float]:
    """Run one beside tasks whose values are known; what was wrong, and the seconds it took."""
    began = time.monotonic()
    mark, looks = Mark(), Looks()
    limited = executor.limit(memory=attack.memory)
    hostile = limited.submit(marked, mark.value, attack.function, *attack.args)
    looks.at(hostile, partial(nobody_left, mark))
    data = os.urandom(100_000)
    others = [executor.submit(echo, data) for _ in range(6)]
    wrong = []
    for other in others:
        try:
            if other.result(PATIENCE) != data:
                wrong.append(f"{attack.name}: another's value is wrong")
        except Exception as error:  # noqa: BLE001 - whatever comes is what is looked for
            wrong.append(f"{attack.name}: another failed: {error!r}")
    try:
        hostile.exception(PATIENCE)
    except TimeoutError:
        return [*wrong, f"{attack.name}: no answer"], PATIENCE
    took = time.monotonic() - began
    report: Report | None = hostile.report
    if report is None or report.status not in attack.statuses or took > BOUND:
        wrong.append(f"{attack.name}: {report} after {took:.1f} s")
    wrong += [f"{attack.name}: {each}" for each in looks.failures(1)]
    return wrong, took


class _Attackers:
    """Attacks at once, each beside tasks whose values are known."""

    def __init__(self, executor: LimitedProcessExecutor, threads: ThreadPoolExecutor) -> None:
        self.failures: list[str] = []
        self.slowest = 0.0
        self.tries = 0
        # Captured: else what is written to the standard streams is the caller's.
        self._views = executor, executor.limit(capture_output=True)
        self._threads = threads

    def attack(self, attacks: tuple[Attack, ...], *, captured: bool) -> None:
        """Run them."""
        attacked = partial(_attacked, self._views[captured])
        for wrong, took in self._threads.map(attacked, attacks):
            self.failures += wrong
            self.slowest = max(self.slowest, took)
        self.tries += len(attacks)

    @property
    def found(self) -> Found:
        """What came of it."""
        return Found(self.tries, self.failures, f"slowest answer {self.slowest:.1f} s")


@contextlib.contextmanager
def _attackers() -> Iterator[_Attackers]:
    with (
        ThreadPoolExecutor(SLOTS) as threads,
        Mark().on_what_is_started(),
        LimitedProcessExecutor(
            SLOTS, memory="1GiB", wall_time=WALL_TIME, preload=[__name__], private_tmp=True
        ) as executor,
    ):
        yield _Attackers(executor, threads)


def _received(listening: socket.socket) -> bytes:
    """All that has come on the next connection."""
    connection, _ = listening.accept()
    with connection:
        connection.settimeout(PATIENCE)
        return connection.recv(1 << 16)


def misused_descriptors(count: int) -> Found:
    """Row 8: every other round with the standard streams, captured."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX) as listening,
        _attackers() as attackers,
    ):
        path, place = Path(folder, "own"), str(Path(folder, "socket"))
        listening.bind(place)
        listening.listen()
        listening.settimeout(PATIENCE)
        for number in range(count):
            captured = number % 2 == 1
            attackers.attack(_misuses(0 if captured else 3, path, place), captured=captured)
            if path.read_bytes() or _received(listening):
                attackers.failures.append("bytes of ours are in what is the user's")
    return attackers.found


def _resident(name: str) -> int:
    """Bytes of this process (proc_pid_status(5)): VmRSS, or VmHWM, the most that it ever had."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))


def forged_outcomes(count: int) -> Found:
    """Row 9: what the claims cost this process is what could be copied of them, once."""
    with open("/proc/self/clear_refs", "wb", buffering=0) as file:
        file.write(b"5")  # the most is what there is, from here on
    before = _resident("VmRSS")
    with _attackers() as attackers:
        for number in range(count):
            attackers.attack(FORGERIES, captured=number % 2 == 1)
    taken = _resident("VmHWM") - before
    found = attackers.found
    if not GIB < taken < CLAIMED + ROOM:  # with less, nothing has been copied
        found.failures.append(f"the caller took {taken >> 20} MiB for {CLAIMED >> 20} MiB claimed")
    return found._replace(worst=f"{found.worst}, the caller took {taken >> 20} MiB at most")


CHECKS = (
    Check(
        8,
        "what a task does to descriptors harms no other, and no file of the user's",
        "garbage to each, all closed, shut down, or replaced by a file, beside other tasks",
        misused_descriptors,
        100,
        3,
    ),
    Check(
        9,
        "an outcome that is none costs one future, within a bound",
        "half frames, false claims, values whose loading hangs, crashes or takes 10 GB",
        forged_outcomes,
        20,
        1,
    ),
)
