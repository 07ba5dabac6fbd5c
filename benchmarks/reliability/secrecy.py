"""What others can read of a task: its processes' command lines and environments, its sockets.

A process's environment holds what its caller's held when it was started, as any program's does;
nothing of a call may be added to it, nor to the name of anything. The context `forkserver`
is not tried: its server listens at a socket that has a name, which is multiprocessing's own doing.

That a task may open no descriptor and no memory of another, its supervisor or its caller is
Landlock's doing, with `no_new_privs`: elsewhere what has the same user may. Root reads their
environments and maps of memory all the same on new kernels, which let CAP_PERFMON do so.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.processes import descendants, name_of, parent_of
from benchmarks.reliability.check import Check, Found
from pynisher_exec import LimitedProcessExecutor
from pynisher_exec.kernel import landlock

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CHECKS"]

PATIENCE = 60
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - it is looked into
MOST, LARGE = 64 << 20, 4 << 20
CONTEXTS = (None, "loky", "spawn", "fork")
"""Not forkserver, whose server has a socket with a name of its own."""

CONFINED = landlock.abi() >= landlock.SIGNALS_SINCE
COMM = 15
"""Characters of a process's name (proc_pid_comm(5))."""


class Held(NamedTuple):
    """What a task's standard output and error are, what else it has open, and what it could open.

    `opened`: of other processes, their descriptors and memory; `seen`: what else, by its name.
    """

    output: set[str]
    others: set[str]
    opened: list[str]
    seen: set[str]
    secret: str


def stay(secret: str, folder: str, mine: str, other: str, padding: int) -> Held:
    """Be looked at, and look at oneself and at all that is around the task beside this one."""
    print(secret)
    _meet(folder, mine, other, str(os.getpid()))
    sibling = int(Path(folder, other).read_text())
    opened: list[str] = []
    seen: set[str] = set()
    for pid in (sibling, *_above(sibling)):
        opened += _opened(pid)
        seen |= _seen(pid)
    time.sleep(0.3)
    links = dict(_links(os.getpid()))
    _meet(folder, f"{mine}-over", f"{other}-over", "")  # it shall be there for the other
    others = {link for number, link in links.items() if number > 2}
    return Held({links[1], links[2]}, others, opened, seen, secret + " " * padding)


def _meet(folder: str, mine: str, other: str, text: str) -> None:
    """Go on when the other has come here, too."""
    place = Path(folder, mine)
    place.with_suffix(".new").write_text(text)
    place.with_suffix(".new").rename(place)
    end = time.monotonic() + PATIENCE
    while not Path(folder, other).exists() and time.monotonic() < end:
        time.sleep(0.001)


def _above(pid: int) -> Iterator[int]:
    """The three above a task: supervisor, template (or what stands for it), caller."""
    for _ in range(3):
        pid = parent_of(pid)
        yield pid


def _opened(pid: int) -> Iterator[str]:
    """Descriptors and memory of a process, as far as this one is let open them, or see what it is.

    A socket cannot be opened by anybody.
    """
    for path in (f"/proc/{pid}/mem", *(f"/proc/{pid}/fd/{number}" for number in range(64))):
        for look in (partial(os.open, flags=os.O_RDONLY | os.O_NONBLOCK), os.readlink):
            with contextlib.suppress(OSError):
                found = look(path)
                yield f"{name_of(pid)}: {path}"
                if isinstance(found, int):
                    os.close(found)
                break


def _seen(pid: int) -> set[str]:
    """What else is open to this process: it may be so to root, see CAP_PERFMON."""
    seen = set()
    for part in ("environ", "maps"):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/{part}").read_bytes():
                seen.add(part)
    return seen


def _links(pid: int) -> Iterator[tuple[int, str]]:
    """Descriptors of a process, and what they are."""
    folder = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(OSError):  # it has just ended
        for number in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # what the listing itself was read by
                yield int(number), str((folder / number).readlink())


def _leaks(secret: str, pids: set[int]) -> Iterator[str]:
    names = _names_of_sockets()
    for pid in pids:
        for part in ("cmdline", "environ", "comm"):
            try:
                content = Path(f"/proc/{pid}/{part}").read_bytes()
            except OSError:  # it has just ended
                continue
            wanted = secret[:COMM] if part == "comm" else secret
            if wanted.encode() in content:
                yield f"{name_of(pid)}: the secret is in {part}"
        for number, link in _links(pid):
            if secret in link:
                yield f"{name_of(pid)}: the secret is in {link}"
            if number > 2 and link in names:  # the standard streams are the user's
                yield f"{name_of(pid)}: {link} is named {names[link]}"


