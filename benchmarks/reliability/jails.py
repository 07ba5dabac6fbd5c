"""Surroundings that refuse things: what was said of each limit there is what an attack finds."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import statistics
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.scripts import Script, run_all
from pynisher_exec import LimitedProcessExecutor, supports
from pynisher_exec.kernel import landlock, libc, prctl

if TYPE_CHECKING:
    from pynisher_exec import LimitedFuture

__all__ = ["CHECKS"]

PATIENCE = 60
PIDFD_OPEN, PIDFD_GETFD = 434, 438  # the same on every machine (pidfd_open(2))
MS_READ_ONLY_BIND = 0x1 | 0x20 | 0x1000


# Called by the scripts ---------------------------------------------------------------------------


def refuse_calls(*names: str) -> None:
    """Let system calls fail from here on, as in a container, by a filter that cannot be undone."""
    lines = [struct.pack("=HBBI", 0x20, 0, 0, 0)]  # load the number, offset 0 of seccomp_data
    for name in names:
        lines.append(struct.pack("=HBBI", 0x15, 0, 1, libc.number(name)))
        lines.append(struct.pack("=HBBI", 0x06, 0, 0, 0x00050000 | errno.EPERM))
    lines.append(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))
    code = ctypes.create_string_buffer(b"".join(lines))
    program = ctypes.create_string_buffer(struct.pack("HL", len(lines), ctypes.addressof(code)))
    prctl.set_no_new_privs()
    libc.syscall(libc.number("seccomp"), 1, 0, ctypes.addressof(program))


def fork_in_a_burst(count: int) -> int:
    """Start processes that end as soon as all have been started; how many came up."""
    waiting, ending = os.pipe()
    pids = []
    with contextlib.suppress(OSError):
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                os.close(ending)
                os.read(waiting, 1)
                os._exit(0)
            pids.append(pid)
    os.close(ending)
    for pid in pids:
        os.waitpid(pid, 0)
    return len(pids)


def burn_disowned(seconds: float) -> None:
    """Use CPU time in children that nobody reaps, one after the other."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(int(seconds / 0.05)):
        if os.fork() == 0:
            end = time.process_time() + 0.05
            while time.process_time() < end:
                pass
            os._exit(0)
        with contextlib.suppress(ChildProcessError):
            os.wait()


