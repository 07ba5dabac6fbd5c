"""What /proc tells of other processes: who descends from whom, their state and their memory.

Every function copes with a process that ends meanwhile: it answers with nothing, never raises for
it. A pid is only a number here: who must be sure that it still names the same process opens a
pidfd and looks again (see `pynisher_exec.supervisor.kill`). Sizes are bytes. Source: proc(5).
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NamedTuple

from pynisher_exec.kernel.descriptors import file_of

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "FairMemory",
    "OwnMemory",
    "SealedMemory",
    "Stat",
    "anonymous_memory",
    "children",
    "command_line",
    "command_name",
    "descendants",
    "fair_memory",
    "has_thread",
    "is_alive",
    "is_being_killed",
    "own_memory",
    "place_of",
    "resident_memory",
    "sealed_memory",
    "sealed_places",
    "shared_memory",
    "signal_masks",
    "stat",
    "thread_states",
    "umask",
]

PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")
_SEALED = b"/memfd:shared (deleted)"
"""What a memory file of `kernel.sealed_memory` is called where it is mapped."""

_PENDING = 28
"""Where /proc/PID/stat says which signals wait, from the state on (proc_pid_stat(5), `signal`)."""

_LINKS_OF_ONE = 3  # a directory has two beside one for each that it holds


class Stat(NamedTuple):
    """The part of /proc/PID/stat that judging needs.

    `reaped_cpu_time`: seconds, in units of 10 ms, of the children it has waited for.
    """

    state: str
    parent: int
    reaped_cpu_time: float
    threads: int
    started: int

    @property
    def alive(self) -> bool:
        """A zombie whose other threads go on (its main thread has ended) is alive."""
        return self.state not in "ZX" or self.threads > 1


def _read(path: str, *, to_its_end: bool = False) -> bytes:
    """Read a file of /proc; empty when its process has gone or may not be read."""
    try:
        return _content(path, to_its_end=to_its_end)
    except OSError:  # from the reading ESRCH: it went between open and read
        return b""


def _content(path: str, *, to_its_end: bool = False) -> bytes:
    """Read a file of /proc; OSError says why it cannot be.

    The kernel gives the whole of a file of one record to the first read(2); one that lists things
    has to be read to its end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = [os.read(descriptor, 1 << 16)]
        while to_its_end and parts[-1]:
            parts.append(os.read(descriptor, 1 << 16))
        return b"".join(parts)
    finally:
        os.close(descriptor)


def _threads(pid: int) -> list[str]:
    folder = f"/proc/{pid}/task"
    try:
        if os.stat(folder).st_nlink == _LINKS_OF_ONE:  # as most have, and cheaper than a listing
            return [str(pid)]
        return os.listdir(folder)
    except OSError:
        return []


def has_thread(pid: int, tid: int) -> bool:
    """Whether a thread is one of this process."""
    return str(tid) in _threads(pid)


