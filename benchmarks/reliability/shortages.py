"""What a caller meets when something runs out, and that all is well again when it is there again.

Scripts, each run as a process of its own, in mounts and under limits of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.scripts import Script, run_all

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CHECKS"]

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REC_PRIVATE = 0x4000 | 0x40000
PR_CAPBSET_DROP = 24
CAPABILITIES = 64
NOBODYS_UID = 54321
"""No process on the machine runs under it, so only ours count for its limit."""
NOBODYS_MAP = f"{NOBODYS_UID} 0 1"

LARGE = 200 << 20
MOST_PROCESSES = 60

AGAIN = "again"
"""Last argument of a script that has been prepared and started anew."""


# Called by the scripts ---------------------------------------------------------------------------


def private_mounts() -> None:
    """Let what is mounted from now on be seen here only. OSError where that is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC_PRIVATE, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(kind: str, target: str, options: str, flags: int = 0) -> None:
    """Mount a file system of no device."""
    libc = ctypes.CDLL(None, use_errno=True)
    name = kind.encode()
    if libc.mount(name, target.encode(), name, flags, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def start_as_a_user() -> None:
    """Start the script anew as a user without capabilities; once.

    A user namespace calls root by another number (user_namespaces(7)), so that the interpreter can
    be read wherever it lies.
    """
    if sys.argv[-1] == AGAIN or os.getuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for name, text in (("setgroups", "deny"), ("uid_map", NOBODYS_MAP), ("gid_map", NOBODYS_MAP)):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    os.execv(sys.executable, [*sys.orig_argv, AGAIN])  # noqa: S606 - that is the point


def start_with_few_processes() -> None:
    """Start the script anew as one whose processes the kernel counts against RLIMIT_NPROC; once.

    It counts by the real user, and exempts root and capabilities (getrlimit(2)). The effective user
    stays, for the interpreter's sake.
    """
    if sys.argv[-1] == AGAIN:
        return
    libc = ctypes.CDLL(None)
    for capability in range(CAPABILITIES):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_NPROC, (MOST_PROCESSES, MOST_PROCESSES))
    os.setresuid(NOBODYS_UID, 0, 0)
    os.execv(sys.executable, [*sys.orig_argv, AGAIN])  # noqa: S606 - that is the point


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Take all that this process may have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def no_processes() -> Iterator[None]:
    """Start sleepers until this user has as many processes as it may."""
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                pid = os.fork()
                if pid == 0:
                    time.sleep(300)
                    os._exit(0)
                taken.append(pid)
        yield
    finally:
        for pid in taken:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@contextlib.contextmanager
def no_memory(room: int = 30 << 20) -> Iterator[None]:
    """Let this process map hardly more than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def use_shared_memory() -> str:
    """Need some of it: a lock of multiprocessing is a file there, by its name."""
    with multiprocessing.get_context("spawn").Lock():
        return "done"


def large_later() -> bytes:
    """Return more than its caller can take by then."""
    time.sleep(1)
    return bytes(LARGE)


# The scripts -------------------------------------------------------------------------------------

HEAD = """
from benchmarks.reliability.shortages import *
from benchmarks.reliability import shortages
from concurrent.futures import wait

def told(futures, *words):
    # Those that failed say one of the words, and one has failed if there are words.
    wait(futures, 60)
    errors = [future.exception(0) for future in futures]
    failed = [str(error) for error in errors if error is not None]
    fine = all(any(word in text for word in words) for text in failed)
    if not fine or bool(failed) != bool(words):
        print(errors, file=sys.stderr)
        return False
    return True
"""

SCARCE = (
    Script(
        "no descriptor is free, before the first task",
        HEAD
        + """
with shortages.no_descriptors():
    try:
        LimitedProcessExecutor(2)
    except OSError as error:
        fine = "Too many open files" in str(error)
with LimitedProcessExecutor(2) as executor:
    with shortages.no_descriptors():
        futures = [executor.submit(abs, -1) for _ in range(4)]
        fine = fine and told(futures, "Too many open files")
    print(fine and answers(executor))
""",
    ),
    Script(
        "no descriptor is free, while tasks run",
        HEAD
        + """
with LimitedProcessExecutor(2) as executor:
    fine = answers(executor)
    with shortages.no_descriptors():  # those that the slots have are enough
        fine = fine and told([executor.submit(abs, -1) for _ in range(6)])
    print(fine and answers(executor))
""",
    ),
    Script(
        "no memory for a result in the caller",
        HEAD
        + """