def hold(size: int) -> None:
    """Hold memory in five processes, in pieces that no rlimit of any refuses; one is shared."""
    shared = mmap.mmap(-1, size // 5)
    shared.write(bytes(size // 5))
    for _ in range(4):
        if os.fork() == 0:
            held = bytearray(b"x") * (size // 5)
            time.sleep(60)
            del held
    time.sleep(60)


def start_programs_slowly(size: int, seconds: float) -> None:
    """Hold memory, and start programs whose exec takes a while: a long PATH is searched."""
    held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(0, size, 1 << 20):
        held.write(bytes(1 << 20))
    path = ":".join([*(f"/nowhere/{number}" for number in range(8_000)), "/bin"])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        subprocess.run(["true"], check=True, env={"PATH": path})  # noqa: S607 - it is to be searched


def is_true(*may_be_soft: str) -> bool:
    """Whether an attack on each limit finds what is said of it: hard, unless it is named here.

    What is soft may hold all the same: it is not promised.
    """
    told = {name: str(supports(name)) for name in ("memory", "cpu_time", "wall_time", "processes")}
    with LimitedProcessExecutor(1, wall_time=20) as executor:
        bursts = [executor.limit(processes=2).submit(fork_in_a_burst, 3) for _ in range(5)]
        cpu = executor.limit(cpu_time=0.3).submit(burn_disowned, 1)
        memory = executor.limit(memory="100MB").submit(hold, 250 << 20)
        wall = executor.limit(wall_time=0.2).submit(time.sleep, 60)
        ended: list[LimitedFuture[Any]] = [*bursts, cpu, memory, wall]
        for future in ended:
            future.exception(PATIENCE)
    held = {
        "processes": all(_status(each) == "processes" or each.result() <= 2 for each in bursts),
        "cpu_time": _status(cpu) == "cpu_time",
        "memory": _status(memory) == "memory",
        "wall_time": _status(wall) == "wall_time",
    }
    print(told, held, file=sys.stderr)
    return all(held[name] if word == "hard" else name in may_be_soft for name, word in told.items())


def _status(future: LimitedFuture[Any]) -> str:
    return "" if future.report is None else str(future.report.status)


def strike(pid: int) -> str:
    """Try to end a process; what the kernel says."""
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "sent"


def take_descriptors(pid: int) -> str:
    """Try to take over what another process has open (pidfd_getfd(2)); what the kernel says."""
    libc_ = ctypes.CDLL(None, use_errno=True)
    descriptor = libc_.syscall(PIDFD_OPEN, pid, 0)
    taken = [libc_.syscall(PIDFD_GETFD, descriptor, number, 0) for number in range(32)]
    os.close(descriptor)
    return "taken" if max(taken) >= 0 else errno.errorcode[ctypes.get_errno()]


def strike_parents(caller: int, sibling: int) -> list[str]:
    """Try to end supervisor, template, caller and another task, and to take what that has open."""
    supervisor = os.getppid()
    with open(f"/proc/{supervisor}/stat", encoding="ascii") as file:
        template = int(file.read().rpartition(")")[2].split()[1])
    struck = [strike(pid) for pid in (supervisor, template, caller, sibling)]
    return [*struck, take_descriptors(sibling)]


def tell_pid_and_stay(path: str) -> int:
    """Be another task."""
    with open(path, "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    time.sleep(2)
    return os.getpid()


# The scripts -------------------------------------------------------------------------------------

HEAD = """
from benchmarks.reliability import jails, shortages
"""
TRUTH = "print(jails.is_true())"
NO_CGROUPS = """
shortages.private_mounts()
for line in open("/proc/self/mounts").read().splitlines():
    if line.split()[2] in ("cgroup", "cgroup2"):
        shortages.mount("none", line.split()[1], "", jails.MS_READ_ONLY_BIND)
"""


def _refusing(name: str, calls: str, may_be_soft: str) -> Script:
    text = f"jails.refuse_calls({calls})\nprint(jails.is_true({may_be_soft}))"
    return Script(name, HEAD + text)


ANYWHERE = (
    Script("as we are", HEAD + TRUTH),
    _refusing("perf refused", "'perf_event_open'", "'cpu_time'"),
    _refusing("filters refused", "'seccomp'", "'processes'"),
    _refusing(
        "both refused, as in a container",
        "'perf_event_open', 'seccomp'",
        "'cpu_time', 'processes'",
    ),
    _refusing(
        "all refused, as in a stricter one",
        "'perf_event_open', 'seccomp', 'kcmp', 'landlock_create_ruleset'",
        "'cpu_time', 'processes'",
    ),
    _refusing("Landlock refused", "'landlock_create_ruleset'", ""),
    _refusing("kcmp refused, as in a container", "'kcmp'", ""),
    Script(
        "kcmp refused: a program that is being started has no memory of its own yet",
        HEAD
        + """
jails.refuse_calls("kcmp")
with LimitedProcessExecutor(1, memory="500MiB", wall_time=60) as executor:
    report = executor.submit(jails.start_programs_slowly, 300 << 20, 2).wait_for_report()
print(report.status, 300 << 20 <= report.peak_memory < 400 << 20)
""",
        "ok True\n",
    ),
)

AS_ROOT = (
    Script(
        "no cgroup can be made, perf refused",
        HEAD
        + NO_CGROUPS
        + """
jails.refuse_calls("perf_event_open")
print(jails.is_true("cpu_time"), str(jails.supports("cpu_time")))
""",
        "True soft\n",
    ),
    Script(
        "no cgroup can be made, perf and filters refused: a container",
        HEAD
        + NO_CGROUPS
        + """
jails.refuse_calls("perf_event_open", "seccomp")
print(jails.is_true("cpu_time", "processes"), str(jails.supports("cpu_time")))
""",
        "True soft\n",
    ),
    Script(
        "as a user without capabilities",
        HEAD + "shortages.start_as_a_user()\n" + TRUTH,
    ),
    Script(
        "nothing can be written but a tiny TMPDIR in a tiny /dev/shm",
        HEAD
        + """
shortages.private_mounts()
for line in open("/proc/self/mounts").read().splitlines():
    target = line.split()[1]
    if not target.startswith(("/proc", "/sys", "/dev")):
        shortages.mount("none", target, "", jails.MS_READ_ONLY_BIND)
shortages.mount("tmpfs", "/dev/shm", "size=16k")
os.environ["TMPDIR"] = "/dev/shm"
try:
    open("/written", "w")
except OSError:
    print(jails.is_true())
""",
    ),
)

STRUCK = (
    Script(
        "a task strikes its supervisor, its template, its caller and another task",
        HEAD
        + "import tempfile"
        + """
with LimitedProcessExecutor(2) as executor:
    path = tempfile.mktemp()
    os.mkfifo(path)
    other = executor.submit(jails.tell_pid_and_stay, path)
    sibling = int(open(path).read())
    os.unlink(path)
    print(executor.submit(jails.strike_parents, os.getpid(), sibling).result(60))
    print(other.result(60) == sibling and answers(executor))
""",
        "['EPERM', 'EPERM', 'EPERM', 'EPERM', 'EPERM']\nTrue\n",
    ),
)


def jails(count: int) -> Found:
    """Row 15."""
    return run_all(ANYWHERE + (AS_ROOT if os.getuid() == 0 else ()), count)


def scoped_signals(count: int) -> Found:
    """Row 16."""
    if landlock.abi() < landlock.SIGNALS_SINCE:
        return Found(
            0, [], "", f"this kernel's Landlock cannot scope signals, ABI {landlock.abi()}"
        )
    found = run_all(STRUCK, count)
    return found._replace(worst=f"{found.worst}; {_cost_of_scope(min(3, count))}")


RATE = """
from benchmarks.reliability import jails
jails.refuse_calls({call!r})
print(jails.rate())
"""


def rate(count: int = 200) -> float:
    """No-op tasks a second, one after the other."""
    with LimitedProcessExecutor(1) as executor:
        executor.submit(abs, -1).result(PATIENCE)
        began = time.monotonic()
        for _ in range(count):
            executor.submit(abs, -1).result(PATIENCE)
    return count / (time.monotonic() - began)


def _cost_of_scope(turns: int) -> str:
    """What share of the tasks a second is left with the scope; a filter is there both times."""
    rates: dict[str, list[float]] = {"seccomp": [], "landlock_create_ruleset": []}
    for call in list(rates) * turns:
        done = subprocess.run(
            [sys.executable, "-c", RATE.format(call=call)],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
            timeout=PATIENCE,
        )
        rates[call].append(float(done.stdout))
    with_scope, without = (statistics.median(each) for each in rates.values())
    return f"throughput {with_scope / without:.2f} of that without the scope"


CHECKS = (
    Check(
        15,
        "what is said of a limit is what an attack on it finds",
        "behind filters; as root also without capabilities, and where nothing can be written",
        jails,
        40,
        len(ANYWHERE + AS_ROOT),
    ),
    Check(
        16,
        "no task can signal supervisor, template, caller or a sibling, nor take its descriptors",
        "SIGKILL to each, pidfd_getfd; Landlock",
        scoped_signals,
        20,
        1,
    ),
)
