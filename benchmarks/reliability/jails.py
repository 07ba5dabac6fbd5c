"""Surroundings that refuse things: what was said of each limit there is what an attack finds."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.processes import parent_of
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.scripts import Script, run_all
from benchmarks.reliability.shortages import may_mount, without_root
from pynisher_exec import LimitedProcessExecutor
from pynisher_exec.kernel import landlock, libc, prctl

if TYPE_CHECKING:
    from collections.abc import Iterator


__all__ = ["CHECKS"]

PATIENCE = 60
ROUNDS = 6
LEAST_SHARE = 0.9
"""Of the throughput without the scope: by less than a tenth may it fall, to be on by default."""

PIDFD_OPEN, PIDFD_GETFD = 434, 438  # the same on every machine (pidfd_open(2))
CAP_SYS_RESOURCE = 24  # linux/capability.h
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


def strike(pid: int) -> str:
    """Try to stop or end a process, the worst last; what the kernel says, but that it refuses."""
    for number in (0, signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except PermissionError:
            continue
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return f"signal {number} sent"
    return "EPERM"


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
    struck = [strike(pid) for pid in (supervisor, parent_of(supervisor), caller, sibling)]
    return [*struck, take_descriptors(sibling)]


def tell_pid_and_stay(path: str) -> int:
    """Be another task, until somebody has opened the other pipe."""
    with open(path, "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    with open(f"{path}.end", encoding="ascii") as file:
        file.read()
    return os.getpid()


# The scripts -------------------------------------------------------------------------------------

HEAD = """
from benchmarks.reliability import attacks, jails, shortages
"""
TRUTH = "print(attacks.is_true())"
NO_CGROUPS = """
shortages.private_mounts()
for line in open("/proc/self/mounts").read().splitlines():
    if line.split()[2] in ("cgroup", "cgroup2"):
        shortages.mount("none", line.split()[1], "", jails.MS_READ_ONLY_BIND)
"""


def _refusing(name: str, calls: str, may_be_soft: str) -> Script:
    text = f"jails.refuse_calls({calls})\nprint(attacks.is_true({may_be_soft}))"
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
    _refusing("capabilities cannot be given up", "'capset'", "*attacks.RLIMITS"),
    _refusing("Landlock refused", "'landlock_create_ruleset'", ""),
    _refusing("kcmp refused, as in a container", "'kcmp'", ""),
    Script(
        "kcmp refused: a program that is being started has no memory of its own yet",
        HEAD
        + """
jails.refuse_calls("kcmp")
with LimitedProcessExecutor(1, memory="500MiB", wall_time=60) as executor:
    report = executor.submit(attacks.start_programs_slowly, 300 << 20, 2).wait_for_report()
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
print(attacks.is_true("cpu_time"), str(attacks.supports("cpu_time")))
""",
        "True soft\n",
    ),
    Script(
        "no cgroup can be made, perf and filters refused: a container",
        HEAD
        + NO_CGROUPS
        + """
jails.refuse_calls("perf_event_open", "seccomp")
print(attacks.is_true("cpu_time", "processes"), str(attacks.supports("cpu_time")))
""",
        "True soft\n",
    ),
    Script(
        "root's tasks keep what root may",
        HEAD
        + """
told = {str(attacks.supports(name, no_new_privs=False)) for name in attacks.RLIMITS}
permitted = int(open("/proc/self/status").read().partition("CapPrm:")[2].split()[0], 16)
print(attacks.is_true(*attacks.RLIMITS, no_new_privs=False))
print(told == {"soft" if permitted >> jails.CAP_SYS_RESOURCE & 1 else "hard"})
""",
        "True\nTrue\n",
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
    print(attacks.is_true())
""",
    ),
)


def _struck(context: str | None) -> Script:
    text = f"""
import tempfile
with LimitedProcessExecutor(2, context={context!r}) as executor:
    path = tempfile.mktemp()
    os.mkfifo(path)
    os.mkfifo(path + ".end")
    other = executor.limit(wall_time=60).submit(jails.tell_pid_and_stay, path)
    sibling = int(open(path).read())
    print(executor.submit(jails.strike_parents, os.getpid(), sibling).result(60))
    open(path + ".end", "w").close()
    os.unlink(path)
    os.unlink(path + ".end")
    print(other.result(60) == sibling and answers(executor))
"""
    name = f"a task strikes supervisor, template, caller and another task, context {context}"
    return Script(name, HEAD + text, "['EPERM', 'EPERM', 'EPERM', 'EPERM', 'EPERM']\nTrue\n")


STRUCK = tuple(map(_struck, (None, "loky", "spawn", "forkserver", "fork")))


def jails(count: int) -> Found:
    """Row 15."""
    if may_mount():
        return run_all(ANYWHERE + AS_ROOT, count)
    return without_root(run_all(ANYWHERE, count), AS_ROOT)


def scoped_signals(count: int) -> Found:
    """Row 16."""
    if landlock.abi() < landlock.SIGNALS_SINCE:
        return Found(
            0, [], "", f"this kernel's Landlock cannot scope signals, ABI {landlock.abi()}"
        )
    found = run_all(STRUCK, count)
    share = _share_with_scope(ROUNDS if count > 1 else ROUNDS // 3)
    if share < LEAST_SHARE:
        found.failures.append(f"throughput is {share:.2f} of that without the scope")
    return found._replace(worst=f"{found.worst}; throughput {share:.2f} of that without the scope")


RATE = """
from benchmarks.reliability import jails
jails.refuse_calls({call!r})
jails.tell_rates()
"""


def tell_rates(count: int = 100) -> None:
    """No-op tasks a second, one after the other, each time that a line comes."""
    with LimitedProcessExecutor(1) as executor:
        for _ in range(count):
            executor.submit(abs, -1).result(PATIENCE)
        for _ in sys.stdin:
            began = time.monotonic()
            for _ in range(count):
                executor.submit(abs, -1).result(PATIENCE)
            print(count / (time.monotonic() - began), flush=True)


def _share_with_scope(rounds: int) -> float:
    """What share of the tasks a second is left with the scope; a filter is there both times.

    In turns, in two processes, and of each the best: what else runs here only takes away.
    """
    with contextlib.ExitStack() as stack:
        sides = [
            stack.enter_context(_rates(call)) for call in ("seccomp", "landlock_create_ruleset")
        ]
        best = [0.0, 0.0]
        for number in range(rounds * 3):
            for side in (0, 1) if number % 2 else (1, 0):
                best[side] = max(best[side], next(sides[side]))
            if number + 1 >= rounds and best[0] >= best[1] * LEAST_SHARE:
                break  # else somebody may have been in its way each time: look longer
    with_scope, without = best
    return with_scope / without


@contextlib.contextmanager
def _rates(call: str) -> Iterator[Iterator[float]]:
    """Rates of a caller that is refused a system call: each is measured when it is asked for."""
    with subprocess.Popen(
        [sys.executable, "-c", RATE.format(call=call)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as caller:
        yield _asked(caller)
        caller.communicate()


def _asked(caller: subprocess.Popen[str]) -> Iterator[float]:
    assert caller.stdin is not None
    assert caller.stdout is not None
    while True:
        caller.stdin.write("\n")
        caller.stdin.flush()
        yield float(caller.stdout.readline())


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
        "SIGTERM, SIGSTOP, SIGKILL to each, pidfd_getfd, from tasks of five contexts; Landlock",
        scoped_signals,
        20,
        1,
    ),
)
