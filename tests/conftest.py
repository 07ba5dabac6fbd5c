"""What holds for every test: nothing is left over after it, and what was tested is printed.

Fixtures: `nothing_left_over` (autouse), `patience` (how long leftovers may take to vanish; override
it to change that), `marked` (finds processes by their environment), `own_tmpdir` (a TMPDIR of the
test's own), `as_nobody` (another user).
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import capabilities
import cloudpickle
import loky.backend.resource_tracker
import pytest
from hypothesis import settings
from other_user import OtherUser

import pynisher_exec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pynisher_exec import LimitedFuture

# No deadline in either: what an example takes depends on the machine's other work. "ci" always
# draws the same examples, so that a red run means a change broke something; new ones are looked for
# with --hypothesis-profile=explore, which also keeps its failures for the next run.
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("ci")

T = TypeVar("T")

MARK = "PYNISHER_EXEC_TEST_MARK"
SESSION_MARK = "PYNISHER_EXEC_TEST_SESSION"
JOBLIBS_TRACKER = "joblib.externals.loky.backend.resource_tracker"
KEEPS_THREADS = ("numpy", "scipy", "sklearn", "torch")
"""Libraries whose pools of native threads come and go at will (first use, fork)."""


def pytest_configure() -> None:
    """Whatever this session starts by exec carries its mark, orphans that no parent knows too.

    A shell that starts it in the background has it ignore Ctrl-C, which tests send to processes.
    """
    os.environ[SESSION_MARK] = secrets.token_hex(16)
    signal.signal(signal.SIGINT, signal.default_int_handler)


folders: list[Path] = []
"""Copies to remove at the end: thousands of files, for which the last test has no time left."""


def pytest_unconfigure() -> None:
    """Leave no copy behind."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Send what test modules define by value: no task has to import pytest for it, in 0.3 s.

    But for those that say `BY_REFERENCE`, whose classes have to be the same there and here.
    """
    for item in session.items:
        module = item.getparent(pytest.Module)
        if module is not None and not hasattr(module.obj, "BY_REFERENCE"):
            cloudpickle.register_pickle_by_value(module.obj)


@pytest.fixture(scope="module", autouse=True)
def nothing_collected_twice() -> None:
    """Let the collections between tests pass over what is there already: it may take 0.1 s each."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where everything is to be had (the guest), a skipped test is a failure."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("PYNISHER_EXEC_NO_SKIPS") and reporter.getreports("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_report_header() -> list[str]:
    """Print who runs what, where."""
    return [
        f"tested: {pynisher_exec.__file__}",
        f"uid {os.getuid()}, Python {sys.version.split()[0]}, Linux {os.uname().release}",
        "capabilities: " + ", ".join(map(capabilities.describe, capabilities.NAMES)),
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests did not run for want of which capability."""
    reasons = [report.longrepr for report in terminalreporter.getreports("skipped")]
    missing = Counter(
        name
        for reason in reasons
        if isinstance(reason, tuple) and (name := capabilities.missing_from(reason[2]))
    )
    for name, count in sorted(missing.items()):
        terminalreporter.write_line(f"{count} skipped: this machine has no {name}")


# Leftovers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """A process, told from a later one with the same pid by when it started."""

    pid: int
    started: int


@dataclass(frozen=True)
class Holdings:
    """What the test process holds at one moment: processes, descriptors, threads."""

    processes: frozenset[Process]
    descriptors: dict[int, str]
    threads: frozenset[threading.Thread]
    native_threads: int


@dataclass(frozen=True)
class Leftovers:
    """What is held now and was not before."""

    processes: list[Process]
    lines: list[str]


def stat_fields(pid: int, thread: int = 0) -> list[str]:
    """Return /proc/PID/stat from the state on, or a thread's; empty when that has gone."""
    place = f"/proc/{pid}/task/{thread}" if thread else f"/proc/{pid}"
    try:
        text = Path(f"{place}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()  # the name may hold blanks and parentheses


OWN_START = int(stat_fields(os.getpid())[19])


def child_pids(pid: int) -> list[int]:
    """Children of every thread of a process, zombies included."""
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text(encoding="ascii").split())
    except OSError:  # it, or one of its threads, went while we looked
        pass
    return found


def descendant_pids(pid: int | None = None) -> list[int]:
    """Everything below a process, this one by default, zombies included."""
    found = child_pids(pid or os.getpid())
    for each in found:  # grows while it is walked
        found += [child for child in child_pids(each) if child not in found]
    return found


def pids_with(variable: str, value: str) -> list[int]:
    """Pids of the processes, this one excepted, that were started with this in their environment.

    /proc/PID/environ is what came with the last exec: a fork has it too, a zombie has none, and
    what a process later puts into its own `os.environ` does not show.
    """
    wanted = f"{variable}={value}".encode()
    pids = {int(name) for name in os.listdir("/proc") if name.isdecimal()} - {os.getpid()}
    return [pid for pid in pids if is_younger(pid) and wanted in environment_of(pid)]


def is_younger(pid: int) -> bool:
    """Whether it was started after this session: the others are most, and never looked into."""
    fields = stat_fields(pid)
    return bool(fields) and int(fields[19]) >= OWN_START


def environment_of(pid: int) -> list[bytes]:
    """/proc/PID/environ; nothing when the process has gone, or is another user's.

    During an exec it is empty for a moment, or a part, and a leftover would be overlooked: it is
    waited for. Where the main thread has ended and others live, one of those has it.
    """
    deadline = time.monotonic() + 0.25
    with contextlib.suppress(PermissionError, FileNotFoundError):
        for thread in chain([pid], map(int, os.listdir(f"/proc/{pid}/task"))):
            with contextlib.suppress(ProcessLookupError):  # the kernel's own, or it has ended
                while time.monotonic() < deadline:
                    data = Path(f"/proc/{pid}/task/{thread}/environ").read_bytes()
                    fields = stat_fields(pid, thread)
                    if fields and 0 < len(data) == int(fields[48]) - int(fields[47]):
                        return data.split(b"\0")
                    time.sleep(0.001)
    return []


def helpers() -> tuple[set[int | None], set[int | None]]:
    """Pids and descriptors of the helpers that belong to the interpreter and live as long as it.

    They are told by what their modules remember, not by name: a resource tracker that a leftover
    template had started is a leftover too.
    """
    trackers = [
        vars(multiprocessing.resource_tracker._resource_tracker),
        vars(loky.backend.resource_tracker._resource_tracker),
    ]
    if (joblibs := sys.modules.get(JOBLIBS_TRACKER)) is not None:  # with its own copy of loky
        trackers.append(vars(joblibs._resource_tracker))
    server = vars(multiprocessing.forkserver._forkserver)
    pids = {tracker["_pid"] for tracker in trackers} | {server["_forkserver_pid"]}
    descriptors = {tracker["_fd"] for tracker in trackers} | {server["_forkserver_alive_fd"]}
    return pids, descriptors


def open_descriptors() -> dict[int, str]:
    """Each open descriptor and what it is open on: a path, or kind and inode ("pipe:[4711]")."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listdir used
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - no path
    return found


def holdings() -> Holdings:
    """Look at what this process holds, the interpreter's own helpers left out."""
    known_pids, known_descriptors = helpers()
    pids = {*descendant_pids(), *pids_with(SESSION_MARK, os.environ[SESSION_MARK])} - known_pids
    fields = {pid: stat_fields(pid) for pid in pids}
    return Holdings(
        frozenset(Process(pid, int(found[19])) for pid, found in fields.items() if found),
        {fd: link for fd, link in open_descriptors().items() if fd not in known_descriptors},
        frozenset(threading.enumerate()),
        len(os.listdir("/proc/self/task")),
    )


def describe_process(process: Process) -> str:
    """Name a process as a failure message should: pid, state, parent, command."""
    try:
        place = Path("/proc", str(process.pid))
        command = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
        name = (place / "comm").read_text(errors="replace").strip()  # a zombie has nothing else
        state, parent = stat_fields(process.pid)[:2]
    except (OSError, ValueError):
        return f"process {process.pid}, which has just gone"
    shown = " ".join(command).strip() or name
    return f"process {process.pid} (state {state}, child of {parent}): {shown}"


def extra_descriptors(before: dict[int, str], now: dict[int, str]) -> list[str]:
    """Descriptors that are more than before.

    Counted by what they are open on, not by number: a log that was closed and opened again may
    have moved, and a number may have been taken over by something else.
    """
    spare = Counter(before.values())
    lines = []
    for fd, link in sorted(now.items(), key=lambda item: (before.get(item[0]) != item[1], item)):
        if spare[link]:
            spare[link] -= 1
        else:
            lines.append(f"descriptor {fd}: {link}")
    return lines


def extra_threads(before: Holdings, now: Holdings) -> list[str]:
    """Threads that are more than before, Python's by name, others by their number."""
    lines = [f"thread {thread.name}" for thread in now.threads - before.threads]
    extra = now.native_threads - before.native_threads
    if not lines and extra > 0 and not any(name in sys.modules for name in KEEPS_THREADS):
        lines.append(f"{extra} threads that Python does not know of")
    return lines


def compare(before: Holdings) -> Leftovers:
    """Look again, and tell what is there that was not before."""
    now = holdings()
    processes = sorted(now.processes - before.processes, key=lambda process: process.pid)
    lines = [describe_process(process) for process in processes]
    lines += extra_descriptors(before.descriptors, now.descriptors)
    lines += extra_threads(before, now)
    return Leftovers(processes, lines)


def name_of(pid: int) -> str:
    """Return a process's name as `ps` shows it; empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def wait_until(look: Callable[[], T], patience: float = 30) -> T:
    """Wait for what no event tells, and return it; spinning would keep the monitor thread back."""
    deadline = time.monotonic() + patience
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return found


def wait_until_stopped(pid: int) -> None:
    """Wait for a SIGSTOP to take effect."""
    wait_until(lambda: stat_fields(pid)[0] == "T")


def wait_until_running(*futures: LimitedFuture[Any]) -> None:
    """Wait for tasks to begin."""
    wait_until(lambda: all(future.running() for future in futures))


def wait_until_nothing_is_left(before: Holdings, patience: float) -> Leftovers:
    """Look until nothing is left over or `patience` is over.

    A loop that polls, the only one in this project: nothing tells us when a process that is not
    our child has gone, when a daemon thread has left /proc, or when another thread has closed
    a descriptor.
    """
    deadline = time.monotonic() + patience
    pause = 0.001
    while (found := compare(before)).lines and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return found


def end(process: Process) -> None:
    """Kill exactly this process, and reap it where it is our child."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        # From here on the handle names one process; is it still the one we mean?
        fields = stat_fields(process.pid)
        if fields and int(fields[19]) == process.started:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.waitpid(process.pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # gone meanwhile, or not ours to reap
    finally:
        os.close(handle)


@pytest.fixture(scope="session")
def patience() -> float:
    """Seconds that leftovers may take to vanish."""
    return 5.0


@pytest.fixture(autouse=True)
def nothing_left_over(patience: float) -> Iterator[None]:
    """After every test: no process, no descriptor and no thread more than before it.

    What was there before counts as held by somebody else, so a fixture of a wider scope may keep
    an executor; but one that changes its processes meanwhile fails here.
    """
    before = holdings()
    yield
    pynisher_exec.shutdown()  # the hidden executor that `limited` and `enforce_limits` share
    gc.collect()
    found = wait_until_nothing_is_left(before, patience)
    for process in found.processes:
        end(process)
    if found.lines:
        pytest.fail("left over:\n  " + "\n  ".join(found.lines), pytrace=False)


# For tests that ask ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A random value in the environment, which everything that is started from now on inherits."""

    variable: str
    value: str

    def scan(self) -> list[int]:
        """Return the pids of living processes with the mark; a zombie has no environment left."""
        known, _ = helpers()
        return [pid for pid in pids_with(self.variable, self.value) if pid not in known]


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Mark:
    """Mark this process's environment: create executors after asking for this fixture.

    Only exec passes the mark on where /proc shows it, so a template that ran before has none, nor
    has what is forked from it.
    """
    mark = Mark(MARK, secrets.token_hex(16))
    monkeypatch.setenv(mark.variable, mark.value)
    return mark


@pytest.fixture
def own_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have all temporary files of this process, and of what it starts, in a folder of the test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture(scope="session")
def as_nobody() -> OtherUser:
    """Run scripts and tests as uid 65534, from a copy of interpreter, packages and tests."""
    if os.getuid() != 0:
        pytest.skip(capabilities.skip_reason("root"))
    # Not pytest's own temporary folder: that is closed to other users.
    root = Path(tempfile.mkdtemp(prefix="pynisher_exec-other-user-"))
    folders.append(root)
    return OtherUser.create(root)