def children(pid: int) -> list[int]:
    """Direct children of every thread of a process, zombies included.

    May miss entries while the list changes (proc(5)): it is no proof of absence.
    """
    found: list[int] = []
    for thread in _threads(pid):
        text = _read(f"/proc/{pid}/task/{thread}/children", to_its_end=True)
        found += map(int, text.split())
    return found


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, parents before their children, zombies included."""
    found = children(pid)
    seen = set(found)
    for parent in found:  # grows while it is walked
        for child in children(parent):
            if child not in seen:
                seen.add(child)
                found.append(child)
    return found


def last_started() -> int | None:
    """The pid or thread id that was given last in this pid namespace (proc_loadavg(5)).

    None where another filesystem stands in for the kernel's own file, as in containers that are
    shown a load of their own.
    """
    try:
        if os.stat("/proc/loadavg").st_dev != os.stat("/proc/self").st_dev:
            return None
        return int(_content("/proc/loadavg").split()[4])
    except (OSError, ValueError, IndexError):
        return None


def stat(pid: int) -> Stat | None:
    """State and parent of a process, and more, or None when it has gone."""
    fields = _stat_fields(pid)
    if not fields:
        return None
    return Stat(
        state=fields[0].decode(),
        parent=int(fields[1]),
        reaped_cpu_time=(int(fields[13]) + int(fields[14])) / TICK,
        threads=int(fields[17]),
        started=int(fields[19]),
    )


def _stat_fields(pid: int) -> list[bytes]:
    """/proc/PID/stat from the state on; empty when the process has gone."""
    text = _read(f"/proc/{pid}/stat")
    # The name before it may hold blanks and parentheses.
    return text[text.rindex(b")") + 2 :].split() if text else []


def is_alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    current = stat(pid)
    return current is not None and current.alive


def command_line(pid: int) -> bytes:
    """The arguments of a process, a null byte after each; empty when it has gone."""
    return _read(f"/proc/{pid}/cmdline")


def command_name(pid: int) -> str:
    """The name of a process as `ps` shows it, empty when it has gone."""
    return _read(f"/proc/{pid}/comm").decode(errors="replace").strip()


def umask() -> int:
    """The umask of this process, read without setting it (umask(2) can only swap it, racily).

    The strictest where it cannot be read, for want of a descriptor.
    """
    for line in _read("/proc/self/status").splitlines():
        if line.startswith(b"Umask:"):
            return int(line.split()[1], 8)
    return 0o077


def is_being_killed(pid: int) -> bool:
    """Whether SIGKILL has been sent to a process that has had no processor since, to die of it.

    So it is as well where one of its threads has begun to end them all (kernel/signal.c).
    """
    fields = _stat_fields(pid)
    return bool(fields) and int(fields[_PENDING]) & 1 << signal.SIGKILL - 1 != 0


def signal_masks() -> tuple[int, ...]:
    """Which signals this process ignores, and which it catches, whoever has said so; a bit each.

    Without 32 and 33, which the C library catches once there are threads.
    """
    wanted = (b"SigIgn:", b"SigCgt:")
    lines = _read("/proc/self/status").splitlines()
    return tuple(int(line[7:], 16) & ~(3 << 31) for line in lines if line.startswith(wanted))


def _statm(pid: int) -> list[bytes]:
    """The sizes of a process in pages; through a living thread where its main thread has ended."""
    fields = _read(f"/proc/{pid}/statm").split()
    if fields and fields[0] == b"0":  # the memory map is gone from the main thread's view
        for thread in _threads(pid):
            if thread != str(pid):
                fields = _read(f"/proc/{pid}/task/{thread}/statm").split()
                break
    return fields


def resident_memory(pid: int) -> tuple[int, int]:
    """Resident bytes of a process, and how many of them are file pages or shared memory."""
    fields = _statm(pid)
    return (int(fields[1]) * PAGE, int(fields[2]) * PAGE) if fields else (0, 0)


class OwnMemory(NamedTuple):
    """What this process holds, by /proc/self/status.

    `high_water` (VmHWM) is the most that has been resident since the start or since clear_refs,
    `file_backed` counts pages of files and of shared memory, `held` RssAnon + RssShmem, `reserved`
    is VmData, what RLIMIT_DATA bounds (plus stack), `address_space` VmSize, what RLIMIT_AS bounds.
    """

    address_space: int
    high_water: int
    resident: int
    file_backed: int
    held: int
    reserved: int


def own_memory(spared: int = 0, before: int = 0) -> OwnMemory:
    """Read it all at one look: this stands between every task and its function.

    Of shared memory, `spared` bytes that have been mapped do not count as held, as far as they can
    be part of what came to the `before` bytes there were. OSError where it cannot be read.
    """
    text = _content("/proc/self/status")
    words = text[text.index(b"VmSize:") :].split(None, 30)  # nine lines: name, number, "kB"
    size = {name: int(number) << 10 for name, number in zip(words[:27:3], words[1:27:3])}  # noqa: B905
    shared = size[b"RssShmem:"]
    return OwnMemory(
        address_space=size[b"VmSize:"],
        high_water=size[b"VmHWM:"],
        resident=size[b"VmRSS:"],
        file_backed=size[b"RssFile:"] + shared,
        held=size[b"RssAnon:"] + max(shared - spared, min(shared, before)),
        reserved=size[b"VmData:"],
    )


def own_shared_memory() -> int:
    """`shared_memory` of this process, which is alive: for what stands before a function."""
    return _sizes("/proc/self/status", (b"RssShmem:",))[0]


def shared_memory(pid: int) -> int:
    """RssShmem: what a process has mapped of shared anonymous memory, tmpfs and the like."""
    return _sizes(f"{_living_task(pid)}/status", (b"RssShmem:",))[0]


def _sizes(path: str, names: tuple[bytes, ...]) -> list[int]:
    """The lines of these names, in the order of the file, in bytes; 0 where there are none."""
    lines = [line for line in _read(path).splitlines() if line.startswith(names)]
    return [int(line.split()[1]) << 10 for line in lines] or [0] * len(names)


def _living_task(pid: int) -> str:
    """The folder to read a process through: a living thread's when its main thread has ended."""
    current = stat(pid)
    if current is None or current.state != "Z":
        return f"/proc/{pid}"
    other = next((thread for thread in _threads(pid) if thread != str(pid)), str(pid))
    return f"/proc/{pid}/task/{other}"


def anonymous_memory(pid: int) -> int:
    """RssAnon + RssShmem: what a process has mapped that no file holds, shared pages in full."""
    return sum(_sizes(f"{_living_task(pid)}/status", (b"RssAnon:", b"RssShmem:")))


def private_memory(pid: int) -> int:
    """RssAnon: what a process has for itself, or shares with its forks; pages written to count."""
    return sum(_sizes(f"{_living_task(pid)}/status", (b"RssAnon:",)))