with LimitedProcessExecutor(2) as executor:
    fine = answers(executor)
    large = [executor.submit(shortages.large_later) for _ in range(2)]
    while not all(future.running() for future in large):
        time.sleep(0.001)
    time.sleep(0.2)  # they have been told their limits, which are this process's too
    with shortages.no_memory():
        small = [executor.submit(abs, -n) for n in range(4)]
        fine = fine and told(large, "delivered") and told(small)
        fine = fine and all(future.exception(0) for future in large)
    print(fine and answers(executor) and len(executor.submit(shortages.large_later).result()) > 0)
""",
    ),
    Script(
        "no memory in the caller, before the first task",
        HEAD
        + """
with LimitedProcessExecutor(2) as executor:
    with shortages.no_memory(room=1 << 20):  # a thread's stack is larger
        try:
            fine = told([executor.submit(abs, -1)], "memory", "start new thread")
        except (RuntimeError, MemoryError, OSError) as error:
            fine = "start new thread" in str(error) or "memory" in str(error).lower()
    print(fine and answers(executor))
""",
    ),
)

AS_ROOT = (
    Script(
        "the process table is full for this user, before the first task",
        HEAD
        + """
shortages.start_with_few_processes()
executor = LimitedProcessExecutor(2)
with shortages.no_processes():
    try:
        fine = told([executor.submit(abs, -1)], "Resource temporarily unavailable")
    except RuntimeError as error:  # as the standard library's executors
        fine = "can't start new thread" in str(error)
with executor:
    print(fine and answers(executor))
""",
    ),
    Script(
        "the process table is full for this user, while tasks run",
        HEAD
        + """
shortages.start_with_few_processes()
with LimitedProcessExecutor(2) as executor:
    fine = answers(executor)
    with shortages.no_processes():  # those that the slots have are enough
        fine = fine and told([executor.submit(abs, -1) for _ in range(6)])
    print(fine and answers(executor))
""",
    ),
    Script(
        "the process table is full for this user, and each task needs a new start",
        HEAD
        + """
shortages.start_with_few_processes()
with LimitedProcessExecutor(2, context="loky") as executor:
    fine = answers(executor)
    with shortages.no_processes():
        futures = [executor.submit(abs, -1) for _ in range(6)]
        fine = fine and told(futures, "Resource temporarily unavailable")
    print(fine and answers(executor))
""",
    ),
    Script(
        "shared memory is full",
        HEAD
        + """
shortages.private_mounts()
shortages.mount("tmpfs", "/dev/shm", "size=64k")
open("/dev/shm/full", "wb").write(bytes(64 << 10))
good = True
for context in (None, "loky", "spawn"):
    with LimitedProcessExecutor(2, context=context, capture_output=True) as executor:
        good = good and answers(executor)
with LimitedProcessExecutor(2) as executor:
    def told_of_locks(*words):
        return told([executor.submit(shortages.use_shared_memory) for _ in range(3)], *words)
    good = good and told_of_locks("No space left") and answers(executor)
    os.unlink("/dev/shm/full")
    print(good and told_of_locks() and answers(executor))
""",
    ),
    Script(
        "/proc hides what is not one's own",
        HEAD
        + """
if sys.argv[-1] != shortages.AGAIN:
    shortages.private_mounts()
    shortages.mount("proc", "/proc", "hidepid=2")
shortages.start_as_a_user()
from benchmarks.reliability.deeds import burn_in_an_orphan, hog_shared
with LimitedProcessExecutor(2, wall_time=30) as executor:
    memory = executor.limit(memory="50MB").submit(hog_shared, 200 << 20)
    cpu = executor.limit(cpu_time=0.2).submit(burn_in_an_orphan)
    memory.exception(60), cpu.exception(60)
    print(answers(executor) and (memory.report.status, cpu.report.status) == ("memory", "cpu_time"))
""",
    ),
)


def shortages(count: int) -> Found:
    """Row 10."""
    if may_mount():
        return run_all(SCARCE + AS_ROOT, count)
    return without_root(run_all(SCARCE, count), AS_ROOT)


def may_mount() -> bool:
    """Whether this is root with its usual capabilities, which root of a container may lack."""
    if os.getuid() != 0:
        return False
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(OSError):
            private_mounts()
            status = 0
        os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def without_root(found: Found, scripts: tuple[Script, ...]) -> Found:
    """Say also what has not been tried: mounts and other users' numbers need capabilities."""
    names = "; ".join(script.name for script in scripts)
    return found._replace(worst=f"{found.worst}. Not tried, since only root may: {names}")


CHECKS = (
    Check(
        10,
        "what runs out is told on the futures that it concerns, and all works when it is back",
        "descriptors, memory; as root also RLIMIT_NPROC, a full /dev/shm, /proc with hidepid",
        shortages,
        70,
        len(SCARCE + AS_ROOT),
    ),
)