def _files(secret: str, before: set[Path], folder: Path) -> Iterator[str]:
    """New files of whatever is in memory or temporary, that have the secret."""
    for path in {*folder.rglob("*"), *SHARED_MEMORY.glob("*")} - before:
        with contextlib.suppress(OSError):  # it has just gone, or is a folder
            if secret in path.name or secret.encode() in path.read_bytes()[:MOST]:
                yield f"the secret is in {path}"


def _names_of_sockets() -> dict[str, str]:
    """What others could find a socket by: unix(7), /proc/net/unix."""
    names = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7:
            names[f"socket:[{fields[6]}]"] = fields[7]
    return names


class Pair(NamedTuple):
    """What came of two tasks."""

    failures: list[str]
    opened: list[str]
    seen: set[str]


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """Where everything temporary of this process and of those below it goes meanwhile."""
    known, directory = os.environ.get("TMPDIR"), tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = directory
            os.environ.pop("TMPDIR")
            if known is not None:
                os.environ["TMPDIR"] = known


def nothing_leaks(count: int) -> Found:
    """Row 22."""
    failures: list[str] = []
    told: list[str] = []
    others = set(descendants(os.getpid()))
    for context in CONTEXTS:
        with (
            _own_folder() as folder,
            LimitedProcessExecutor(2, context=context, capture_output=True) as executor,
        ):
            pairs = [_tried(executor, secrets.token_hex(16), others, folder) for _ in range(count)]
        failures += [each for pair in pairs for each in pair.failures]
        if CONFINED:
            open_to_others = [pair.opened for pair in pairs if pair.opened]
            failures += [f"{len(each)} open to others, as {each[0]}" for each in open_to_others]
        told.append(f"{context or 'template'}: {_told(pairs)}")
    with (
        _own_folder() as folder,
        LimitedProcessExecutor(2, no_new_privs=False, capture_output=True) as executor,
    ):
        bare = _tried(executor, secrets.token_hex(16), others, folder)
    failures += bare.failures
    if not bare.opened:
        failures.append("nothing was opened where nothing bars it: no look was a look")
    told.append(f"no_new_privs=False: {_told([bare])}")
    return Found(count * len(CONTEXTS) + 1, failures, "; ".join(told))


def _told(pairs: list[Pair]) -> str:
    opened = max(len(pair.opened) for pair in pairs)
    seen = set().union(*(pair.seen for pair in pairs))
    more = f", {' and '.join(sorted(seen))} readable" if seen else ""
    return f"{opened} descriptors and memories of others opened or seen{more}"


def _tried(executor: LimitedProcessExecutor, secret: str, others: set[int], folder: Path) -> Pair:
    """Two tasks at once, that know the secret by their arguments, and write and return it.

    One value is small, the other so large that it takes another way.
    """
    place = tempfile.mkdtemp(dir=folder)
    before = {*folder.rglob("*"), *SHARED_MEMORY.glob("*")}
    futures = [
        executor.submit(stay, secret, place, "a", "b", 0),
        executor.submit(stay, secret, place, "b", "a", LARGE),
    ]
    failures: list[str] = []
    over = False
    while not over:
        over = all(future.done() for future in futures)  # and a last look
        failures += _leaks(secret, {os.getpid(), *descendants(os.getpid())} - others)
        failures += _files(secret, before, folder)
        time.sleep(0.05)
    one, other = (future.result(PATIENCE) for future in futures)
    if {one.secret.strip(), other.secret.strip()} != {secret}:
        failures.append("the secret was not returned")
    shared = {link for link in one.others & other.others if link.startswith("socket:")}
    shared |= one.output & (other.output | other.others) | other.output & one.others
    failures += [f"both tasks have {link}" for link in shared]
    return Pair(failures, one.opened + other.opened, one.seen | other.seen)


CHECKS = (
    Check(
        22,
        "no process of ours shows user data; no task has, or by Landlock can open, another's lines",
        "a secret in arguments, output, values, looked for in /proc and files; others' lines tried",
        nothing_leaks,
        50,
        1,
    ),
)