class SealedMemory(NamedTuple):
    """What a process has of some sealed memory files, and of all else.

    `resident` counts each page that was not written to in full, `copies` each that was. `divided`
    is the Pss of both together, `elsewhere` the most that can be of Pss_Anon outside these maps.
    """

    resident: int = 0
    copies: int = 0
    divided: int = 0
    elsewhere: int = 0

    def with_map(self, resident: int, divided: int, anonymous: int, *, ours: bool) -> SealedMemory:
        """Count one more: its Rss, Pss and Anonymous."""
        if not ours:
            return self._replace(elsewhere=self.elsewhere + min(divided, anonymous))
        return self._replace(
            resident=self.resident + resident - anonymous,
            copies=self.copies + anonymous,
            divided=self.divided + divided,
        )

    def fair(self, anonymous: int, processes: int) -> int:
        """What was not written to, each page divided by those who map it: at most that much.

        The kernel gives no fair share of the copies in one map. But that of all anonymous pages
        (`anonymous`, Pss_Anon) is known: what of it is not elsewhere is of copies. Nor can there be
        more than `processes` who share them.
        """
        copies = max(self.copies // processes, min(self.copies, anonymous - self.elsewhere))
        return max(0, min(self.resident, self.divided - copies))


def sealed_memory(pid: int, places: Collection[bytes]) -> SealedMemory:
    """Read it from /proc/PID/smaps; nothing where it maps none of them.

    `places` of those files are device and inode as that file has them. Takes long where there are
    many maps, and waits for their lock.
    """
    text = _read(f"/proc/{pid}/smaps", to_its_end=True)
    if not text:  # the main thread has ended, and the others may be about to
        text = _read(f"{_living_task(pid)}/smaps", to_its_end=True)
    found = SealedMemory()
    ours = False
    sizes: dict[bytes, int] = {}
    for line in text.splitlines() if _SEALED in text else ():
        name, _, rest = line.partition(b" ")
        if not name.endswith(b":"):  # the head of the next map
            ours = line.endswith(_SEALED) and _place_in(line) in places
        elif name in (b"Rss:", b"Pss:", b"Anonymous:"):
            sizes[name] = int(rest.split()[0]) << 10
            if name == b"Anonymous:":  # it comes after the two
                found = found.with_map(*sizes.values(), ours=ours)
    return found


def shared_maps() -> frozenset[bytes]:
    """Lines of /proc/self/maps of memory that this process writes to together with others."""
    lines = _read("/proc/self/maps", to_its_end=True).splitlines()
    return frozenset(line for line in lines if line.split(None, 2)[1] == b"rw-s")


def sealed_places(pid: int) -> set[bytes]:
    """Places of the sealed memory files that a process has mapped; none where it cannot be read."""
    lines = _read(f"/proc/{pid}/maps", to_its_end=True).splitlines()
    return {_place_in(line) for line in lines if line.endswith(_SEALED)}


def _place_in(head: bytes) -> bytes:
    """Device and inode, from the line of a map."""
    return b" ".join(head.split(None, 5)[3:5])


def place_of(descriptor: int) -> bytes:
    """Device and inode of a file, as the maps of a process tell them."""
    device, inode = file_of(descriptor)
    return b"%02x:%02x %d" % (os.major(device), os.minor(device), inode)


class FairMemory(NamedTuple):
    """By /proc/PID/smaps_rollup: Pss_Anon, Pss_Shmem, Private_Dirty, Rss, and where it lies."""

    anonymous: int
    shared: int
    private: int
    resident: int
    place: bytes


def fair_memory(pid: int) -> FairMemory | None:
    """What a process has mapped that no file holds, each page divided by those who map it.

    None when the kernel does not let us read it (a process that changed its user without exec).
    Costs about 25 ms per GiB, and waits for the lock of the process's memory map.
    """
    # Where the main thread has ended, another one has it.
    text = _read(f"/proc/{pid}/smaps_rollup") or _read(f"{_living_task(pid)}/smaps_rollup")
    if not text:
        return None
    place, _, rest = text.partition(b"\n")
    sizes = {name: int(size) << 10 for name, size, *_ in map(bytes.split, rest.splitlines())}
    anonymous, shared = sizes[b"Pss_Anon:"], sizes[b"Pss_Shmem:"]
    return FairMemory(anonymous, shared, sizes[b"Private_Dirty:"], sizes[b"Rss:"], place)


def thread_states(pid: int) -> str:
    """The state letters of all threads of a process (proc_pid_stat(5))."""
    found = [_state_in(_read(f"/proc/{pid}/task/{thread}/stat")) for thread in _threads(pid)]
    return "".join(found)


def _state_in(text: bytes) -> str:
    return text[text.rindex(b")") + 2 :][:1].decode() if text else ""
