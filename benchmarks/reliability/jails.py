"""Surroundings that refuse things: what was said of each limit there is what an attack finds."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from benchmarks.processes import parent_of
from benchmarks.reliability.check import Check, Found
from benchmarks.reliability.scripts import Script, run_all
from benchmarks.reliability.shortages import without_root
from pynisher_exec import LimitedProcessExecutor, TimeoutException, supports
from pynisher_exec.kernel import landlock, libc, prctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pynisher_exec import LimitedFuture

__all__ = ["CHECKS"]

PATIENCE = 60
ROUNDS = 6
SOFTLY = ("counted", "summed process clocks")
"""The mechanisms, as reports name them, of limits that can be outrun."""

LIMITS = (
    "memory",
    "cpu_time",
    "wall_time",
    "processes",
    "grace_period",
    "startup_time",
    "open_files",
    "file_size",
    "core_size",
)

LATEST = 1.0
"""Seconds by which a wall limit is passed where other rows, or a suite, want the processors too."""

LEAST_SHARE = 0.9
"""Of the throughput without the scope: by less than a tenth may it fall, to be on by default."""

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


def _lift(kind: int) -> None:
    """What a task would do first that does not want to be limited."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def open_many(count: int) -> int:
    """Open that many files, and say how many this process can have."""
    _lift(resource.RLIMIT_NOFILE)
    held = len(os.listdir("/proc/self/fd")) - 1
    with contextlib.suppress(OSError):
        for _ in range(count):
            os.open("/dev/null", os.O_RDONLY)
            held += 1
    return held


def write_much(size: int) -> int:
    """Write that much to one file, and say how large it has become."""
    _lift(resource.RLIMIT_FSIZE)
    with tempfile.TemporaryFile(buffering=0) as file:
        with contextlib.suppress(OSError):
            for _ in range(0, size, 1024):
                file.write(bytes(1024))
        return os.fstat(file.fileno()).st_size


def largest_core() -> int:
    """Bytes that a crash of this process may leave behind."""
    _lift(resource.RLIMIT_CORE)
    return resource.getrlimit(resource.RLIMIT_CORE)[0]


def swallow_and_stay() -> None:
    """Take no notice of the soft signal."""
    with contextlib.suppress(TimeoutException):
        time.sleep(60)
    time.sleep(60)


class SlowToLoad:
    """An argument that takes its time."""

    def __reduce__(self) -> Any:
        return time.sleep, (60,)


def _attack() -> tuple[dict[str, bool], dict[str, str]]:
    """Attack each limit: whether it was held, and the mechanism where there are several."""
    with (
        LimitedProcessExecutor(1, startup_time=0.5) as slow,
        LimitedProcessExecutor(1, wall_time=20) as executor,
    ):
        loading = slow.submit(id, SlowToLoad())
        bursts = [executor.limit(processes=2).submit(fork_in_a_burst, 3) for _ in range(5)]
        cpu = executor.limit(cpu_time=0.3).submit(burn_disowned, 1)
        memory = executor.limit(memory="100MB").submit(hold, 250 << 20)
        wall = executor.limit(wall_time=0.2).submit(time.sleep, 60)
        grace = executor.limit(wall_time=0.2, grace_period=0.2).submit(swallow_and_stay)
        files = executor.limit(open_files=40).submit(open_many, 50)
        size = executor.limit(file_size=4096).submit(write_much, 8192)
        core = executor.limit(core_size=0).submit(largest_core)
        ended: list[LimitedFuture[Any]] = [loading, *bursts, cpu, memory, wall, grace]
        for future in ended:
            future.exception(PATIENCE)
        held = {
            "processes": all(_status(each) == "processes" or each.result() <= 2 for each in bursts),
            "cpu_time": _status(cpu) == "cpu_time",
            "memory": _status(memory) == "memory",
            "wall_time": _ended_in_time(wall, "wall_time", 0.2),
            "grace_period": _ended_in_time(grace, "wall_time", 0.4),
            "startup_time": _status(loading) == "startup",
            "open_files": files.result(PATIENCE) <= 40,
            "file_size": size.result(PATIENCE) <= 4096,
            "core_size": core.result(PATIENCE) == 0,
        }
    used = {
        "processes": bursts[0].report.limits["processes"].mechanism,  # type: ignore[union-attr]
        "cpu_time": cpu.report.limits["cpu_time"].mechanism,  # type: ignore[union-attr]
    }
    return held, used


def _ended_in_time(future: LimitedFuture[Any], status: str, seconds: float) -> bool:
    """Whether a task was ended at a wall limit, and not long after it on a machine that is busy."""
    took = 0.0 if future.report is None else future.report.wall_time
    return _status(future) == status and seconds <= took < seconds + LATEST


def is_true(*may_be_soft: str) -> bool:
    """Whether an attack on each limit finds what is said of it: hard, unless it is named here.

    What is soft may hold all the same: it is not promised.
    """
    told = {name: str(supports(name)) for name in LIMITS}
    held, used = _attack()
    accepted = {name: _is_accepted_strictly(name) for name in told}
    print(told, held, used, accepted, file=sys.stderr)
    agreed = all(accepted[name] == (word == "hard") for name, word in told.items())
    agreed = agreed and all((used[name] in SOFTLY) == (told[name] == "soft") for name in used)
    return agreed and all(
        held[name] if word == "hard" else name in may_be_soft for name, word in told.items()
    )


def _is_accepted_strictly(name: str) -> bool:
    """Whether an executor that takes only hard limits takes this one."""
    limits: dict[str, Any] = {name: "100MB" if name == "memory" else 1}
    if name == "grace_period":
        limits["wall_time"] = 1
    try:
        LimitedProcessExecutor(1, strict=True, **limits).shutdown()
    except ValueError:
        return False
    return True


def _status(future: LimitedFuture[Any]) -> str:
    return "" if future.report is None else str(future.report.status)


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


def _struck(context: str | None) -> Script:
    text = f"""
import tempfile
with LimitedProcessExecutor(2, context={context!r}) as executor:
    path = tempfile.mktemp()
    os.mkfifo(path)
    other = executor.submit(jails.tell_pid_and_stay, path)
    sibling = int(open(path).read())
    os.unlink(path)
    print(executor.submit(jails.strike_parents, os.getpid(), sibling).result(60))
    print(other.result(60) == sibling and answers(executor))
"""
    name = f"a task strikes supervisor, template, caller and another task, context {context}"
    return Script(name, HEAD + text, "['EPERM', 'EPERM', 'EPERM', 'EPERM', 'EPERM']\nTrue\n")


STRUCK = tuple(map(_struck, (None, "loky", "spawn", "forkserver", "fork")))


def jails(count: int) -> Found:
    """Row 15."""
    if os.getuid() == 0:
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
